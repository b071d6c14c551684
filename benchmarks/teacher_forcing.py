"""Does teacher forcing say what generation does? Pairs of runs of the same samples, asked in both modes.

python -m benchmarks.teacher_forcing FORCED GENERATED [FORCED GENERATED ...]    (docs/bench.md has the commands)
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.tables import write_table
from longlens.bench.store import read_answers, read_manifest, read_samples


def main() -> None:
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    rows = []
    for forced, generated in pairs:
        greedy = {row["key"].rpartition("#")[0]: row["is_greedy"] for row in read_answers(forced, "teacher-forced")}
        targets = {row["id"]: row["continuations"][0] for _, row in read_samples(forced)}
        written = {row["key"]: row["text"] for row in read_answers(generated, "generate")}
        both = sorted(greedy.keys() & written.keys())
        begins = {key: written[key].startswith(targets[key]) for key in both}
        alike = sum(begins[key] == greedy[key] for key in both)
        said = [sum(greedy[key] for key in both), sum(begins[key] for key in both)]
        rows.append([Path(read_manifest(forced)["model"]).name, len(both), *said, alike])
    columns = ["model", "samples", "right by teacher forcing", "answers that begin so", "samples on which both agree"]
    write_table("teacher_forcing", columns, rows, "docs/bench.md")


if __name__ == "__main__":
    main()
