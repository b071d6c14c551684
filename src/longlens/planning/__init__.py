"""Estimates the cost of scoring and training from a model's configuration alone."""
