"""Groups of settings that many functions accept: frozen, validated on construction, None if nothing was given.

A CLI command with a parameter of such a type gets one option per field, with the help text given here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from longlens.errors import UserError, shown

# Paper, section 4.1: "We set the hyperparameters as alpha = 2, beta = -2, K = 4096." Appendix A.1: "a step size d,
# which is smaller than the truncation length K (we set it to d = 1024)". Of LongCE, section 4.2: "The context length of
# s_i is set to be K = 4096".
ALPHA, BETA, CONTEXT, STRIDE = 2.0, -2.0, 4096, 1024
# Paper, section 4.2: "For the calculation of LongCE, we set gamma = 5 in Equation 7".
GAMMA = 5.0
# Paper, section 4.1: "We sample 50 documents with the context length up to 32k tokens."
MAX_LENGTH = 32768
SEED = 42
"""Default seed of the samples of tasks: that of RULER and HELMET."""


SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Help(NamedTuple):
    """Help text of a field, for its CLI option and for readers of the code.

    Attributes:
        text: The help text.
        flag: Name of the option, if it differs from the field's.
        metavar: Placeholder of the value in the help, if it is not the type.
        alone: Value that is used if the option is passed without one.
        value: Regular expression of such an option's values, which distinguishes them from the next argument.
    """

    text: str
    flag: str | None = None
    metavar: str | None = None
    alone: str | None = None
    value: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How a model is loaded.

    Raises:
        UserError: A device map is given with a device or with processes that share the model, or a number is out of
            range.
    """

    PANEL: ClassVar[str] = "Loading the model"

    dtype: Annotated[
        str,
        Help(
            "auto: bfloat16 on GPUs that support it, else float32. fp32, bf16 and fp16 are accepted too.",
            metavar="auto|float32|bfloat16|float16",
        ),
    ] = "auto"
    device: Annotated[str, Help("Device to run on: auto, cpu, cuda, cuda:1, ...")] = "auto"
    device_map: Annotated[
        str | None, Help("Device map for a model that spans devices, such as auto. Replaces `device`.")
    ] = None
    attention: Annotated[str | None, Help("Attention implementation in transformers, such as sdpa.")] = None
    batch_tokens: Annotated[int | None, Help("Maximum tokens per batch.  [default: 1024; 32768 on a GPU]")] = None
    tensor_parallel: Annotated[
        int | None,
        Help("Tensor parallel size: GPUs per model replica; needs torchrun with transformers.  [default: 1]"),
    ] = None
    trust_remote_code: Annotated[bool, Help("Allow custom code from the model repository.")] = False
    allow_pickle: Annotated[bool, Help("Allow pickled .bin weights, which can execute code.")] = False

    def __post_init__(self) -> None:
        """Validates the values and expands short dtype names."""
        object.__setattr__(self, "dtype", SHORT_DTYPES.get(self.dtype, self.dtype))
        if self.device_map is not None and self.device != "auto":
            raise UserError("`device` would have no effect with `device_map`: leave it out")
        if self.tensor_parallel is not None and self.tensor_parallel < 1:
            raise UserError(f"`tensor_parallel` is {self.tensor_parallel}; expected at least 1, or leave it out")
        if self.device_map is not None and (self.tensor_parallel or 1) > 1:
            raise UserError("`device_map` would have no effect with `tensor_parallel`: leave it out")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UserError(f"`batch_tokens` is {self.batch_tokens}; expected at least 1, or leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """The engine that runs a model, and engine-specific settings.

    Raises:
        UserError: A number is out of range.
    """

    PANEL: ClassVar[str] = "Engine"

    engine: Annotated[
        str | None,
        Help(
            "Inference engine: transformers, vllm, llama-cpp; for a server openai or sglang; or the name of a plugin "
            "(entry point longlens.scorers).  [default: transformers; openai for a URL]"
        ),
    ] = None
    tokenizer: Annotated[str | None, Help("Hub id or directory of the tokenizer.  [default: the model's own]")] = None
    concurrency: Annotated[int | None, Help("Concurrent requests to a server.  [default: 8]")] = None
    max_model_len: Annotated[
        int | None,
        Help(
            "Context length of the engine: max_model_len in vLLM, n_ctx in llama.cpp.  [default: the model's maximum]"
        ),
    ] = None
    cache: Annotated[
        str | None,
        Help(
            "KV cache policy: full, window:W, sink:S+W, random:SIZE, knorm:SIZE, h2o:SIZE, snapkv:SIZE, "
            "tova:SIZE, fp8, quanto:BITS, hqq:BITS, or the name of a plugin (entry point longlens.caches). SIZE is the "
            "number of tokens to keep, such as 512, or a fraction, such as 0.25."
        ),
    ] = None
    cache_chunk: Annotated[
        int | None, Help("Tokens per chunk with a cache policy; for prefill+tail, tokens of the tail.  [default: 256]")
    ] = None
    cache_protocol: Annotated[
        Literal["stream", "prefill+tail"] | None,
        Help(
            "stream: each chunk attends to the compressed cache of the chunks before it. prefill+tail: all but the "
            "last `cache_chunk` tokens are prefilled and compressed, then the tail is scored.  [default: stream]"
        ),
    ] = None

    def __post_init__(self) -> None:
        """Validates the values."""
        for name, least in (("concurrency", 1), ("max_model_len", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"`{name}` is {value}; expected at least {least}, or leave it out")


RAY_ADDRESS = r"auto|local|(?:ray://)?[\w.-]+:\d+|(?:ray://)?\[[0-9a-fA-F:]+\]:\d+"
"""Regular expression of the addresses that Ray accepts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ray:
    """Whether Ray actors run the model, and how many.

    Raises:
        UserError: A value is out of range, or has no effect without `ray`.
    """

    PANEL: ClassVar[str] = "Ray"

    ray: Annotated[
        str | None,
        Help(
            "Score with Ray actors, on this machine or on the cluster at ADDRESS (auto, HOST:PORT, ray://HOST:PORT).",
            metavar="[ADDRESS]",
            alone="local",
            value=RAY_ADDRESS,
        ),
    ] = None
    ray_actors: Annotated[
        str | None,
        Help("Number of actors, or MIN,MAX to autoscale.  [default: one per GPU; without GPUs, one per node]"),
    ] = None
    ray_gpus: Annotated[float | None, Help("GPUs per actor, such as 0.5 or 2.  [default: 1; without GPUs, 0]")] = None
    ray_cpus: Annotated[float | None, Help("CPUs per actor.  [default: 1; without GPUs, all of a node]")] = None

    def __post_init__(self) -> None:
        """Validates the values."""
        for name in ("ray_actors", "ray_gpus", "ray_cpus"):
            if self.ray is None and getattr(self, name) is not None:
                raise UserError(f"`{name}` would have no effect without `ray`: leave it out, or add `ray`")
        if self.ray is not None and not re.fullmatch(RAY_ADDRESS, self.ray):
            raise UserError(f"`ray` is {shown(self.ray)}; expected local, auto, HOST:PORT or ray://HOST:PORT")
        gpus, cpus = self.ray_gpus, self.ray_cpus
        if gpus is not None and not (0 <= gpus < math.inf and (gpus < 1 or gpus == int(gpus))):
            raise UserError(f"`ray_gpus` is {gpus:g}; expected a fraction of a GPU, or whole GPUs, such as 0.5 or 2")
        if cpus is not None and not 0 < cpus < math.inf:
            raise UserError(f"`ray_cpus` is {cpus:g}; expected a number above 0")
        _ = self.actors

    @property
    def actors(self) -> tuple[int, int] | None:
        """Minimum and maximum number of actors; None if the cluster decides.

        Raises:
            UserError: `ray_actors` is not a number or a range.
        """
        if self.ray_actors is None:
            return None
        numbers = self.ray_actors.split(",")
        least = most = 0
        if len(numbers) <= 2 and all(re.fullmatch("[0-9]{1,6}", number) for number in numbers):
            least, most = int(numbers[0]), int(numbers[-1])
        if not 1 <= least <= most:
            raise UserError(f"`ray_actors` is {shown(self.ray_actors)}; expected a number, or MIN,MAX, such as 1,8")
        return least, most


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The hardware that a run is planned for.

    Raises:
        UserError: A number is out of range, or the speed is both given and measured.
    """

    PANEL: ClassVar[str] = "Hardware"

    device: Annotated[
        str | None,
        Help("Device type: h100, h200, b200, a100, l40s, l4, rtx4090, mi300x, ..., cpu.  [default: this machine's]"),
    ] = None
    devices: Annotated[int, Help("Number of devices.")] = 1
    memory: Annotated[float | None, Help("Memory per device in GB (10^9 bytes), instead of the published size.")] = None
    flops: Annotated[float | None, Help("Achieved FLOP/s per device, such as 4e14, instead of `utilization`.")] = None
    utilization: Annotated[float | None, Help("Achieved fraction of the published peak FLOP/s.  [default: 0.4]")] = None
    measure: Annotated[bool, Help("Measure the speed of this machine on one layer with random weights.")] = False

    def __post_init__(self) -> None:
        """Validates the values."""
        for name in ("devices", "memory", "flops", "utilization"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"`{name}` is {value:g}; expected a number above 0")
        if self.utilization is not None and self.utilization > 1:
            raise UserError(f"`utilization` is {self.utilization:g}, a fraction of the peak; expected at most 1")
        given = [name for name in ("flops", "utilization", "measure") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"`{given[0]}` and `{given[1]}` both set the speed of a device: leave one of them out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How documents are read from sources; a setting that would have no effect is an error.

    Rows without ``"id"`` are numbered; any other `id_field` must exist. A dataset that was saved without splits is
    read completely. `samples` counts over all sources, after `min_tokens` is applied.

    Raises:
        UserError: A value is out of range, or two contradict each other.
    """

    PANEL: ClassVar[str] = "Reading documents"

    text_field: Annotated[str, Help("Field with the text of a row.")] = "text"
    id_field: Annotated[str, Help("Field with the id of a row.")] = "id"
    subset: Annotated[str | None, Help("Subset (configuration) of an hf: dataset.")] = None
    split: Annotated[str, Help("Split of an hf: dataset.")] = "test"
    tokenized_with: Annotated[
        str | None, Help("For tokenized rows: model whose tokenizer produced their input_ids.")
    ] = None
    min_tokens: Annotated[int | None, Help("Skip tokenized rows with fewer tokens.")] = None
    samples: Annotated[int | None, Help("Use only the first N documents.")] = None

    def __post_init__(self) -> None:
        """Validates the values."""
        for name in ("text_field", "id_field", "split", "subset", "tokenized_with"):
            if getattr(self, name) == "":
                raise UserError(f"`{name}` is empty: pass a name, or leave it out")
        if self.text_field == self.id_field:
            raise UserError(f"`text_field` and `id_field` are both {shown(self.text_field)}: they must differ")
        for name in ("min_tokens", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` is {value}, expected at least 1; leave it out to use every document")
        if self.tokenized_with is not None and self.text_field != "text":
            raise UserError("`text_field` would have no effect on tokenized rows: leave it out")
        if self.min_tokens is not None and self.tokenized_with is None:
            raise UserError("`min_tokens` counts the input_ids of tokenized rows: pass `tokenized_with` too")


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """How documents are truncated, before any model sees them.

    Raises:
        UserError: Both a number of tokens and a number of characters are set.
    """

    PANEL: ClassVar[str] = "Truncation"

    max_length: Annotated[
        int | None,
        Help(f"Truncate documents to this many tokens.  [default: {MAX_LENGTH}, or the model's maximum if less]"),
    ] = None
    max_characters: Annotated[int | None, Help("Truncate documents to this many characters instead.")] = None
    truncate_with: Annotated[
        str | None, Help("Model whose tokenizer counts `max_length`.  [default: the scored model's]")
    ] = None
    extrapolate: Annotated[bool, Help("Allow documents longer than the model's maximum length.")] = False

    def __post_init__(self) -> None:
        """Validates the values."""
        if self.max_characters is not None and (self.max_length is not None or self.truncate_with is not None):
            raise UserError("`max_characters` and `max_length` (or `truncate_with`) are both set: choose one")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRule:
    """How key tokens are selected from an evaluator's scores (eq. 4): LSD > alpha and LCL > beta; None: not set.

    Not used with a key file, whose tokens are already selected.

    Raises:
        UserError: A value is out of range, or beta is set although it is not used.
    """

    PANEL: ClassVar[str] = "Key tokens"

    alpha: Annotated[float | None, Help(f"Key tokens have LSD > alpha, in nats.  [default: {ALPHA:g}]")] = None
    beta: Annotated[float | None, Help(f"Key tokens have LCL > beta, in nats.  [default: {BETA:g}]")] = None
    lcl: Annotated[bool | None, Help("Select key tokens by LSD only, without beta (appendix B.2).", "--no-lcl")] = None
    gamma: Annotated[float | None, Help(f"Maximum token weight in LongPPL-soft.  [default: {GAMMA:g}]")] = None
    context: Annotated[int | None, Help("K to use, if several were scored.  [default: the largest]")] = None
    stride: Annotated[int | None, Help("d to use, if this K was scored with several.")] = None

    def __post_init__(self) -> None:
        """Validates the values."""
        if self.lcl is False and self.beta is not None:
            raise UserError(f"`beta` is {self.beta}, and `use_lcl=False` selects without beta: leave one of them out")
        check_thresholds(ALPHA if self.alpha is None else self.alpha, BETA if self.beta is None else self.beta)
        check_gamma(GAMMA if self.gamma is None else self.gamma)

    def keywords(self) -> dict[str, Any]:
        """The settings as keyword arguments of `longlens.perplexity`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"use_lcl" if name == "lcl" else name: value for name, value in values.items()}


def check_thresholds(alpha: float, beta: float) -> None:
    """Rejects thresholds that are not finite numbers.

    Raises:
        UserError: A threshold is not a finite number.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not math.isfinite(value):
            raise UserError(
                f"`{name}` is {value}, expected a finite number of nats (to select without beta: `use_lcl=False`)"
            )


def check_gamma(gamma: float) -> None:
    """Rejects an invalid maximum weight.

    Raises:
        UserError: It is not a finite number above 0.
    """
    if not (math.isfinite(gamma) and gamma > 0):
        raise UserError(f"`gamma` is {gamma}, expected a finite number above 0: it is the maximum weight of a token")
