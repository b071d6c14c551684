"""``longlens plan score | train``."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import App, Part
from longlens.errors import UserError
from longlens.settings.options import CONTEXT, GAMMA, STRIDE, Hardware, Loading

plan = App("plan", "What a run costs, before it: arithmetic, memory and time from the model's configuration alone.")
MODEL_HELP = "Hub id, folder, .gguf file, smollm2, gemma3-270m, or a config.json; no weights are read."
_LOGGER = logging.getLogger(__name__)
LOADED = ("dtype", "attention", "trust_remote_code")


@plan.callback()
def _root() -> None:
    """What a run costs, before it: arithmetic, memory and time from the model's configuration alone."""


@plan.command("score")
def plan_score_command(
    command: typer.Context,
    *,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    length: Annotated[int, typer.Option(help="Tokens of a document.")],
    documents: Annotated[int, typer.Option(help="How many documents of this length.")] = 1,
    context: Annotated[
        str, typer.Option(help="K, the short context in tokens; several as 64,256,4096.", metavar="TOKENS[,TOKENS...]")
    ] = str(CONTEXT),
    stride: Annotated[
        str, typer.Option(help="d, tokens that share a window; one, or one for each K.", metavar="TOKENS[,TOKENS...]")
    ] = str(STRIDE),
    long_only: Annotated[bool, typer.Option("--long-only", help="No short contexts.")] = False,
    loading: Annotated[Loading, Part((*LOADED, "batch_tokens", "device_map", "tensor_parallel"))],
    hardware: Hardware,
    as_json: o.Json = False,
) -> None:
    """What longlens score costs: whether it fits, how long it takes, and the overhead of the short contexts.

    Example: longlens plan score --model smollm2 --length 8192 --documents 50 --device h100
    """
    from longlens.cli.console import print_json, print_table
    from longlens.planning.report import score_answer, score_rows
    from longlens.planning.score import plan_for, plan_score

    if long_only:
        o.refuse(command, "with `long_only`, which scores no short context", "context", "stride")
    contexts, strides = o.integers(context, "context"), o.integers(stride, "stride")
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


@plan.command("train")
def plan_train_command(
    command: typer.Context,
    *,
    recipe: Annotated[str | None, typer.Argument(help="Of longlens train; its settings are planned.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a row.")] = None,
    loss: Annotated[str, typer.Option(help="longce, sampled-longce, chunked-longce, offline or ce.")] = "longce",
    context: Annotated[int, typer.Option(help="K, tokens of context that a short score has at least.")] = CONTEXT,
    stride: Annotated[int, typer.Option(help="d, tokens that share a window.")] = STRIDE,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step, of all devices.  [default: one each]")] = None,
    per_device_batch_size: Annotated[int, typer.Option(help="Rows of a micro-batch.")] = 1,
    precision: Annotated[str, typer.Option(help="Autocast: bfloat16, float16, or float32 for none.")] = "float32",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations again in the backward pass.")
    ] = False,
    lora: Annotated[int | None, typer.Option(help="Rank of LoRA adapters in place of all weights.")] = None,
    sharding: Annotated[
        str | None, typer.Option(help="ddp (whole on each device), fsdp or zero3.  [default: ddp, or the recipe's]")
    ] = None,
    context_parallel: Annotated[
        int | None, typer.Option(help="Devices that share each row.  [default: 1, or the recipe's]")
    ] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens to train on, such as 1e9, for the time of all.")] = None,
    loading: Annotated[Loading, Part(LOADED, defaults={"dtype": "float32"})],
    hardware: Hardware,
    as_json: o.Json = False,
) -> None:
    """What longlens train costs: memory by part, time of a step, and the overhead of LongCE.

    Example: longlens plan train --model smollm2 --length 32768 --gradient-checkpointing --device h100 --devices 8
    """
    from longlens.cli.console import print_json, print_table
    from longlens.planning.report import train_answer, train_rows
    from longlens.planning.score import plan_for
    from longlens.planning.train import parse_loss, plan_train, recipe_settings
    from longlens.train.recipe import read_recipe
    from longlens.train.setup import disable_sliding_window

    if loss == "ce":
        o.refuse(command, "with `loss=ce`, which has no short pass", "context", "stride")
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
        o.refuse(command, "beside a recipe, which says it", *useless, "gradient_checkpointing", "attention")
        runs = read_recipe(recipe, trust_remote_code=loading.trust_remote_code).runs
        (label, run), *others = runs.items()
        if others:
            _LOGGER.info("a sweep of %s runs, of which the first is planned: %s", f"{len(runs):,}", label)
        settings, full_attention = recipe_settings(run), run.load.full_attention
        given = {"model": model, "length": length, "sharding": sharding, "tokens": tokens}
        given |= {"context_parallel": context_parallel}
        settings |= {name: value for name, value in given.items() if value is not None}
    for name, example in (("model", "model=smollm2"), ("length", "length=32768")):
        if settings[name] is None:
            raise UserError(f"nothing says which `{name}` is planned: give `{example}`")
    total = settings.pop("tokens")
    if total is not None and not 0 < total < math.inf:
        raise UserError(f"`tokens` is {total:g}; expected a number above 0, such as 1e9")
    config, device, rates = plan_for(settings["model"], hardware, loading, length=settings["length"], trains=True)
    if full_attention:
        config = disable_sliding_window(config)
    found = plan_train(
        config,
        name=settings.pop("model"),
        **settings,
        device=device,
        devices=hardware.devices,
        rates=rates,
        utilization=hardware.utilization,
        trust_remote_code=loading.trust_remote_code,
    )
    if as_json:
        print_json(found.to_json())
        return
    print(train_answer(found, total))
    print()
    print_table(("", ""), train_rows(found))
