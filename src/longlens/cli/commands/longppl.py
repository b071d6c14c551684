"""``longlens longppl``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import CONTEXT, Engine, KeyRule, Loading, Reading, Truncation


def longppl(
    command: typer.Context,
    *,
    docs: o.Docs,
    model: Annotated[str, typer.Option("--model", "-m", help=f"Model to evaluate. {o.SCORED_HELP}")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Run directory; an unfinished run in it is resumed.  [default: nothing is stored]"
        ),
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option("--evaluator", "-e", help="Model that selects the key tokens; self for the evaluated model."),
    ] = None,
    keys: o.Keys = None,
    context: Annotated[int, typer.Option(help="K, the short context length in tokens.")] = CONTEXT,
    stride: Annotated[
        int | None, typer.Option(help="d, the number of tokens scored per short-context window.  [default: K/4]")
    ] = None,
    rule: Annotated[KeyRule, Part(but=("context", "stride"))],
    truncation: Truncation,
    name: o.Name = None,
    bos: o.Bos = "window",
    no_text: o.NoText = False,
    loading: Loading,
    engine: Engine,
    evaluator_engine: Annotated[
        str | None, typer.Option(help="Engine of the evaluator.  [default: --engine, if it can run the evaluator]")
    ] = None,
    evaluator_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of the evaluator.  [default: the evaluator's own]")
    ] = None,
    reading: Reading,
    per_document: o.PerDocument = False,
    as_json: o.Json = False,
) -> None:
    """Compute LongPPL in one command. Scores documents with the evaluator and the evaluated model.

    Documents are truncated to --max-length tokens of the evaluator, so that both models see the same text.

    Example: longlens longppl books/ --model smollm2 --evaluator gemma3-270m --context 1024 --stride 256 -o run
    """
    from longlens.cli.commands.perplexity import print_results
    from longlens.cli.console import print_json, say
    from longlens.cli.next_step import after_results
    from longlens.cli.progress import ProgressBar
    from longlens.evaluation import evaluate_longppl, open_sources

    if keys is not None:
        o.refuse(command, "with `keys`, whose tokens are already selected", "context", "stride")
    result = evaluate_longppl(
        open_sources(docs, reading, trust_remote_code=loading.trust_remote_code),
        model,
        out,
        evaluator=evaluator,
        keys=keys,
        context=context,
        stride=stride,
        rule=rule,
        truncation=truncation,
        bos=bos,  # type: ignore[arg-type]  # checked by the function
        store_text=not no_text,
        loading=loading,
        engine=engine,
        evaluator_engine=evaluator_engine,
        evaluator_tokenizer=evaluator_tokenizer,
        name=name,
        progress=ProgressBar(),
    )
    if result is None:  # this process is not rank 0
        return
    if as_json:
        print_json(result.to_json(per_document=per_document))
    else:
        print_results([result], per_document=per_document)
        if out is None:
            say("note: the scores were not stored: add -o RUN for a report or to resume")
        else:
            selecting = out / "evaluator" if (out / "evaluator").is_dir() else out / "model" if keys is None else None
            after_results([out / "model"], selecting, keys, rule, compares=False)
