"""Token scores: the engine contract and its loop, the engines, and the run directory."""
