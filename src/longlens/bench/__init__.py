"""Benchmarks on models: build samples, let a model answer, score, and sum up. A model is run in `lm_eval/` alone."""
