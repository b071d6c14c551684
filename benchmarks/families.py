"""Tests which transformers models work: python -m benchmarks.families writes the tables of docs/models.md, in minutes.

Each family is a tiny random model, which runs in every mode of longlens and is compared with its own forward pass of
one sequence in float32 (`tests.families.outcome`).
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

import transformers
from tests.families import KINDS, Outcome, family_model, outcome
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from benchmarks.tables import ROOT, fill_block, markdown
from longlens.errors import UserError
from longlens.rope.config import auto_class

RECORD = ROOT / "benchmarks" / "results" / "families.json"
PAGE = "docs/models.md"


def recorded(version: str) -> dict[str, Outcome]:
    """Returns the results of each family with a version of transformers; empty if another version was recorded."""
    content = json.loads(RECORD.read_text(encoding="utf-8"))
    if content["transformers"] != version:
        return {}
    rows = {kind: row for kind, row in content["families"].items() if isinstance(row, dict)}
    return {kind: Outcome(**{**row, "errors": tuple(row["errors"])}) for kind, row in rows.items()}


def main() -> None:
    """Runs all families, or the selected ones; writes the record and the page."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    known = json.loads(RECORD.read_text(encoding="utf-8"))
    version = transformers.__version__
    found = dict(known["families"]) if sys.argv[1:] and known["transformers"] == version else {}
    for kind in sys.argv[1:] or KINDS:
        found[kind] = examine(kind)
        print(kind, found[kind], flush=True)
    content = {"transformers": version, "families": {kind: found[kind] for kind in sorted(found)}}
    RECORD.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    missing = {kind: row for kind, row in content["families"].items() if isinstance(row, str)}
    fill_block(PAGE, "families", render(recorded(version), missing))


def examine(kind: str) -> dict[str, Any] | str:
    """Returns the result of a family; a text if the model cannot be created."""
    try:
        auto_class(kind)
    except UserError as error:
        name = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[kind]
        return asdict(Outcome(name=name, scoring=str(error)))
    model = family_model(kind)
    if isinstance(model, Exception):
        return " ".join(f"{type(model).__name__}: {model}".split())
    return asdict(outcome(model))


def render(made: dict[str, Outcome], unmade: dict[str, str]) -> str:
    """The tables."""
    runs = {kind: row for kind, row in made.items() if not row.is_refused}
    refused = {kind: row for kind, row in made.items() if row.is_refused}
    columns = ("`model_type`", "Class", "Scores", "Answers", "Packed training", "`extend`")
    rows = [
        (f"`{kind}`", row.name, row.scoring, row.generation.partition(":")[0], row.packing, row.extend)
        for kind, row in runs.items()
    ]
    wrong = sum(bool(row.errors) for row in made.values())
    counts = (
        f"transformers {transformers.__version__}: {len(runs)} families run and {wrong} of them give a wrong number, "
        f"{len(refused)} are refused, and {len(unmade)} cannot be made tiny from their configuration here."
    )
    reasons = [(f"`{kind}`", _cell(row.scoring)) for kind, row in refused.items()]
    missing = [(f"`{kind}`", _cell(reason)) for kind, reason in unmade.items()]
    return "\n".join(
        [
            f"{counts}\n",
            markdown(columns, rows).replace("---:", "---"),
            "Refused, with what is said:\n",
            markdown(("`model_type`", "Reason"), reasons).replace("---:", "---"),
            "Not made here, and so not checked; the probe checks a real one when it is loaded:\n",
            markdown(("`model_type`", "What its tiny configuration lacks"), missing).replace("---:", "---"),
        ]
    )


def _cell(text: str) -> str:
    short = " ".join(text.split())
    return (short if len(short) <= 240 else f"{short[:239]}…").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
