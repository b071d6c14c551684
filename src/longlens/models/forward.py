"""Runs a model so that the result for a sequence depends only on that sequence.

The result depends neither on the other rows of a batch, nor on padding, nor on how a sequence is split into chunks, nor
on earlier sequences. All code of this package that runs a model uses this module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from longlens.errors import UserError, library_errors
from longlens.models.products import fast_products
from longlens.rope.base import CLEX_TYPE

PROBE_TOKENS = 48
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens per batch, padding included; a longer request is a batch of its own.

On a CPU the activations of a larger batch do not fit into the caches: 512 to 2,048 tokens take equal time within 12 %,
and 8,192 twice as long (`python -m benchmarks.scoring`, docs/precision.md).
"""
KEPT_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Fields of a model's own generation_config that `greedy` keeps: tokens of its format."""


class Forward:
    """A causal language model, and how it may be run.

    Attributes:
        model: A transformers model.
        decoder: The submodule that maps token ids to hidden states, see `find_decoder`.
        by_length: Whether its rotary frequencies depend on the longest sequence of a forward pass (dynamic NTK,
            LongRoPE, CLEX). Then batches contain equal lengths, and a sequence is never fed in chunks.
        by_batch: Whether its products depend on all tokens of a pass: LLM.int8() of bitsandbytes computes a column in
            16 bits if any token has an outlier in it. Then a sequence is run whole and alone.

    Raises:
        UserError: The model has no such submodule.
    """

    def __init__(self, model: Any) -> None:
        _unpack(model)
        self.model, self.decoder = model, find_decoder(model)
        # ModernBERT's decoder has a module "lm_head" between its hidden states and its vocabulary head.
        between = getattr(model, "lm_head", None)
        head = model.get_output_embeddings()
        is_between = isinstance(between, nn.Module) and not any(module is head for module in between.modules())
        self._between = between if is_between and head is not None else None
        # transformers 5.24 renamed it.
        renamed = "cache" in inspect.signature(type(self.decoder).forward).parameters
        self._cache_argument = "cache" if renamed else "past_key_values"
        self._dynamic = dynamic_modules(model)
        self.by_batch = bool(getattr(model, "is_loaded_in_8bit", False))
        self.by_length = any(_goes_by_length(module) for module in model.modules())

    def hidden(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Last hidden states of whole sequences, padded on the right, to which the vocabulary head is applied.

        Args:
            input_ids: ``(B, S)``.
            position_ids: ``(B, S)``; 0, 1, ... by default.

        Returns:
            ``(B, S, H)``.

        Raises:
            UserError: The model cannot be run on them.
        """
        reset_rope(self._dynamic)
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return self._states(input_ids=input_ids, use_cache=False, **positions)

    def extend(self, input_ids: Tensor, cache: Any, position_ids: Tensor | None = None) -> Tensor:
        """``(B, S, H)`` last hidden states of tokens that follow those in a cache (`new_cache`), which is updated.

        Use it only if `has_cache` is true, and positions only if `takes_positions` is true.
        """
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return self._states(input_ids=input_ids, use_cache=True, **{self._cache_argument: cache}, **positions)

    def logits(self, input_ids: Tensor) -> Tensor:
        """``(B, S, V)``: the model's own logits of the sequences, without the autocast of accelerate.

        Raises:
            UserError: The model cannot be run on them.
        """
        reset_rope(self._dynamic)
        # The method of the class: training replaces it by one that rounds logits or returns the loss. Hooks of a
        # device map are kept.
        own = self.model if hasattr(self.model, "_hf_hook") else functools.partial(type(self.model).forward, self.model)
        with self._model_errors(f"run on {input_ids.shape[1]:,} tokens"):
            found: Tensor = own(input_ids=input_ids, use_cache=False).logits
            return found

    def _model_errors(self, what: str) -> AbstractContextManager[None]:
        """Converts errors of a model's code to one line; they are mostly caused by a value in its config.json."""
        return library_errors(
            f"{type(self.model).__name__} cannot be {what}",
            "check the model's config.json and its weights",
            passing=(torch.OutOfMemoryError,),
        )

    def _states(self, **inputs: Any) -> Tensor:
        name = type(self.model).__name__
        with (
            self._model_errors(f"run on {inputs['input_ids'].shape[1]:,} tokens"),
            fast_products(device_of(self.model)),
        ):
            output = self.decoder(**inputs)
        states = getattr(output, "last_hidden_state", None)
        if not isinstance(states, Tensor) or states.shape[:2] != inputs["input_ids"].shape:
            raise UserError(
                f"{type(self.decoder).__name__} of {name} does not return the last hidden state of each token, from "
                "which longlens computes log-probabilities: use a causal language model whose code follows "
                "transformers"
            )
        return states if self._between is None else self._between(states)

    def new_cache(self) -> Any:
        """An empty cache for `extend`."""
        from transformers import DynamicCache

        with self._model_errors("run with a cache"):
            return DynamicCache(config=self.model.config)

    @cached_property
    def takes_positions(self) -> bool:
        """Whether token positions can be passed, so that a cache may drop earlier tokens."""
        return "position_ids" in inspect.signature(self.decoder.forward).parameters

    @cached_property
    def attention_windows(self) -> list[int] | None:
        """Windows of the layers with sliding or chunked attention; None if a layer has other state than keys and
        values (state-space and hybrid models), or rotary frequencies depend on length.
        """
        # xLSTM uses a cache class of its own, which its configuration does not mention.
        if self.by_length or getattr(self.model, "_is_stateful", False):
            return None
        layers = self.new_cache().layers
        if not layers or {type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
            return None
        return [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]

    @cached_property
    def has_cache(self) -> bool:
        """Whether tokens after a cache have the same hidden states as in one pass; checked once with a few tokens.

        Some models accept a cache and ignore it (OpenAI GPT).
        """
        if self.attention_windows is None or self.by_batch:
            return False
        ids, half = probe_ids(self.model), PROBE_TOKENS // 2
        with running(self.model):
            whole = self.hidden(ids)
            cache = self.new_cache()
            self.extend(ids[:, :half], cache)
            return is_close(self.extend(ids[:, half:], cache), whole[:, half:])

    @cached_property
    def generates_batches(self) -> bool:
        """Whether prompts of one length are answered in a batch as alone; checked once with a few tokens.

        This is false for RWKV in transformers 5.24, which mixes the states of the rows.
        """
        ids, half = probe_ids(self.model)[0].tolist(), PROBE_TOKENS // 2
        return not self.by_batch and self._answers_alike([ids[:half], ids[half:]])

    @cached_property
    def pads_left(self) -> bool:
        """Whether prompts of several lengths, padded on the left, are answered as alone; checked with a few tokens.

        False without a check for models with other state than keys and values, and if frequencies depend on length.
        Models with learned positions (BART's decoder) count the padding.
        """
        ids = probe_ids(self.model)[0].tolist()
        is_plain = self.attention_windows is not None and self.generates_batches
        return is_plain and self._answers_alike([ids[: PROBE_TOKENS // 2], ids])

    def _answers_alike(self, rows: list[list[int]]) -> bool:
        settings = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
        options = {"output_logits": True, "return_dict_in_generate": True}
        with running(self.model), greedy(self.model, **settings) as config:
            together, *alone = (
                torch.stack(self._written(some, config, **options).logits, dim=1)
                for some in (rows, *([row] for row in rows))
            )
        return all(is_close(row, one[0]) for row, one in zip(together, alone, strict=True))

    def generate(self, rows: Sequence[Sequence[int]], config: Any, **options: Any) -> list[list[int]]:
        """Token ids that the model generates after each prompt, up to and including the first end token.

        Args:
            rows: Token ids of prompts; of one length unless `pads_left`.
            config: Configuration from `greedy`, inside whose context this is called.
            **options: More options of transformers' ``generate``.

        Raises:
            UserError: The model cannot be run on them.
        """
        longest = max(map(len, rows))
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        written = []
        for row in self._written(rows, config, **options)[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            written.append(row[: end + 1])
        return written

    def _written(self, rows: Sequence[Sequence[int]], config: Any, **options: Any) -> Any:
        longest, pad = max(map(len, rows)), config.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device_of(self.model))
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=ids.device)
        reset_rope(self._dynamic)
        with self._model_errors(f"run on {longest:,} tokens to generate"), fast_products(device_of(self.model)):
            return self.model.generate(ids, attention_mask=mask, generation_config=config, **options)


def _unpack(model: Any) -> None:
    """Unpacks the weights of compressed-tensors, which does this only at the first pass of the whole model."""
    hook = getattr(model, "ct_decompress_hook", None)
    if hook is not None:
        model._forward_pre_hooks[hook.id](model, ())


def find_decoder(model: Any) -> Any:
    """Finds the submodule of a causal language model that maps token ids to an output with ``last_hidden_state``.

    ``model.get_decoder()`` alone is not reliable: it returns the vocabulary head of some models (ModernBERT's
    decoder) and the whole model of others (Llama 4). The submodule contains the token embeddings and not the head.

    Raises:
        UserError: There is no such submodule.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = [model.get_decoder()] if hasattr(model, "get_decoder") else []
    found += [getattr(model, name, None) for name in (getattr(model, "base_model_prefix", ""), "model", "transformer")]
    for part in found:
        if part is model or not isinstance(part, nn.Module):
            continue
        modules = list(part.modules())
        if not any(module is embeddings for module in modules):
            continue
        if head is not None and any(module is head for module in modules):
            return find_decoder(part)  # a causal language model inside of another
        if "input_ids" in inspect.signature(part.forward).parameters:
            return part
    raise UserError(
        f"{type(model).__name__} has no decoder that maps token ids to hidden states, from which longlens computes "
        "log-probabilities: use a causal language model whose code follows transformers"
    )


@contextmanager
def running(model: Any, *, inference: bool = True) -> Iterator[None]:
    """Eval mode without gradients. Afterwards the mode of each module and the state of rotary embeddings are restored.

    Never keep it open while a generator yields: modes belong to the model and inference mode to the thread, so that two
    interleaved generators would leave them on.

    Args:
        model: A transformers model.
        inference: Whether to use inference mode; off inside a training step, where tensors may be used with gradient.
    """
    # Weights that FSDP gathers in inference mode cannot be trained afterwards.
    quiet = torch.inference_mode if inference and not is_sharded(model) else torch.no_grad
    modes = [(module, module.training) for module in model.modules()]
    states = [(module, _rope_state(module)) for module in dynamic_modules(model)]
    model.eval()
    try:
        with quiet():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, state in states:
            for name, value in state.items():
                (module._buffers if name in module._buffers else vars(module))[name] = value


def dynamic_modules(model: Any) -> list[Any]:
    """Rotary embeddings whose frequencies change at run time (dynamic NTK), for `reset_rope`."""
    return [module for module in model.modules() if any("dynamic" in kind for kind in _rope_types(module))]


def reset_rope(modules: Iterable[Any]) -> None:
    """Resets dynamic NTK: transformers keeps the frequencies of the longest sequence so far.

    Args:
        modules: Result of `dynamic_modules`, found once per model: iterating over all modules takes longer than this.
    """
    for module in modules:
        for name in _original_frequencies(module):
            prefix = name.removesuffix("original_inv_freq")
            original = getattr(module, name).to(getattr(module, f"{prefix}inv_freq").device, copy=True)
            module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
        module.max_seq_len_cached = module.original_max_seq_len


def _original_frequencies(module: nn.Module) -> list[str]:
    """Names of a rotary embedding's original frequencies, one per layer type in some models."""
    return [name for name in {**vars(module), **module._buffers} if name.endswith("original_inv_freq")]


def _rope_types(module: nn.Module) -> list[str]:
    # Not with getattr, which raises for each module without the attribute.
    kind = vars(module).get("rope_type", getattr(type(module), "rope_type", None))
    if kind is None or not _original_frequencies(module):
        return []
    return list(kind.values()) if isinstance(kind, dict) else [str(kind)]


def _goes_by_length(module: nn.Module) -> bool:
    """Whether the frequencies of a rotary embedding depend on the length of the longest sequence of a pass."""
    kinds = _rope_types(module)
    if any("dynamic" in kind or kind == CLEX_TYPE for kind in kinds):
        return True
    parameters = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    parts = [part for part in (parameters, *parameters.values()) if isinstance(part, dict) and "long_factor" in part]
    # Two equal lists are one set of frequencies.
    return "longrope" in kinds and not (parts and all(part["short_factor"] == part["long_factor"] for part in parts))


def _rope_state(module: nn.Module) -> dict[str, Any]:
    changing = ("inv_freq", "max_seq_len_cached", "attention_scaling")
    return {name: value for name, value in {**vars(module), **module._buffers}.items() if name.endswith(changing)}


def pack(
    lengths: Sequence[int], *, pads: bool, tokens: int | None = None, rows: int | None = None
) -> Iterator[list[int]]:
    """Groups indices of sequences into batches, longest first, so that a batch that is too large fails immediately.

    Args:
        lengths: Lengths of the sequences, in tokens.
        pads: Whether a batch may contain several lengths.
        tokens: Maximum tokens per batch, padding included; a longer sequence is a batch of its own.
        rows: Maximum sequences per batch.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[batch[0]] if batch else 0
        full = tokens is not None and longest * (len(batch) + 1) > tokens
        if batch and (full or len(batch) == rows or (not pads and lengths[number] != longest)):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@contextmanager
def greedy(model: Any, **settings: Any) -> Iterator[Any]:
    """A configuration with which ``model.generate`` selects the most likely token at each step, without other settings.

    transformers fills unset fields of a configuration from the model's own ``generation_config``
    (``repetition_penalty``, ``num_beams``, ``no_repeat_ngram_size``, ``suppress_tokens``, ``min_new_tokens``,
    ``forced_eos_token_id``, ...), and many settings have no value that means "off". Therefore this configuration
    replaces the model's own inside of the context; afterwards the model's own is restored.

    Args:
        model: A transformers model.
        **settings: Fields of ``transformers.GenerationConfig``, such as ``max_new_tokens``.

    Yields:
        ``transformers.GenerationConfig``.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    tokens = {name: getattr(own, name, None) for name in KEPT_TOKEN_IDS}
    config = GenerationConfig(**{"do_sample": False, "num_beams": 1, **tokens, **settings})
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = own


def generation_record(model: Any, **settings: Any) -> dict[str, Any]:
    """The record of a generation: the settings in force inside of `greedy`, and the settings of the model's own
    configuration that are ignored.
    """
    own = _plain(model.generation_config)
    with greedy(model, **settings) as config:
        in_force = _plain(config)
    ignored = {name: own[name] for name in own if name not in KEPT_TOKEN_IDS and own[name] != in_force.get(name)}
    return {"in_force": in_force, "ignored": ignored}


def _plain(config: Any) -> Mapping[str, Any]:
    unset = {"transformers_version", "_from_model_config"}
    return {name: value for name, value in config.to_dict().items() if value is not None and name not in unset}


def probe_ids(model: Any, rows: int = 1, tokens: int = PROBE_TOKENS) -> Tensor:
    """``(rows, tokens)`` random token ids, drawn without a change of the global random state.

    Placeholders for images or sound are excluded: a multimodal model requires such inputs there, or embeds another
    token.
    """
    vocabulary = vocabulary_size(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator)
    places = torch.tensor(_placeholders(model.config), dtype=torch.int64)
    while (is_place := torch.isin(ids, places)).any():
        ids = torch.where(is_place, (ids + 1) % vocabulary, ids)
    return ids.to(device_of(model))


def _placeholders(config: Any) -> list[int]:
    """Ids of special tokens in a multimodal configuration, except those of the text format."""
    own = vars(config) if getattr(config, "sub_configs", None) else {}
    names = [name for name in own if name.endswith(("_token_id", "_token_index")) and name not in KEPT_TOKEN_IDS]
    return sorted({own[name] for name in names if isinstance(own[name], int)})


def vocabulary_size(model: Any) -> int:
    """Number of rows of the token embeddings."""
    weight = model.get_input_embeddings().weight
    # ZeRO-3 leaves an empty tensor, and stores its shape in another attribute.
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP or ZeRO-3 shards weights over processes.

    A layer's weights are then complete only while it runs, and all processes have to run it together.
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if any(isinstance(part, (FSDPModule, FullyShardedDataParallel)) for part in module.modules()):
        return True
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())  # DeepSpeed's mark


def run_in_layer(layer: nn.Module, function: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """``function(states)`` as the forward pass of a layer, so that hooks of FSDP and ZeRO-3 gather its weights."""
    mine = layer.__dict__.get("forward")
    layer.forward = function
    try:
        found: Tensor = layer(states)
        return found
    finally:
        if mine is None:
            del layer.forward
        else:
            layer.forward = mine


def is_close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two computations of the same states differ only by rounding. An error changes them by their own size.

    Quantized activations differ by more, 0.01 to 0.07 of their norm in SmolLM2 (int8 of torchao and bitsandbytes), and
    count as different.
    """
    allowed = max(16 * torch.finfo(theirs.dtype).eps, 1e-3)
    return bool((ours - theirs).float().norm() <= allowed * theirs.float().norm())


def device_of(model: Any) -> torch.device:
    """Device of the token ids: that of the embeddings, or accelerate's execution device if it offloads them."""
    if is_sharded(model) and torch.accelerator.is_available():  # gathered there, while shards may be on the CPU
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        return torch.device(kind.type, torch.accelerator.current_device_index())
    embeddings = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type == "meta":
        return torch.device(getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None) or "cpu")
    return device


def devices_of(model: Any) -> list[str]:
    """Devices of the layers in order, such as ``["cuda:0", "cuda:1", "disk"]``."""
    mapped = getattr(model, "hf_device_map", None) or {"": device_of(model)}
    return list(dict.fromkeys(f"cuda:{place}" if isinstance(place, int) else str(place) for place in mapped.values()))


def default_batch_tokens(device: torch.device) -> int:
    """`BATCH_TOKENS` of a device."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
