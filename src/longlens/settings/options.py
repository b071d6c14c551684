"""Groups of settings that many calls take: frozen, checked when they are made, and None where nothing was given.

A command of the CLI that has a parameter of such a type has an option for each of its fields, with the help text that
stands here.
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
"""Of samples of tasks: RULER's and HELMET's."""


SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Help(NamedTuple):
    """What a field means, for its option and for the reader.

    Attributes:
        text: What it is.
        flag: The option's name, where it is not the field's.
        metavar: What stands for its value, where that is not its type.
        alone: Of an option whose value may be left out: what it is then.
        value: Of such an option: a pattern of its values, which tells them from the next argument.
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
            "auto is bfloat16 on a GPU that has it, else float32; fp32, bf16 and fp16 are accepted too.",
            metavar="auto|float32|bfloat16|float16",
        ),
    ] = "auto"
    device: Annotated[str, Help("auto, cpu, cuda, cuda:1, ...")] = "auto"
    device_map: Annotated[str | None, Help("Spread the model over devices, such as auto; instead of a device.")] = None
    attention: Annotated[str | None, Help("Attention implementation of transformers, such as sdpa.")] = None
    batch_tokens: Annotated[int | None, Help("Tokens of a batch.  [default: 1024, on a GPU 32768]")] = None
    tensor_parallel: Annotated[
        int | None, Help("GPUs that share each layer of the model; with transformers under torchrun.  [default: 1]")
    ] = None
    trust_remote_code: Annotated[bool, Help("Run code that comes with the model.")] = False
    allow_pickle: Annotated[bool, Help("Read .bin weights, which can run code.")] = False

    def __post_init__(self) -> None:
        """Checks the values, and writes out short names of a dtype."""
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
    """What runs a model: the engine, and settings that some engines have.

    Raises:
        UserError: A number is out of range.
    """

    PANEL: ClassVar[str] = "Engine"

    engine: Annotated[
        str | None,
        Help(
            "transformers, vllm, llama-cpp; for a server openai or sglang; or one that another installed package adds "
            "(longlens.scorers).  [default: transformers, for a URL openai]"
        ),
    ] = None
    tokenizer: Annotated[
        str | None, Help("Hub id or folder of the model's tokenizer.  [default: the model's own, by its name]")
    ] = None
    concurrency: Annotated[int | None, Help("Requests to a server at a time.  [default: 8]")] = None
    max_model_len: Annotated[
        int | None,
        Help(
            "Tokens that the engine takes: max_model_len of vLLM, n_ctx of llama.cpp.  [default: what the model takes]"
        ),
    ] = None
    cache: Annotated[
        str | None,
        Help(
            "Policy of the key-value cache: full, window:W, sink:S+W, random:SIZE, knorm:SIZE, h2o:SIZE, snapkv:SIZE, "
            "tova:SIZE, fp8, quanto:BITS, hqq:BITS, or one that another package adds (longlens.caches). SIZE is the "
            "tokens that are kept, 512, or their share, 0.25."
        ),
    ] = None
    cache_chunk: Annotated[
        int | None, Help("Tokens fed to that cache at a time, or the tokens of the tail.  [default: 256]")
    ] = None
    cache_protocol: Annotated[
        Literal["stream", "prefill+tail"] | None,
        Help(
            "stream: each chunk reads what was kept of those before it. prefill+tail: all but the last --cache-chunk "
            "tokens are fed at once and compressed, then the rest is scored.  [default: stream]"
        ),
    ] = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in (("concurrency", 1), ("max_model_len", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"`{name}` is {value}; expected at least {least}, or leave it out")


RAY_ADDRESS = r"auto|local|(?:ray://)?[\w.-]+:\d+|(?:ray://)?\[[0-9a-fA-F:]+\]:\d+"
"""A pattern of the addresses that Ray takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ray:
    """Whether actors of Ray run the model, and how many.

    Raises:
        UserError: A value is out of range, or has no effect without `ray`.
    """

    PANEL: ClassVar[str] = "Ray"

    ray: Annotated[
        str | None,
        Help(
            "Score with actors of Ray: on this machine, or on the cluster at ADDRESS (auto, HOST:PORT, "
            "ray://HOST:PORT).",
            metavar="[ADDRESS]",
            alone="local",
            value=RAY_ADDRESS,
        ),
    ] = None
    ray_actors: Annotated[
        str | None,
        Help("Number of actors, or MIN,MAX to scale with the work.  [default: one a GPU, without GPUs one a node]"),
    ] = None
    ray_gpus: Annotated[float | None, Help("GPUs of an actor, such as 0.5 or 2.  [default: 1, without GPUs 0]")] = None
    ray_cpus: Annotated[float | None, Help("CPUs of an actor.  [default: 1, without GPUs all of a node]")] = None

    def __post_init__(self) -> None:
        """Checks the values."""
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
        """Least and most actors; None where the cluster decides.

        Raises:
            UserError: They are no such numbers.
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
    """What a run is planned for.

    Raises:
        UserError: A number that cannot be, or a speed that is both given and measured.
    """

    PANEL: ClassVar[str] = "Hardware"

    device: Annotated[
        str | None, Help("h100, h200, b200, a100, l40s, l4, rtx4090, mi300x, ...; cpu.  [default: this machine's]")
    ] = None
    devices: Annotated[int, Help("How many of them.")] = 1
    memory: Annotated[float | None, Help("Memory of a device in GB (10^9 bytes), instead of its published size.")] = (
        None
    )
    flops: Annotated[float | None, Help("FLOP/s that a device reaches, such as 4e14, not a share of its peak.")] = None
    utilization: Annotated[float | None, Help("Share of the published peak that is reached.  [default: 0.4]")] = None
    measure: Annotated[bool, Help("Measure this machine on a layer of the model, with random weights.")] = False

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("devices", "memory", "flops", "utilization"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"`{name}` is {value:g}; expected a number above 0")
        if self.utilization is not None and self.utilization > 1:
            raise UserError(f"`utilization` is {self.utilization:g}, a share of the peak; expected at most 1")
        given = [name for name in ("flops", "utilization", "measure") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"`{given[0]}` and `{given[1]}` both say how fast a device is: leave one of them out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How sources become documents; a setting that cannot take effect is an error, not ignored.

    Rows without ``"id"`` are numbered; another `id_field` has to be there. A dataset that was saved without splits is
    read whole. `samples` counts over all sources and after `min_tokens`.

    Raises:
        UserError: A value is out of range, or two contradict each other.
    """

    PANEL: ClassVar[str] = "Reading documents"

    text_field: Annotated[str, Help("Field of a row that holds the text.")] = "text"
    id_field: Annotated[str, Help("Field of a row that holds its id.")] = "id"
    subset: Annotated[str | None, Help("Subset of an hf: dataset.")] = None
    split: Annotated[str, Help("Split of an hf: dataset.")] = "test"
    tokenized_with: Annotated[str | None, Help("Model whose tokenizer made the rows' input_ids.")] = None
    min_tokens: Annotated[int | None, Help("Leave out tokenized rows with fewer tokens.")] = None
    samples: Annotated[int | None, Help("Number of documents, the first ones.")] = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("text_field", "id_field", "split", "subset", "tokenized_with"):
            if getattr(self, name) == "":
                raise UserError(f"`{name}` is empty: give a name, or leave it out")
        if self.text_field == self.id_field:
            raise UserError(f"`text_field` and `id_field` are both {shown(self.text_field)}: they must differ")
        for name in ("min_tokens", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` is {value}, expected at least 1: leave it out to take every document")
        if self.tokenized_with is not None and self.text_field != "text":
            raise UserError("`text_field` would have no effect for rows that are tokenized already: leave it out")
        if self.min_tokens is not None and self.tokenized_with is None:
            raise UserError("`min_tokens` counts the input_ids of tokenized rows: pass `tokenized_with` too")


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """What documents are cut to, before any model sees them.

    Raises:
        UserError: Both tokens and characters are given.
    """

    PANEL: ClassVar[str] = "Truncation"

    max_length: Annotated[
        int | None,
        Help(f"Tokens that a document is cut to.  [default: {MAX_LENGTH}, or what the model takes if that is less]"),
    ] = None
    max_characters: Annotated[int | None, Help("Characters that a document is cut to instead.")] = None
    truncate_with: Annotated[
        str | None, Help("Model whose tokenizer counts `max_length`.  [default: the scored model's]")
    ] = None
    extrapolate: Annotated[bool, Help("Allow more tokens than the model was made for.")] = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.max_characters is not None and (self.max_length is not None or self.truncate_with is not None):
            raise UserError("`max_characters` and `max_length` (or `truncate_with`) were both given: choose one")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRule:
    """Which tokens are key, from an evaluator's scores (eq. 4): LSD > alpha and LCL > beta; None is not given.

    A file of key tokens was made by a rule already, and with one none is given.

    Raises:
        UserError: A value is out of range, or beta is given and left out.
    """

    PANEL: ClassVar[str] = "Key tokens"

    alpha: Annotated[float | None, Help(f"Key tokens have LSD > alpha, in nats.  [default: {ALPHA:g}]")] = None
    beta: Annotated[float | None, Help(f"Key tokens have LCL > beta, in nats.  [default: {BETA:g}]")] = None
    lcl: Annotated[bool | None, Help("Select by LSD alone (appendix B.2).", "--no-lcl")] = None
    gamma: Annotated[float | None, Help(f"Largest weight of LongPPL-soft.  [default: {GAMMA:g}]")] = None
    context: Annotated[int | None, Help("Which K, of those scored.  [default: the largest]")] = None
    stride: Annotated[int | None, Help("Which d, where one K was scored with several.")] = None

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.lcl is False and self.beta is not None:
            raise UserError(f"`beta` is {self.beta}, and `use_lcl=False` selects without beta: leave one of them out")
        check_thresholds(ALPHA if self.alpha is None else self.alpha, BETA if self.beta is None else self.beta)
        check_gamma(GAMMA if self.gamma is None else self.gamma)

    def keywords(self) -> dict[str, Any]:
        """The same as keywords of `longlens.perplexity`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"use_lcl" if name == "lcl" else name: value for name, value in values.items()}


def check_thresholds(alpha: float, beta: float) -> None:
    """Refuses thresholds that are not finite numbers.

    Raises:
        UserError: One is not.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not math.isfinite(value):
            raise UserError(
                f"`{name}` is {value}, expected a finite number of nats (to do without beta: `use_lcl=False`)"
            )


def check_gamma(gamma: float) -> None:
    """Refuses a largest weight that is none.

    Raises:
        UserError: It is not a finite number above 0.
    """
    if not (math.isfinite(gamma) and gamma > 0):
        raise UserError(f"`gamma` is {gamma}, expected a finite number above 0: it is the largest weight of a token")
