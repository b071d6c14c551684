"""Experiment: does LongCE help? A small model is trained from scratch, extended, and trained with different losses."""
