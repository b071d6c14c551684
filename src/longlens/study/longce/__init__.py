"""Does LongCE help? A small model that is trained from scratch, extended, and trained on with different losses."""
