"""``longlens extend``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import Help, Loading


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodOptions:
    """Settings of the built-in methods; each method accepts a subset of them."""

    PANEL: ClassVar[str] = "Method settings"

    factor: Annotated[float | None, Help("Extension factor: new context length divided by the original one.")] = None
    theta: Annotated[float | None, Help("RoPE base of ntk and eabf.  [default: ntk from `factor`, eabf 500000]")] = None
    first_layer: Annotated[
        int | None,
        Help("eabf: first layer whose queries are scaled; 2 in its paper.  [default: 0, as in the published code]"),
    ] = None
    original_length: Annotated[int | None, Help("Context length in training.  [default: max_position_embeddings]")] = (
        None
    )
    beta_fast: Annotated[float | None, Help("For yarn.  [default: 32]")] = None
    beta_slow: Annotated[float | None, Help("For yarn.  [default: 1]")] = None
    low_freq_factor: Annotated[float | None, Help("For llama3.  [default: 1]")] = None
    high_freq_factor: Annotated[float | None, Help("For llama3.  [default: 4]")] = None
    attention_factor: Annotated[
        float | None, Help("For yarn and longrope.  [default: computed from `factor`, as in the papers]")
    ] = None
    factors: Annotated[
        Path | None, Help("longrope: JSON file with short_factor and long_factor, as in config.json.")
    ] = None
    width: Annotated[int | None, Help("clex: hidden size of its layer.  [default: 1]")] = None
    step: Annotated[float | None, Help("clex: step of its solver.  [default: 0.01]")] = None


def extend(
    *,
    model: Annotated[str, typer.Argument(help=o.MODEL_HELP)],
    method: Annotated[
        str,
        typer.Option(help="pi, ntk, dynamic-ntk, yarn, longrope, llama3, eabf, clex, or the name of a plugin."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New model directory.")],
    options: MethodOptions,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of a plugin's method.", metavar="KEY=VALUE"),
    ] = None,
    loading: Annotated[Loading, Part(("trust_remote_code",))],
    as_json: o.Json = False,
) -> None:
    """Extend a model's context by RoPE scaling. Writes a model directory that is ready to load.

    Example: longlens extend smollm2 --method yarn --factor 4 -o smollm2-yarn
    """
    from longlens.cli.console import message, print_json, print_table, say
    from longlens.cli.next_step import suggest
    from longlens.rope.folder import extend as extend_folder
    from longlens.rope.settings import parse_method

    given = asdict(options) | o.assignments(settings, "--set", "power=2")
    chosen = parse_method(method, {name: value for name, value in given.items() if value is not None})
    extended = extend_folder(model, chosen, out, trust_remote_code=loading.trust_remote_code)
    if as_json:
        print_json(extended.to_json())
        return
    before, after = extended.before, extended.after
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    rows = [(name, *(_shown(side.get(name)) for side in (before, after))) for name in changed]
    print_table(("setting", "before", "after"), rows)
    for note in extended.notes:
        say(f"note: {message(note)}")
    suggest(("score", "DOCS", "--model", out, "-o", "SCORES"))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} values, {min(value):g} to {max(value):g}"
    if isinstance(value, float):
        return f"{value:,.10g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
