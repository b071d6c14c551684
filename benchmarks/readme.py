"""Writes the table of real models in the README, from the committed results of `python -m benchmarks.ablation`.

python -m benchmarks.readme        (at once: nothing is run)
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.tables import ROOT, fill_block, markdown

MODELS = {
    "gemma3-270m": "Gemma-3-270M (evaluator)",
    "smollm2": "SmolLM2-135M",
    "smollm2-ntk4": "SmolLM2-135M, NTK x 4",
    "smollm2-pi4": "SmolLM2-135M, PI x 4",
}
SETTING = {"evaluator": "gemma3-270m", "context": 128, "stride": 64}


def main() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "study_ablation.json").read_text(encoding="utf-8"))
    ppl = next(one for one in results["measures"] if one["metric"] == "ppl")
    chosen = {"metric": "longppl", "setting": SETTING, "alpha": results["alpha"], "beta": results["beta"]}
    longppl = next(one for one in results["measures"] if all(one[key] == value for key, value in chosen.items()))

    def cell(measure: dict[str, Any], index: int) -> str:
        low, high = measure["intervals"][index]
        return f"{measure['values'][index]:.2f} [{low:.2f}, {high:.2f}]"

    rows = []
    for name, title in MODELS.items():
        index, base = results["models"].index(name), results["models"].index("smollm2")
        ratios = (f"x {one['values'][index] / one['values'][base]:.2f}" for one in (ppl, longppl))
        rows.append([title, cell(ppl, index), cell(longppl, index), *ratios])
    table = markdown(["model", "PPL", "LongPPL", "PPL relative to SmolLM2", "LongPPL relative to SmolLM2"], rows)
    print(table)
    fill_block("README.md", "readme", table)


if __name__ == "__main__":
    main()
