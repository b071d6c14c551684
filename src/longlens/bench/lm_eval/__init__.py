"""Runs models of benchmarks with lm-evaluation-harness; this is the only package that depends on it.

The harness's backends truncate prompts that are too long (with a warning, or without one), keep the logits of whole
sequences, and cache answers by prompt and not by model. Here, a prompt that would be truncated is an error, logits
of long prompts are computed only for answers, and answers are passed on as they arrive, so that the caller can store
them. Written for 0.4.13; some of its private names are used, which tests/bench/test_lm_eval.py checks.

`export` is the reverse direction: tasks of longlens in the harness's own command. It needs nothing of the rest.
"""
