"""lm-evaluation-harness runs the models of benchmarks: the one folder that knows it.

Its backends take what they are given: they cut prompts that are too long (with a warning, or none), keep the logits of
whole sequences, and cache answers by prompt and not by model. Here a prompt that would be truncated is an error, logits
of long prompts exist for answers alone, and answers are passed on as they come, so that the caller can keep them.
Written for 0.4.13, a few of whose private names are used; tests/bench/test_lm_eval.py holds them.

`export` is reversed: our tasks in its own command, which needs nothing of the rest.
"""
