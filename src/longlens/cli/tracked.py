"""Converts results to tracked runs, for ``--log-to``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longlens.tracking import TrackedRun

if TYPE_CHECKING:
    from longlens.metrics.longppl import PerplexityResult

SUMMARY = ("ppl", "longppl", "longppl_soft", "bits_per_character", "num_tokens", "num_key_tokens", "num_documents")


def tracked_perplexity(results: Sequence[PerplexityResult], names: Sequence[str], kind: str) -> list[TrackedRun]:
    """Returns one run per model: its values with intervals, and PPL and LongPPL of each document as a step.

    Args:
        results: Results of `longlens.perplexity`.
        names: Names of the models.
        kind: Prefix of the value names, before the slash, such as ``perplexity``.
    """
    runs = []
    for result, name in zip(results, names, strict=True):
        content = result.to_json(per_document=True)
        summary = {f"{kind}/{key}": content[key] for key in SUMMARY}
        for key, interval in content["intervals"].items():
            if interval is not None:
                summary |= {f"{kind}/{key}_low": interval[0], f"{kind}/{key}_high": interval[1]}
        documents = [
            (place, {f"{kind}/document_{key}": row[key] for key in ("ppl", "longppl")})
            for place, row in enumerate(content["documents"])
        ]
        config = {"model": content["model"], "evaluator": content["evaluator"], **content["settings"]}
        runs.append(TrackedRun(name, config, summary, documents))
    return runs


def tracked_bench(results: Mapping[str, Any], name: str) -> TrackedRun:
    """Returns the scores of a benchmark run; the step is the length in tokens, 0 if the data fixes the length."""
    steps = [
        (batch["length"] or 0, {f"bench/{batch['task']}/{batch['metric']}": batch["score"]})
        for batch in results["tasks"].values()
    ]
    for harness in results["harness"].values():
        for task, metrics in harness["results"].items():
            steps.append((0, {f"bench/{task}/{metric}": value for metric, value in metrics.items()}))
    config = {key: results.get(key) for key in ("model", "mode", "template", "dtype")}
    return TrackedRun(name, config, {}, steps)
