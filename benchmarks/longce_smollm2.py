"""Compares SmolLM2 after training with CE and with LongCE, on held-out modules of the standard library.

python -m benchmarks.longce_smollm2 SCORES        (seconds; docs/study.md has the commands that make SCORES)
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import longlens
from benchmarks.tables import write_table
from longlens.metrics.comparison import compare


def main() -> None:
    warnings.simplefilter("ignore", longlens.LonglensWarning)
    base, ce, longce = (longlens.open_scores(Path(sys.argv[1]) / name) for name in ("base", "ce", "longce"))
    rows = []
    for name, scores in (("before training", base), ("CE", ce), ("LongCE", longce)):
        result = longlens.perplexity(scores, evaluator_scores=base)
        values = (result.ppl, result.longppl, result.longppl_soft)
        rows.append([name, *(f"{value:.3f}" for value in values if value is not None), result.num_key_tokens])
    # The difference of what the other rows show: logs, nats per token and per key token.
    (pair,) = compare([ce, longce], evaluator_scores=base).pairs
    cells = []
    for difference in (pair.log_ppl, pair.log_longppl):
        assert difference is not None
        assert difference.interval is not None
        low, high = difference.interval
        cells.append(f"{difference.value:+.3f} [{low:+.3f}, {high:+.3f}]")
    rows.append(["LongCE - CE, log, nats", *cells, "-", "-"])
    write_table("longce_smollm2", ["weights", "PPL", "LongPPL", "LongPPL-soft", "key tokens"], rows, "docs/study.md")


if __name__ == "__main__":
    main()
