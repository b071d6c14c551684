"""Traces a causal language model without weights: the cost of passes in scoring and in training."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from longlens.errors import UserError, library_errors, shown_value
from longlens.models.forward import Forward
from longlens.planning.trace import FLASH, PLANNED, AttentionCall, HeadStandIn, Pass, Tracer, Work, tracing
from longlens.rope.config import auto_class, check_decoder
from longlens.scoring.transformers import CHUNK_TOKENS

ATTENTIONS = ("sdpa", "eager", *FLASH)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBES = (32, 64)
"""Numbers of tokens of the passes that are traced to count FLOPs."""


def named_dtype(name: str, value: str) -> torch.dtype:
    """A floating-point dtype by its name.

    Args:
        name: Name of the parameter, for the message.
        value: One of `DTYPES`.

    Raises:
        UserError: The name is not one of `DTYPES`.
    """
    if value not in DTYPES:
        raise UserError(f"`{name}` is {shown_value(value)}; expected one of {', '.join(DTYPES)}")
    return DTYPES[value]


class TracedModel:
    """A causal language model without weights.

    Args:
        config: A transformers configuration.
        dtype: Dtype of the weights.
        attention: ``sdpa``, ``eager`` or one of `FLASH`.
        on_gpu: Whether the plan is for a GPU, on which half-precision heads need no float32 copy.
        trust_remote_code: Allow custom code that comes with the model.

    Raises:
        UserError: The attention implementation is unknown, or transformers has no such causal language model.
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: torch.dtype,
        attention: str = "sdpa",
        on_gpu: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        if attention not in ATTENTIONS:
            raise UserError(f"`attention` is {shown_value(attention)}; expected one of {', '.join(ATTENTIONS)}")
        check_decoder(config)
        self.attention, self.on_gpu = attention, on_gpu
        self._mode = FakeTensorMode()
        self._replaced: list[nn.Module] = []  # modules of which a copy is trained, while the originals are kept
        self.config = copy.deepcopy(config)
        name = getattr(config, "model_type", type(config).__name__)
        with (
            self._mode,
            no_init_weights(),
            library_errors(f"{name} cannot be planned", "use a causal language model of transformers"),
        ):
            self.model = (
                auto_class(self.config.model_type)
                .from_config(self.config, dtype=dtype, attn_implementation=PLANNED, trust_remote_code=trust_remote_code)
                .eval()
            )
            self.model.tie_weights()  # skipped together with the initialization
        self.forward = Forward(self.model)
        self.by_length = self.forward.by_length
        for (
            module
        ) in self.model.modules():  # length-dependent frequencies read the length from positions, which have no data
            kind = vars(module).get("rope_type")
            if kind is not None:
                module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"
        head = self.model.get_output_embeddings()
        if head is None:
            raise UserError(f"{name} has no vocabulary head: longlens needs a causal language model")
        self.head: Tensor = head.weight
        self.windows = self._find_windows()
        self.keeps_state = self.forward.attention_windows is None and not self.by_length

    def _find_windows(self) -> dict[int, int]:
        with self._mode:
            layers = self.forward.new_cache().layers
        return {
            index: layer.sliding_window for index, layer in enumerate(layers) if getattr(layer, "is_sliding", False)
        }

    @property
    def num_parameters(self) -> int:
        """Number of parameters; shared ones are counted once."""
        every = {id(p): p for module in (self.model, *self._replaced) for p in module.parameters()}
        return sum(parameter.numel() for parameter in every.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and buffers; shared ones are counted once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        storages = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    def placed_bytes(self, layers: int, tensors: int) -> float:
        """Bytes of weights on one of several devices that share the model.

        Args:
            layers: Number of devices over which whole layers are distributed, with the embeddings on the first and the
                vocabulary head on the last.
            tensors: Number of devices over which transformers' tensor-parallel plan shards the model.
        """
        if tensors > 1:
            plan = {name for name, style in (getattr(self.model, "_tp_plan", None) or {}).items() if style}
            total = 0.0
            for name, parameter in self.model.named_parameters():
                named = re.sub(r"\.\d+\.", ".*.", name)
                is_shared = named in plan or named.rpartition(".")[0] in plan
                total += parameter.numel() * parameter.dtype.itemsize / (tensors if is_shared else 1)
            return total
        if layers == 1:
            return float(self.weight_bytes)
        sizes = self._layer_bytes
        outside = self.weight_bytes - sum(sizes)
        ends = self.head.numel() * self.head.dtype.itemsize
        most = -(-len(sizes) // layers)
        return float(max(sum(sizes[:most]) + min(ends, outside), max(sizes, default=0), outside - ends))

    @cached_property
    def _layer_bytes(self) -> list[int]:
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        return [sum(p.numel() * p.dtype.itemsize for p in layer.parameters()) for layer in layers]

    @contextmanager
    def _tracing(self, *known: Tensor, backward: bool = False) -> Iterator[Tracer]:
        tensors = [*self.model.parameters(), *self.model.buffers(), *known]
        tracer = Tracer(self.attention, self.on_gpu, self.windows, tensors)
        tracing.append(tracer)
        try:
            with self._mode, nullcontext() if backward else torch.no_grad(), tracer:
                yield tracer
        finally:
            tracer.masks.clear()
            tracing.pop()

    @cached_property
    def _per_token(self) -> tuple[float, float, list[AttentionCall]]:
        """Linear work of a pass as ``fixed + slope * tokens``, and its attention calls."""
        points = []
        for length in PROBES:
            points.append((length, *self._count(1, length)))
        (short, less, _), (long, more, calls) = points
        slope = (more - less) / (long - short)
        return less - slope * short, slope, calls

    def _count(self, rows: int, length: int) -> tuple[int, list[AttentionCall]]:
        """Linear work of a pass, and its attention calls.

        Raises:
            UserError: The model's own code reads values of tensors.
        """
        try:
            with self._tracing() as tracer:
                self.forward.hidden(torch.empty(rows, length, dtype=torch.int64))
        except UserError as error:
            raise UserError(
                f"{type(self.model).__name__} cannot be planned: its code reads values of tensors, but a plan has "
                "only shapes, or it implements attention itself"
            ) from error
        self._check_causal(tracer)
        return tracer.linear, tracer.calls

    def _check_causal(self, tracer: Tracer) -> None:
        own = not tracer.calls and any(vars(module).get("is_decoder") is False for module in self.model.modules())
        if own or not tracer.is_causal:
            raise UserError(
                f"{type(self.model).__name__} is not causal: its attention sees later tokens. longlens needs "
                "a causal language model"
            )

    def work(self, rows: int, length: int, scored: int) -> Work:
        """FLOPs of a batch in scoring: linear in the number of tokens, except for attention.

        Args:
            rows: Number of sequences, padded to one length.
            length: Tokens per sequence.
            scored: Tokens scored, over all rows.
        """
        fixed, slope, calls = self._per_token
        chunk = self._chunk_tokens(length)
        attended = 0
        for call, times in Counter(replace(call, layer=-1, batch=rows) for call in calls).items():
            for start in range(0, length, chunk):
                q, before = min(chunk, length - start), start if call.window is None else min(start, call.window - 1)
                attended += times * replace(call, q=q, kv=before + q).flops(self.attention)
        linear = rows * (fixed + slope * length)
        if not calls and not self.keeps_state:  # custom attention code, whose cost is not linear
            linear = self._count(rows, length)[0]
        head = 2.0 * scored * self.head.numel()
        is_exact = self.on_gpu and self.head.dtype != torch.float32
        return Work(
            linear=linear,
            attention=attended,
            head=head if is_exact else 0.0,
            wide_head=0.0 if is_exact else head,
        )

    def _chunk_tokens(self, length: int) -> int:
        """Chunk length of the scorer: it uses chunks with a cache if a window is shorter than the sequence."""
        smallest = min(self.windows.values(), default=None)
        if self.attention != "sdpa" or smallest is None or self.forward.attention_windows is None:
            return length
        return CHUNK_TOKENS if length > max(smallest, CHUNK_TOKENS) else length

    def peak_bytes(self, rows: int, length: int, scored: int) -> int:
        """Peak bytes of a batch in scoring in addition to the weights; arguments as in `work`.

        For a recurrent model, whose code may run one step per token, two short passes are extrapolated.
        """
        if self.keeps_state and length > PROBES[-1]:
            less, more = (self.peak_bytes(1, probe, probe) for probe in PROBES)
            slope = (more - less) / (PROBES[1] - PROBES[0])
            return int(less + slope * (rows * length - PROBES[0]))
        chunk = self._chunk_tokens(length)
        last = (length - 1) // chunk * chunk
        width, dtype = self.head.shape[1], self.head.dtype
        with self._tracing() as tracer:
            if last:
                cache, kept = self._cache_of(rows, last), torch.empty(scored, width, dtype=dtype)
                tracer.peak = tracer.live
                self.forward.extend(torch.empty(rows, length - last, dtype=torch.int64), cache)
                kept = kept.clone()  # the parts are concatenated
                del cache
            else:
                states = self.forward.hidden(torch.empty(rows, length, dtype=torch.int64))
                kept = states.flatten(0, 1)[:scored].clone()
                del states
            tracer.masks.clear()
            self._logprobs(kept)
        peak: int = tracer.peak
        return peak

    def _cache_of(self, rows: int, length: int) -> Any:
        """A cache filled with the given number of tokens."""
        cache = self.forward.new_cache()
        for call in self._per_token[2]:
            before = length if call.window is None else min(length, call.window - 1)
            shape, dtype = (rows, call.kv_heads, before), self.head.dtype
            keys, values = (torch.empty(*shape, width, dtype=dtype) for width in (call.key_dim, call.value_dim))
            cache.update(keys, values, call.layer)
        return cache

    @property
    def wide_head_bytes(self) -> int:
        """Bytes of the head's float32 copy that a scorer keeps: only for half precision on a CPU."""
        return 0 if self.on_gpu or self.head.dtype == torch.float32 else 4 * self.head.numel()

    def _logprobs(self, kept: Tensor, *, keeps_wide: bool = True) -> Tensor:
        wide = kept if keeps_wide else None
        found: Tensor = HeadStandIn.apply(kept, self.head, self.on_gpu, wide)  # type: ignore[no-untyped-call]
        return found

    def layers(self, rows: int, length: int, *, backward: bool = False) -> Work:
        """FLOPs of hidden states without a vocabulary head, for a forward pass or for forward and backward."""
        with self._tracing(backward=backward) as tracer:
            states = self.forward.hidden(torch.empty(rows, length, dtype=torch.int64))
            if backward:
                torch.autograd.backward(states.float().sum())
        for parameter in self.model.parameters():
            parameter.grad = None
        return _result(tracer).work

    def train(
        self,
        rows: int,
        length: int,
        scored: int,
        *,
        checkpointing: bool = False,
        precision: torch.dtype | None = None,
        is_sharded: bool = False,
    ) -> Pass:
        """A micro-batch of training: forward and backward pass of a loss over log-probabilities.

        Args:
            rows: Number of sequences.
            length: Tokens per sequence.
            scored: Tokens in the loss, over all rows.
            checkpointing: Whether activations are recomputed in the backward pass.
            precision: Dtype of autocast; None without autocast.
            is_sharded: Whether each gradient is sharded over all ranks as soon as it is computed; otherwise the peak
                includes the gradients of this step.
        """
        model = self.model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        freed = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in trained] if is_sharded else []
        if checkpointing:
            # Renamed in transformers 5.24.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        autocast = nullcontext() if precision is None else torch.autocast("cpu", precision)
        try:
            with self._tracing(backward=True) as tracer:
                with autocast:
                    states = self.forward.hidden(torch.empty(rows, length, dtype=torch.int64))
                    kept = states.flatten(0, 1)[:scored].clone()
                    tracer.masks.clear()
                    with torch.autocast("cpu", enabled=False):
                        logprobs = self._logprobs(kept, keeps_wide=False)
                torch.autograd.backward(logprobs.sum())
                self._check_causal(tracer)
                del states, kept, logprobs
        finally:
            for hook in freed:
                hook.remove()
            if checkpointing:
                getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
            for parameter in trained:
                parameter.grad = None
            model.eval()
        return _result(tracer)

    def add_adapters(
        self, r: int, target_modules: str | Sequence[str] = "all-linear", modules_to_save: Sequence[str] = ()
    ) -> None:
        """Replaces full training by LoRA with the shapes of peft: float32 adapters of rank r.

        Args:
            r: Rank.
            target_modules: Last parts of module names, or ``all-linear``: all linear modules but the vocabulary head.
            modules_to_save: Modules of which a full copy is trained.

        Raises:
            UserError: No module has such a name.
        """
        self.model.requires_grad_(False)
        head, number = self.model.get_output_embeddings(), 0
        linear = [(name, m) for name, m in self.model.named_modules() if isinstance(m, nn.Linear) and m is not head]
        for name, module in linear:
            parent, _, last = name.rpartition(".")
            if last not in modules_to_save and (target_modules == "all-linear" or last in target_modules):
                with self._mode:
                    setattr(self.model.get_submodule(parent), last, _Adapted(module, r))
                number += 1
        if not number:
            raise UserError(f"{self.model.config.model_type} has no linear module called {target_modules}: check it")
        for wanted in modules_to_save:
            self._train_copy(wanted)
        self.model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())

    def _train_copy(self, wanted: str) -> None:
        named = [(name, module) for name, module in self.model.named_modules() if name.rpartition(".")[2] == wanted]
        if not named:
            raise UserError(f"`modules_to_save` has {wanted!r}, but {self.model.config.model_type} has no such module")
        for name, module in named:
            parent, _, last = name.rpartition(".")
            with self._mode:
                copied: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p)) for p in module.parameters()}
                copied |= {id(buffer): torch.empty_like(buffer) for buffer in module.buffers()}
                setattr(self.model.get_submodule(parent), last, copy.deepcopy(module, copied))
            self._replaced.append(module)
        self.head = self.model.get_output_embeddings().weight

    @property
    def num_adapters(self) -> int:
        """Number of adapter weights."""
        adapted = (module for module in self.model.modules() if isinstance(module, _Adapted))
        return sum(part.weight.numel() for module in adapted for part in (module.down, module.up))

    @property
    def gathered_bytes(self) -> int:
        """Bytes of a sharded model gathered at one time: two of its largest layers, and weights outside of layers."""
        sizes = self._layer_bytes
        return self.weight_bytes - sum(sizes) + 2 * max(sizes, default=0)

    @property
    def num_trained(self) -> int:
        """Number of weights with a gradient."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


class _Adapted(nn.Module):
    """A linear module with a LoRA adapter, which peft keeps in float32, so that its input is cast."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, r, bias=False, dtype=torch.float32)
        self.up = nn.Linear(r, base.out_features, bias=False, dtype=torch.float32)

    @property
    def weight(self) -> Tensor:
        """The module's own weight, which some models use without calling the module."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The module's own bias."""
        return self.base.bias

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.base(states)
        adapted: Tensor = self.up(self.down(states.to(torch.float32)))
        return (result + adapted * 2.0).to(result.dtype)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _result(tracer: Tracer) -> Pass:
    work = Work(linear=tracer.linear, attention=tracer.attended, head=tracer.head, wide_head=tracer.wide_head)
    return Pass(work=work, peak_bytes=tracer.peak)
