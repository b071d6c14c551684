"""The ``longlens plan`` commands: ``score`` and ``train``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import App, Part
from longlens.settings.options import CONTEXT, GAMMA, STRIDE, Hardware, Loading

plan = App("plan", "Estimate FLOPs, memory and time of a run. From the model's configuration alone; nothing is run.")
MODEL_HELP = "Hub id, directory, .gguf file, smollm2, gemma3-270m, or a config.json; weights are not read."
_LOGGER = logging.getLogger(__name__)
LOADED = ("dtype", "attention", "trust_remote_code")


@plan.callback()
def _root() -> None:
    """Estimate FLOPs, memory and time of a run. From the model's configuration alone; nothing is run."""


@plan.command("score")
def plan_score_command(
    command: typer.Context,
    *,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    length: Annotated[int, typer.Option(help="Document length in tokens.")],
    documents: Annotated[int, typer.Option(help="Number of documents of this length.")] = 1,
    context: Annotated[
        str,
        typer.Option(
            help="K, the short context length in tokens; several as 64,256,4096.", metavar="TOKENS[,TOKENS...]"
        ),
    ] = str(CONTEXT),
    stride: Annotated[
        str | None,
        typer.Option(
            help="d, the number of tokens scored per window; one value, or one per K.  [default: K/4]",
            metavar="TOKENS[,TOKENS...]",
        ),
    ] = None,
    long_only: Annotated[bool, typer.Option("--long-only", help="Score with the long context only.")] = False,
    loading: Annotated[Loading, Part((*LOADED, "batch_tokens", "device_map", "tensor_parallel"))],
    hardware: Hardware,
    as_json: o.Json = False,
) -> None:
    """Estimate longlens score: whether it fits, how long it takes, and the overhead of short contexts.

    Example: longlens plan score --model smollm2 --length 8192 --documents 50 --device h100
    """
    from longlens.cli.console import print_json, print_table
    from longlens.cli.next_step import suggest
    from longlens.planning.report import score_answer, score_rows
    from longlens.planning.score import plan_for, plan_score

    if long_only:
        o.refuse(command, "with `long_only`, which scores no short contexts", "context", "stride")
    contexts = o.integers(context, "context")
    strides = None if stride is None else o.integers(stride, "stride")
    config, device, rates = plan_for(model, hardware, loading, length=length)
    found = plan_score(
        config,
        name=model,
        length=length,
        documents=documents,
        context=None if long_only else contexts,
        stride=strides,
        dtype=loading.dtype,
        attention=loading.attention or "sdpa",
        batch_tokens=loading.batch_tokens,
        device=device,
        devices=hardware.devices,
        device_map=loading.device_map is not None,
        tensor_parallel=loading.tensor_parallel or 1,
        rates=rates,
        utilization=hardware.utilization,
        trust_remote_code=loading.trust_remote_code,
    )
    if as_json:
        print_json(found.to_json())
        return
    print(score_answer(found))
    print()
    print_table(("", ""), score_rows(found))
    shorts = ["--long-only"] if long_only else ["--context", context, *([] if stride is None else ["--stride", stride])]
    out = f"scores/{Path(model).name}"
    suggest(("score", "DOCS", "--model", model, *shorts, "--max-length", length, "-o", out))


@plan.command("train")
def plan_train_command(
    command: typer.Context,
    *,
    recipe: Annotated[str | None, typer.Argument(help="Recipe of longlens train to plan.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    length: Annotated[int | None, typer.Option(help="Row length in tokens.")] = None,
    loss: Annotated[str, typer.Option(help="Loss: longce, sampled-longce, chunked-longce, offline or ce.")] = "longce",
    context: Annotated[int, typer.Option(help="K, the short context length in tokens.")] = CONTEXT,
    stride: Annotated[int, typer.Option(help="d, the number of tokens scored per short-context window.")] = STRIDE,
    batch_size: Annotated[
        int | None, typer.Option(help="Global batch size in rows.  [default: one row per device]")
    ] = None,
    per_device_batch_size: Annotated[int, typer.Option(help="Micro-batch size in rows, per device.")] = 1,
    precision: Annotated[str, typer.Option(help="Autocast dtype: bfloat16, float16, or float32 for none.")] = "float32",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations in the backward pass.")
    ] = False,
    lora: Annotated[int | None, typer.Option(help="Train LoRA adapters of this rank instead of all weights.")] = None,
    sharding: Annotated[
        str | None, typer.Option(help="ddp (replicated), fsdp or zero3.  [default: ddp, or the recipe's]")
    ] = None,
    context_parallel: Annotated[
        int | None, typer.Option(help="Context parallel size: devices per row.  [default: 1, or the recipe's]")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Training tokens, such as 1e9, to estimate the total time.")
    ] = None,
    loading: Annotated[Loading, Part(LOADED, defaults={"dtype": "float32"})],
    hardware: Hardware,
    as_json: o.Json = False,
) -> None:
    """Estimate longlens train: memory by component, time per step, and the overhead of LongCE.

    Example: longlens plan train --model smollm2 --length 32768 --gradient-checkpointing --device h100 --devices 8
    """
    from longlens.cli.console import print_json, print_table
    from longlens.cli.next_step import suggest
    from longlens.planning.report import train_answer, train_rows
    from longlens.planning.train import parse_loss, plan_settings, recipe_settings
    from longlens.train.recipe import read_recipe

    if loss == "ce":
        o.refuse(command, "with `loss=ce`, which has no short-context pass", "context", "stride")
    if recipe is None:
        longce, offline = parse_loss(loss, context=context, stride=stride, gamma=GAMMA)
        settings: dict[str, Any] = {
            "model": model,
            "length": length,
            "longce": longce,
            "offline": offline,
            "batch_size": batch_size,
            "per_device_batch_size": per_device_batch_size,
            "dtype": loading.dtype,
            "precision": precision,
            "attention": loading.attention or "sdpa",
            "gradient_checkpointing": gradient_checkpointing,
            "lora": lora,
            "sharding": sharding or "ddp",
            "context_parallel": 1 if context_parallel is None else context_parallel,
            "tokens": tokens,
        }
        full_attention = False
    else:
        useless = ("loss", "context", "stride", "batch_size", "per_device_batch_size", "precision", "lora", "dtype")
        o.refuse(command, "with a recipe, which sets it", *useless, "gradient_checkpointing", "attention")
        runs = read_recipe(recipe, trust_remote_code=loading.trust_remote_code).runs
        (label, run), *others = runs.items()
        if others:
            _LOGGER.info("the recipe is a sweep of %s runs; only the first is planned: %s", f"{len(runs):,}", label)
        settings, full_attention = recipe_settings(run), run.load.full_attention
        given = {"model": model, "length": length, "sharding": sharding, "tokens": tokens}
        given |= {"context_parallel": context_parallel}
        settings |= {name: value for name, value in given.items() if value is not None}
    found, total = plan_settings(settings, hardware, loading, full_attention=full_attention)
    if as_json:
        print_json(found.to_json())
        return
    print(train_answer(found, total))
    print()
    print_table(("", ""), train_rows(found))
    suggest(("train", "RECIPE" if recipe is None else recipe, "-o", "RUN"))
