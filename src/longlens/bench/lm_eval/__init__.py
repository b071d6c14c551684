"""lm-evaluation-harness runs the models of benchmarks: the one folder that knows it.

Its backends take what they are given: they cut prompts that are too long (with a warning, or none), keep the logits of
whole sequences, and cache answers by prompt and not by model. Here a prompt that would be cut is an error, logits of
long prompts exist for answers alone, and answers are handed on as they come, so that the caller can keep them. Written
for 0.4.13, a few of whose private names are used; tests/bench/test_lm_eval.py holds them.
"""

from longlens.errors import require

require("lm_eval", extra="tasks", purpose="running benchmarks")

from longlens.bench.lm_eval.backends import open_engine as open_engine  # noqa: E402
from longlens.bench.lm_eval.engine import HarnessEngine as HarnessEngine  # noqa: E402
