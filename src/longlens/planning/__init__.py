"""What scoring and training cost, from a model's configuration alone."""
