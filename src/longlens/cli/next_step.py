"""The last lines of a command: which commands make sense now, with real arguments, to be pasted."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.cli.console import say
from longlens.settings.options import KeyRule

if TYPE_CHECKING:
    from longlens.scoring.reader import StoredScores

REACH_CONTEXTS = 3
"""Short contexts that `longlens reach` needs."""
MAX_BESIDE = 3
"""Other runs that a suggested table has."""


def suggest(*commands: Sequence[object]) -> None:
    """Prints commands on stderr, one a line, quoted for a shell; words in capitals, such as DOCS, are placeholders."""
    for number, command in enumerate(commands):
        say(f"{'      ' if number else 'next: '}longlens {shlex.join(map(str, command))}")


def after_score(out: Path, scores: StoredScores) -> None:
    """What can be computed from a run directory, and from the run directory of another model that is beside it."""
    runs, evaluator = [out], None
    other = _beside(out, scores)
    if other is not None:
        folder, has_short = other
        # Key tokens are selected by a run with short contexts: the other one where it has them, else this one.
        runs, evaluator = ([out], folder) if has_short else ([folder], out) if scores.short_contexts else ([out], None)
    keys = () if evaluator is None else ("--evaluator-scores", evaluator)
    commands: list[Sequence[object]] = [("perplexity", *runs, *keys)]
    strides = {short.context: short.stride for short in sorted(scores.short_contexts, reverse=True)}
    if len(strides) >= REACH_CONTEXTS and all(2 * stride <= context for context, stride in strides.items()):
        commands.append(("reach", out))
    suggest(*commands, ("report", *runs, *keys, "-o", "report.html"))


def after_results(
    runs: Sequence[Path],
    evaluator_scores: Path | None,
    keys: Path | None,
    rule: KeyRule | None = None,
    *,
    compares: bool,
) -> None:
    """What shows more of the runs that were asked for.

    Args:
        runs: Their folders.
        evaluator_scores: As given.
        keys: As given.
        rule: As given.
        compares: Whether the differences between them are known by now.
    """
    chosen = _chosen(evaluator_scores, keys, rule)
    compare = [("compare", *runs, *chosen)] if len(runs) > 1 and not compares else []
    suggest(*compare, ("report", *runs, *chosen, "-o", "report.html"))


def after_bench(out: Path, results: Mapping[str, Any]) -> None:
    """A judge where scores need one; then a table, with the benchmark runs that are in the same parent."""
    judge = [("bench", "grade", out, "--judge", "JUDGE")] if _needs_judge(results) else []
    others = [path for path in _newest_beside(out) if (path / "samples").is_dir()][:MAX_BESIDE]
    depth = ["--by-depth"] if any(batch["depths"] for batch in results["tasks"].values()) else []
    suggest(*judge, ("bench", "table", out, *others, *depth))


def after_packing(out: Path) -> None:
    """Training on the rows."""
    suggest(("train", "RECIPE", "--set", f"data={json.dumps({'packed': str(out)}, ensure_ascii=False)}", "-o", "RUN"))


def _needs_judge(results: Mapping[str, Any]) -> bool:
    return any(batch.get("needs_judge") for batch in results["tasks"].values())


def _chosen(evaluator_scores: Path | None, keys: Path | None, rule: KeyRule | None) -> list[object]:
    given: dict[str, object] = {"--evaluator-scores": evaluator_scores, "--keys": keys}
    for field in fields(KeyRule) if rule is not None else ():
        value = getattr(rule, field.name)
        if field.name != "lcl":
            given[f"--{field.name}"] = value
    words = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    return [*words, "--no-lcl"] if rule is not None and rule.lcl is False else words


def _beside(out: Path, scores: StoredScores) -> tuple[Path, bool] | None:
    """The newest run directory of another model in the same parent, and whether it has short contexts."""
    for folder in _newest_beside(out):
        other = _name_of(folder)
        if other is not None and other != scores.manifest["model"]["name"]:
            return folder, any((folder / "short").glob("K*"))
    return None


def _newest_beside(out: Path) -> list[Path]:
    """Other run directories of any kind in the same parent, the newest first."""
    from longlens.runs.folder import MANIFEST

    folders = [path.parent for path in out.parent.glob(f"*/{MANIFEST}") if path.parent.resolve() != out.resolve()]
    return sorted(folders, key=lambda each: -(each / MANIFEST).stat().st_mtime)


def _name_of(folder: Path) -> str | None:
    """The model of a run directory of scores; None if the folder is none."""
    from longlens.errors import UserError
    from longlens.runs.folder import read_manifest

    try:
        manifest = read_manifest(folder)
    except UserError:  # it is only looked at; whoever gives it is told
        return None
    model = manifest.get("model")
    return str(model["name"]) if isinstance(model, dict) and "name" in model else None
