"""Benchmarks of models: builds samples, runs models, scores answers and summarizes. Only `lm_eval/` runs a model."""
