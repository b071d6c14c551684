"""Plans the cost of scoring 50 documents with `longlens plan score`, for docs/costs.md and the README.

python -m benchmarks.costs        (minutes; no weights are read, nothing is measured)
"""

from __future__ import annotations

import tempfile

from benchmarks.arithmetic import EVALUATORS
from benchmarks.tables import ROOT, fill_block, markdown
from longlens.planning.devices import find_device
from longlens.planning.report import duration, size
from longlens.planning.score import ScorePlan, plan_score

MODELS = {"Llama-3.1-8B": "LongPPL, Llama-3.1-8B", "Qwen2-72B": "LongPPL, Qwen2-72B-Instruct"}
ROWS = (
    ("Llama-3.1-8B", 8192, "h100", 1),
    ("Llama-3.1-8B", 32768, "h100", 1),
    ("Llama-3.1-8B", 32768, "a100", 1),
    ("Llama-3.1-8B", 32768, "rtx4090", 1),
    ("Llama-3.1-8B", 131072, "h100", 1),
    ("Qwen2-72B", 32768, "h100", 4),
)
DOCUMENTS = 50
SHOWN = ROWS[1]  # in the README


def planned(model: str, length: int, device: str, devices: int) -> ScorePlan:
    """The plan of a row; several devices share each layer."""
    with tempfile.TemporaryDirectory() as folder:
        EVALUATORS[MODELS[model]].save_pretrained(folder)
        return plan_score(
            f"{folder}/config.json",
            length=length,
            documents=DOCUMENTS,
            device=find_device(device),
            devices=devices,
            tensor_parallel=devices,
        )


def main() -> None:
    rows = []
    for row in ROWS:
        plan = planned(*row)
        model, length, _, devices = row
        fits = {True: "yes", False: "no", None: "-"}[plan.fits]
        time = "-" if plan.seconds is None or plan.fits is False else duration(plan.seconds)
        where = f"{devices} x {plan.device.name}"
        rows.append([model, f"{length:,}", where, fits, size(plan.memory_bytes), time, f"{plan.overhead:+.0%}"])
        print(rows[-1], flush=True)
        if row == SHOWN:
            sentence = (
                f"An evaluator of 8B parameters over {DOCUMENTS} documents of {length:,} tokens needs about "
                f"{duration(plan.seconds or 0)} and {size(plan.memory_bytes)} on one {plan.device.name}, by "
                "`longlens plan score` at 40 % of the published peak (planned, not measured)."
            )
            fill_block("README.md", "costs", f"{sentence}\n")
    columns = ["model", "tokens", "devices", "fits", "memory of each", f"{DOCUMENTS} documents", "short contexts add"]
    text = "By `longlens plan score` (`python -m benchmarks.costs`): planned, not measured.\n\n"
    fill_block("docs/costs.md", "costs", text + markdown(columns, rows, left=1))
    (ROOT / "benchmarks" / "results" / "costs.md").write_text(text + markdown(columns, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
