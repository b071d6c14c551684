"""What all folders that a command writes have in common."""
