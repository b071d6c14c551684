"""``longlens diverge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import Engine, KeyRule, Loading, Reading, Truncation

if TYPE_CHECKING:
    from longlens.metrics.divergence import DivergenceResult


def diverge(
    *,
    reference: Annotated[str, typer.Argument(help="Reference model, such as the uncompressed one.")],
    model: Annotated[str, typer.Argument(help="Model to compare; the same model is allowed with --cache.")],
    docs: o.Docs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory; an unfinished run in it is resumed.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: Annotated[KeyRule, Part(("alpha", "beta", "lcl", "context", "stride"))],
    reference_dtype: Annotated[str | None, typer.Option(help="dtype of the reference model, if different.")] = None,
    reference_cache: Annotated[
        str | None, typer.Option(help="KV cache policy of the reference model.  [default: full]")
    ] = None,
    reference_engine: Annotated[
        str | None, typer.Option(help="transformers or llama-cpp, for the reference model.  [default: transformers]")
    ] = None,
    engine: Annotated[Engine, Part(("engine", "tokenizer", "max_model_len", "cache", "cache_chunk", "cache_protocol"))],
    loading: Annotated[Loading, Part(but=("tensor_parallel",))],
    truncation: Truncation,
    no_text: o.NoText = False,
    reading: Reading,
    as_json: o.Json = False,
) -> None:
    """Compare the next-token distributions of two models: KL in both directions, JS, top-1 agreement.

    Both models score the same tokens; scores and per-token divergences are stored in the run directory.

    Example: longlens diverge smollm2 smollm2 books/ --cache sink:4+508 -o runs/sink --evaluator-scores scores/gemma3
    """
    from dataclasses import replace

    from longlens.cli.console import print_json
    from longlens.cli.progress import ProgressBar
    from longlens.engines import check_taken, engine_name, share
    from longlens.evaluation import Reference, open_sources, score_documents
    from longlens.metrics.divergence import divergence
    from longlens.runs.processes import Processes
    from longlens.scoring.statistics import DIVERGENCE

    chosen = o.key_source(evaluator_scores, keys, rule, None)  # reports errors before a model is run
    check_taken(engine_name(model, engine), Loading(), Engine(engine=engine.engine, cache=engine.cache))
    same: dict[str, Any] = {"tokenizer": engine.tokenizer, "engine": reference_engine}
    same |= {"max_model_len": engine.max_model_len}
    if reference_cache is not None:
        same |= {"cache": reference_cache, "cache_chunk": engine.cache_chunk, "cache_protocol": engine.cache_protocol}
    other = loading if reference_dtype is None else replace(loading, dtype=reference_dtype)
    (loading, engine), (other, reference_settings) = share(
        [(model, loading, engine), (reference, other, Engine(**same))]
    )
    scores = score_documents(
        open_sources(docs, reading, trust_remote_code=loading.trust_remote_code),
        model,
        out,
        context=None,
        truncation=truncation,
        store_text=not no_text,
        loading=loading,
        engine=engine,
        statistics=[DIVERGENCE.name],
        reference=Reference(
            model=reference,
            loading=other,
            engine=reference_settings,
        ),
        progress=ProgressBar(),
    )
    if Processes().rank > 0:
        return
    found = divergence(scores, evaluator_scores=chosen["evaluator_scores"], keys=chosen["keys"], rule=rule)
    if as_json:
        print_json(found.to_json())
    else:
        print_divergence(found, out)


def print_divergence(found: DivergenceResult, out: Path) -> None:
    """Prints a table of the measures by group of tokens, and a table by the number of preceding tokens."""
    from longlens.cli.console import interval, number, print_table, printable
    from longlens.metrics.divergence import GROUPS, MEASURES

    titles = {
        "kl": "KL(reference || model), nats",
        "reverse_kl": "KL(model || reference), nats",
        "js": "Jensen-Shannon, nats",
        "top1_agreement": "same most likely token",
    }
    groups = [group for group in GROUPS if found.means["kl"][group] is not None]
    cache = "" if found.cache is None else f", cache {found.cache}"
    print(printable(f"{found.model}{cache} against {found.reference}"))
    columns = [
        part for group in groups for part in ({"all": "all tokens"}.get(group, f"{group} tokens"), "95 % interval")
    ]
    rows = []
    for name in MEASURES:
        means = [found.means[name][group] for group in groups]
        cells = [part for mean in means if mean for part in (number(mean.value, 4), interval(mean.interval))]
        rows.append([titles[name], *cells])
    print_table(["", *columns], rows)
    counts = [mean.num_tokens for group in groups if (mean := found.means["kl"][group]) is not None]
    print(", ".join(f"{number(count, 0)} {group}" for count, group in zip(counts, groups, strict=True)) + " tokens")
    if found.num_infinite:
        print(f"{number(found.num_infinite, 0)} tokens have an infinite KL and are excluded")
    print(f"PPL {number(found.ppl)} against {number(found.reference_ppl)}\n")
    print_table(
        ["tokens before", "tokens", "KL, nats", "same most likely token"],
        [
            [
                f"{bracket.start:,} to {bracket.stop - 1:,}",
                number(bracket.means["kl"].num_tokens, 0),
                number(bracket.means["kl"].value, 4),
                number(bracket.means["top1_agreement"].value, 4),
            ]
            for bracket in found.by_position
        ],
    )
    print(f"next: longlens cost FULL {printable(str(out))} --evaluator-scores E (FULL: its scores with short contexts)")
