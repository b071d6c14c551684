"""Building blocks of a loss: documents and labels of a batch, the head, the long and the short-context pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from longlens.errors import UserError
from longlens.logprobs import Head, find_head, token_logprobs
from longlens.losses.settings import SHORT_DTYPES, LongCE
from longlens.models.forward import Forward, default_batch_tokens, device_of, is_sharded, probe_ids, running
from longlens.windows import Window

IGNORED = -100
"""Label of a token that is only context and not in the loss, as in torch and transformers."""
PROBE_TOKENS = 16


class DocumentSpan(NamedTuple):
    """A document in a batch: tokens ``[start, stop)`` of a row."""

    row: int
    start: int
    stop: int


def document_starts(input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """``(B, S)`` bool: first tokens of documents: the first of each row, and those whose position does not follow the
    previous one.

    Source: `transformers.masking_utils.find_packed_sequence_indices`, which builds the attention mask.

    Raises:
        UserError: Shapes differ.
    """
    if input_ids.ndim != 2:
        raise UserError(f"input_ids have shape {tuple(input_ids.shape)}, expected (batch, tokens)")
    starts = torch.zeros(input_ids.shape, dtype=torch.bool, device=input_ids.device)
    starts[:, :1] = True
    if position_ids is not None:
        if position_ids.ndim > 2 or position_ids.shape[-1] != input_ids.shape[1]:
            raise shape_error("position_ids", position_ids, input_ids)
        starts[:, 1:] |= position_ids.expand(len(input_ids), -1).diff(dim=-1) != 1
    return starts


def split_documents(input_ids: Tensor, position_ids: Tensor | None) -> list[DocumentSpan]:
    """The documents of a batch, in order: each is a row, or a part of a row if documents are packed."""
    documents = []
    for row, starts in enumerate(document_starts(input_ids, position_ids).cpu()):
        places = torch.nonzero(starts)[:, 0].tolist()
        documents += [DocumentSpan(row, *ends) for ends in pairwise([*places, len(starts)])]
    return documents


def shifted(values: Tensor, last: float) -> Tensor:
    """``(B, S)``: values shifted left by one, to the token whose hidden state predicts them.

    Args:
        values: ``(B, S)``, one per token.
        last: Value of the last column, whose state predicts nothing.
    """
    return torch.nn.functional.pad(values[:, 1:], (0, 1), value=last)


def scored_labels(labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """``(B, S)`` bool: labels in the loss; the first token of a document is never predicted."""
    return (labels != IGNORED) & ~document_starts(labels, position_ids)


def shape_error(name: str, other: Tensor, input_ids: Tensor) -> UserError:
    """The error for a tensor that is not shaped like ``input_ids``."""
    return UserError(f"{name} have shape {tuple(other.shape)}, input_ids {tuple(input_ids.shape)}: they must match")


def run_inside(model: Any, function: Any) -> Any:
    """``function(inner)``, run as the forward pass of the outermost wrapper, so that the wrapper's hooks see it.

    DistributedDataParallel prepares its gradient buckets, FSDP gathers weights and accelerate enters autocast in the
    forward of what they wrap; a direct call of an inner module would bypass them. ``inner`` is the `innermost` model.

    Raises:
        UserError: The model uses PEFT's prompt learning, whose virtual tokens are not part of the inner model.
    """
    inner = innermost(model)
    mine = inner.__dict__.get("forward")

    def forward(*_: Any, **__: Any) -> Any:
        with _outer_precision(inner):
            return function(inner)

    inner.forward = forward
    try:
        return model()
    finally:
        if mine is None:
            del inner.forward
        else:
            inner.forward = mine


def innermost(model: Any) -> Any:
    """The transformers causal language model inside all wrappers; it includes LoRA's layers.

    Raises:
        UserError: The model uses PEFT's prompt learning, whose virtual tokens are not part of it.
    """
    while hasattr(model, "module") and isinstance(model.module, torch.nn.Module):
        model = model.module
    if not hasattr(model, "get_base_model"):
        return model
    settings: Any = getattr(model, "active_peft_config", None)
    if getattr(settings, "is_prompt_learning", False):
        raise UserError(
            f"the loss bypasses the virtual tokens of {settings.peft_type}, so nothing would be trained: use an "
            "adapter inside the model, such as LoRA"
        )
    return model.get_base_model()


def _outer_precision(inner: Any) -> AbstractContextManager[Any]:
    """The autocast context that accelerate added to the ``forward`` that `run_inside` replaces."""
    if not hasattr(inner, "_original_forward"):
        return nullcontext()
    from accelerate.utils import get_mixed_precision_context_manager

    autocast: AbstractContextManager[Any] = get_mixed_precision_context_manager(native_amp=True)
    return autocast


def head_of(model: Any) -> Head:
    """The vocabulary head of a model, checked once against its own logits on a few tokens (`find_head`).

    Raises:
        UserError: Its logits are computed in an unsupported way, an adapter is attached to its head, or its loss has a
            term that is not a sum over tokens.
    """
    known = getattr(model, "_longlens_head", None)
    module = model.get_output_embeddings()
    if known is None:
        _check_model(model, module)
        with running(model, inference=False):
            ids = probe_ids(model, tokens=PROBE_TOKENS)
            forward = Forward(model)
            states, logits = forward.hidden(ids)[0], forward.logits(ids)[0]
            with torch.autocast(states.device.type, enabled=False):
                known = find_head(model, states, logits)
        model._longlens_head = Head(weight=torch.empty(0), scale=known.scale, softcap=known.softcap)
    return Head(
        weight=module.weight,
        bias=getattr(module, "bias", None),
        scale=known.scale,
        softcap=known.softcap,
        layer=module if is_sharded(module) else None,
    )


def _check_model(model: Any, module: Any) -> None:
    name = type(model).__name__
    if module.weight.is_meta:
        raise UserError(f"the vocabulary head of {name} is offloaded by its device_map: a loss needs it on a device")
    if hasattr(module, "base_layer") or hasattr(module, "token_adapter"):
        raise UserError(
            f"an adapter is attached to the vocabulary head of {name}, but the loss uses only the weight, so the "
            "adapter would never be trained: remove the head from target_modules, or list it in modules_to_save"
        )
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0.0):
        raise UserError(
            f"the router loss of {name} is enabled (router_aux_loss_coef {config.router_aux_loss_coef}), and it is not "
            "a sum over tokens that LongCE could weight: set router_aux_loss_coef=0.0 in SFTConfig, or "
            "model.config.output_router_logits = False"
        )


def check_packing(model: Any, rows: int) -> None:
    """Checks, once per model, that attention stays inside a document: compares a packed document with the same one
    alone.

    Args:
        model: A transformers causal language model, not wrapped.
        rows: Number of rows of the batch; FlashAttention separates documents only in batches of one row. 0 if no
            documents are packed: if weights are sharded, other processes may have packed documents, and all check
            together.

    Raises:
        UserError: Attention crosses document boundaries.
    """
    shape = _max_over_ranks(min(rows, 2), model, device_of(model))
    passed = model.__dict__.setdefault("_longlens_packs", {0})
    if shape in passed:
        return
    forward = Forward(model)
    with running(model, inference=False):
        ids, half = probe_ids(model, shape, PROBE_TOKENS), PROBE_TOKENS // 2
        packed = forward.hidden(ids, torch.arange(half, device=ids.device).repeat(shape, 2))[:, half:]
        alone = forward.hidden(ids[:, half:])
    moved = float((packed - alone).abs().max())
    # As large as differences of the model's half-precision products; a leak changes states by their own magnitude.
    kind = torch.get_autocast_dtype(ids.device.type) if torch.is_autocast_enabled(ids.device.type) else model.dtype
    if not moved <= max(64 * torch.finfo(kind).eps, 1e-3) * float(alone.abs().max()):
        raise UserError(
            f"documents packed into {'rows' if shape > 1 else 'a row'} are not separated by {type(model).__name__} "
            f"with {model.config.get_text_config(decoder=True)._attn_implementation} attention (hidden states of one "
            f"moved by {moved:.3g} when another preceded it): "
            + ("pack each batch into one row (padding_free=True), or " if shape > 1 else "")
            + "train with one document per row"
        )
    passed.add(shape)


def target_logprobs(states: Tensor, labels: Tensor, wanted: Tensor, head: Head) -> Tensor:
    """Log-probabilities of the wanted labels, row by row; the state before a token predicts it.

    Args:
        states: ``(B, S, H)`` last hidden states.
        labels: ``(B, S)``.
        wanted: ``(B, S)`` bool; False in the first column.
        head: The vocabulary head; applied only to wanted rows, in fp32 even under autocast.

    Returns:
        ``(number wanted,)`` float32, nats.
    """
    before = states[:, :-1][wanted[:, 1:]]
    return token_logprobs(before, labels[wanted], head)


def _max_over_ranks(number: int, model: Any, device: torch.device) -> int:
    """The maximum of a number over all ranks if a forward pass gathers weights, otherwise the number itself.

    In the former case, ranks with unequal numbers of passes would deadlock.
    """
    if not is_sharded(model):
        return number
    most = torch.tensor(number, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def score_short(
    model: Any,
    head: Head,
    input_ids: Tensor,
    labels: Tensor,
    scored: Tensor,
    documents: Sequence[DocumentSpan],
    longce: LongCE,
    step: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``(B, S)`` float32, nats: log P of each scored token under its short context; NaN for tokens without one.

    Args:
        model: A transformers causal language model, not wrapped.
        head: Its vocabulary head.
        input_ids: ``(B, S)``.
        labels: ``(B, S)`` labels to predict.
        scored: ``(B, S)`` bool: the tokens to score.
        documents: Documents of the batch; each window lies inside one document.
        longce: Settings of the windows and the precision.
        step: Number of updates so far, from 0.
        group: Process group of ranks that all have this batch: each runs its part of the windows, and all receive all
            scores.
    """
    found = torch.full(input_ids.shape, math.nan, device=input_ids.device)
    wanted = scored.cpu()  # one copy, not one per window
    windows = [
        (document, window)
        for document in documents
        for window in longce.windows(input_ids[document.row, document.start : document.stop], step)
        if wanted[document.row, document.start + window.first : document.start + window.stop].any()
    ]
    if group is not None:
        windows = _part_of(windows, group)
    at_once = max(1, default_batch_tokens(input_ids.device) // (longce.context + longce.stride))
    batches = list(_batches(windows, at_once))
    missing = _max_over_ranks(len(batches), model, input_ids.device) - len(batches)
    forward = Forward(model)
    with running(model, inference=False), _short_precision(input_ids, longce):
        head = head.keep_wide()
        for batch in batches:
            _score_windows(forward, head, input_ids, labels, scored, batch, found)
        for _ in range(missing):
            token_logprobs(forward.hidden(input_ids[:1, :1])[0], input_ids[0, :1], head)
    if group is not None:
        # At most one rank has the score of a token.
        found = found.masked_fill(found.isnan(), math.inf)
        dist.all_reduce(found, dist.ReduceOp.MIN, group)
        found = found.masked_fill(found == math.inf, math.nan)
    return found


def _part_of(windows: list[tuple[DocumentSpan, Window]], group: dist.ProcessGroup) -> list[tuple[DocumentSpan, Window]]:
    """This rank's part of the windows: neighbors, of equal lengths if possible, so that ranks finish together."""
    ordered = sorted(windows, key=lambda found: found[1].start - found[1].stop)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return ordered[rank * len(ordered) // size : (rank + 1) * len(ordered) // size]


def _short_precision(input_ids: Tensor, longce: LongCE) -> AbstractContextManager[Any]:
    if longce.short_dtype is None:
        return nullcontext()
    return torch.autocast(input_ids.device.type, SHORT_DTYPES[longce.short_dtype])


def _batches(windows: list[tuple[DocumentSpan, Window]], size: int) -> Iterator[list[tuple[DocumentSpan, Window]]]:
    # Equal lengths are batched together: a ragged window would be padded, and some frequencies depend on the longest of
    # a batch.
    by_length: dict[int, list[tuple[DocumentSpan, Window]]] = {}
    for document, window in windows:
        by_length.setdefault(window.stop - window.start, []).append((document, window))
    for alike in by_length.values():
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _score_windows(
    forward: Forward,
    head: Head,
    input_ids: Tensor,
    labels: Tensor,
    scored: Tensor,
    batch: Sequence[tuple[DocumentSpan, Window]],
    found: Tensor,
) -> None:
    """Writes the short log-probabilities of some windows of one length into ``found``."""
    ids, targets, wanted = (
        torch.stack([tensor[d.row, d.start + w.start : d.start + w.stop] for d, w in batch])
        for tensor in (input_ids, labels, scored)
    )
    for row, (_, window) in zip(wanted, batch, strict=True):
        row[: window.first - window.start] = False
    logprobs = target_logprobs(forward.hidden(ids), targets, wanted, head)
    place = 0
    for row, (document, window) in zip(wanted, batch, strict=True):
        count = int(row.sum())
        target = found[document.row, document.start + window.start : document.start + window.stop]
        target[row] = logprobs[place : place + count]
        place += count
