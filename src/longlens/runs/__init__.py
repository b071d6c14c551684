"""Shared code of all directories that a command writes."""
