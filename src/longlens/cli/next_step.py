"""Suggests the next commands at the end of a command, with real arguments, ready to paste."""

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
"""Number of short contexts that a suggested `longlens reach` needs."""
MAX_BESIDE = 3
"""Maximum number of other runs in a suggested table."""


def suggest(*commands: Sequence[object]) -> None:
    """Prints commands on stderr, one per line, quoted for a shell; words in capitals, like DOCS, are placeholders."""
    for number, command in enumerate(commands):
        say(f"{'      ' if number else 'next: '}longlens {shlex.join(map(str, command))}")


def after_score(out: Path, scores: StoredScores) -> None:
    """Suggests commands for a run directory, and for the run of another model in the same parent directory."""
    runs, evaluator = [out], None
    other = _beside(out, scores)
    if other is not None:
        folder, has_short = other
        # The evaluator needs short contexts: use the other run if it has them, else this run.
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
    """Suggests commands that show more of the evaluated runs.

    Args:
        runs: Run directories.
        evaluator_scores: The option --evaluator-scores.
        keys: The option --keys.
        rule: The options of key token selection.
        compares: Whether the command already compared the runs.
    """
    chosen = _chosen(evaluator_scores, keys, rule)
    compare = [("compare", *runs, *chosen)] if len(runs) > 1 and not compares else []
    suggest(*compare, ("report", *runs, *chosen, "-o", "report.html"))


def after_bench(out: Path, results: Mapping[str, Any]) -> None:
    """Suggests a judge if scores need one, and a table with the other benchmark runs in the same parent directory."""
    judge = [("bench", "grade", out, "--judge", "JUDGE")] if _needs_judge(results) else []
    others = [path for path in _newest_beside(out) if (path / "samples").is_dir()][:MAX_BESIDE]
    depth = ["--by-depth"] if any(batch["depths"] for batch in results["tasks"].values()) else []
    suggest(*judge, ("bench", "table", out, *others, *depth))


def after_packing(out: Path) -> None:
    """Suggests training on the packed rows."""
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
    """Returns the newest run directory of another model in the same parent, and whether it has short contexts."""
    for folder in _newest_beside(out):
        other = _name_of(folder)
        if other is not None and other != scores.manifest["model"]["name"]:
            return folder, any((folder / "short").glob("K*"))
    return None


def _newest_beside(out: Path) -> list[Path]:
    """Returns the other run directories in the same parent, of any kind, newest first."""
    from longlens.runs.folder import MANIFEST

    folders = [path.parent for path in out.parent.glob(f"*/{MANIFEST}") if path.parent.resolve() != out.resolve()]
    return sorted(folders, key=lambda each: -(each / MANIFEST).stat().st_mtime)


def _name_of(folder: Path) -> str | None:
    """Returns the model of a run directory of scores; None if the directory is not one."""
    from longlens.errors import UserError
    from longlens.runs.folder import read_manifest

    try:
        manifest = read_manifest(folder)
    except UserError:  # this is only a suggestion; a command that opens the directory reports the error
        return None
    model = manifest.get("model")
    return str(model["name"]) if isinstance(model, dict) and "name" in model else None
