"""A model, its tokenizer and its configuration, loaded by name; what goes wrong on the way is one line."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from longlens.errors import LonglensWarning, UserError, library_errors, require, shown, shown_value
from longlens.files import file_sha256, read_json
from longlens.models.gguf import load_gguf_tokenizer
from longlens.models.resolve import EMBEDDED, Source, check_folder, resolve
from longlens.runs.identity import ModelIdentity, functional_config

HUB_SECONDS = 5.0
"""How long the hub may take to answer before a model is looked for in the cache alone."""

MAX_COUNT = 10_000
"""Layers, or experts of a layer, that a model of transformers can have here."""
_COUNT = re.compile(r"(n|num|encoder|decoder)_(\w+_)?(layer|expert|block)s?")

if TYPE_CHECKING:
    import torch

    from longlens.corpus import Document
    from longlens.scoring.scorer import ScorerInfo
    from longlens.scoring.transformers import TransformersScorer
    from longlens.tokenization import Encoded, TextEncoder

ADAPTER = "adapter_config.json"


class Outline:
    """A model without its weights: what says, before they are loaded, whether settings and documents fit it.

    Attributes:
        tokenizer: The model's.
        info: As of a scorer; what only the weights say is empty.
    """

    def __init__(self, name: str, *, trust_remote_code: bool = False) -> None:
        """Loads the tokenizer and the configuration.

        Raises:
            UserError: No such model.
        """
        from longlens.scoring.scorer import ScorerInfo
        from longlens.tokenization import TextEncoder

        source = resolve(name)
        check_folder(source)
        self._trust_remote_code = trust_remote_code
        self.tokenizer = _tokenizer(source, trust_remote_code)
        self._encoder = TextEncoder(self.tokenizer)
        unknown: dict[str, Any] = dict.fromkeys(
            ("architecture", "tokenizer_sha256", "dtype", "device", "attention"), ""
        )
        self.info = ScorerInfo(
            name=name,
            source=source.note,
            weights_sha256=None,
            max_length=positions_of(load_config(source, trust_remote_code=trust_remote_code)),
            bos_token_id=self._encoder.bos_token_id,
            own_prefix=self._encoder.own_prefix,
            **unknown,
        )

    def identified(self, *, dtype: str = "auto", device: str = "auto") -> ScorerInfo | None:
        """`info` with all that tells the model from others; None while its weights are not on this machine.

        Args:
            dtype: As in `load_scorer`.
            device: As there.
        """
        found = identify_unloaded(
            self.info.name, self.tokenizer, dtype=dtype, device=device, trust_remote_code=self._trust_remote_code
        )
        return None if found is None else replace(self.info, **vars(found))

    def encode(self, document: Document) -> Encoded:
        """Tokens of the document's text and their spans; no special tokens are added."""
        return self._encoder.encode(document.text)


def load_scorer(
    name: str,
    *,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attention: str | None = None,
    batch_tokens: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> TransformersScorer:
    """Loads a model to score with.

    Args:
        name: Hub id, local folder, ``.gguf`` file, ``smollm2`` or ``gemma3-270m``.
        tokenizer: The model's, if it is loaded already.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 on a GPU that has it and
            float32 elsewhere; key tokens are decided by differences of a few nats, of which bfloat16 loses some tenths.
        device: ``auto`` is the first GPU, else the CPU.
        device_map: As in transformers, to spread a model over devices; instead of ``device``.
        attention: ``attn_implementation`` of transformers; its own choice unless given.
        batch_tokens: Tokens of a batch, padding included; 1,024 on a CPU and 32,768 on a GPU unless given.
        trust_remote_code: Runs code that comes with the model. Off: such a model is refused.
        allow_pickle: Reads ``.bin`` weights, which are pickles and can run code. Off: safetensors and GGUF alone.

    Raises:
        UserError: No such model, not a causal language model, or it cannot be loaded as asked.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise UserError(f"--batch-tokens is {batch_tokens}; expected at least 1, or leave it out")
    source = resolve(name)
    check_folder(source)
    if source.gguf is None and not Path(source.path).is_dir():
        _check_hub(source)  # before torch is imported
    from longlens.scoring.transformers import TransformersScorer

    where = find_device(device)
    chosen = find_dtype(dtype, where)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf is not None:
        options["gguf_file"] = source.gguf
    if attention is not None:
        options["attn_implementation"] = attention
    if device_map is not None:
        options["device_map"] = device_map
    tokenizer = _tokenizer(source, trust_remote_code) if tokenizer is None else tokenizer
    model, problems = load_weights(source, options, chosen, allow_pickle=allow_pickle)
    check_complete(name, model, problems, "longlens needs a causal language model with its vocabulary head")
    if device_map is None:
        model = model.to(where)
    with explained(source, "model"):  # it runs the model once
        return TransformersScorer(
            model,
            tokenizer,
            name=name,
            source=source.note,
            weights_sha256=hash_files(source),
            batch_tokens=batch_tokens,
        )


def identify(name: str, tokenizer: Any, dtype: str, trust_remote_code: bool = False) -> ModelIdentity:
    """Which model a name is, where another engine loads its weights.

    Args:
        name: Of a local model, as in `load_scorer`.
        tokenizer: The model's.
        dtype: Of its weights.
        trust_remote_code: As in `load_scorer`.

    Raises:
        UserError: It has no configuration or no weights.
    """
    from longlens.tokenization import TextEncoder

    source, encoder = resolve(name), TextEncoder(tokenizer)
    adapter = _adapter_of(source)
    config = load_config(source, trust_remote_code=trust_remote_code)
    return ModelIdentity(
        weights_sha256=hash_files(source),
        config=functional_config(config, [] if adapter is None else [adapter.config]),
        tokenizer_sha256=encoder.sha256,
        bos_token_id=encoder.bos_token_id,
        own_prefix=encoder.own_prefix,
        dtype=dtype,
    )


def identify_unloaded(
    name: str,
    tokenizer: Any = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> ModelIdentity | None:
    """Which model `load_scorer` would load with these arguments; None while its weights are not on this machine.

    Raises:
        UserError: A local model has no configuration or no weights.
    """
    found = find_dtype(dtype, find_device(device))
    try:
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code) if tokenizer is None else tokenizer
        return identify(name, tokenizer, str(found).removeprefix("torch."), trust_remote_code)
    except FileNotFoundError:
        return None
    except UserError:
        if Path(resolve(name).path).is_dir():
            raise
        return None


class _Adapter(NamedTuple):
    """What adapter_config.json says: the model that it adapts, and all of it."""

    base: Source
    config: dict[str, Any]


def _adapter_of(source: Source, folder: Path | None = None) -> _Adapter | None:
    """The adapter of PEFT in a model's folder; None where there is none.

    Raises:
        UserError: It names no base model.
    """
    path = (folder or Path(source.path)) / ADAPTER
    if source.gguf is not None or not path.is_file():
        return None
    config = read_json(path, "give an adapter that peft saved")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str):
        raise UserError(f"{path} names no base model (base_model_name_or_path): give an adapter that does")
    return _Adapter(resolve(base), config)


def load_encoder(name: str, *, trust_remote_code: bool = False) -> TextEncoder:
    """The tokenizer of a model as text to tokens and spans; the weights are not loaded.

    Raises:
        UserError: No such tokenizer.
    """
    from longlens.tokenization import TextEncoder

    return TextEncoder(load_tokenizer(name, trust_remote_code=trust_remote_code))


def max_positions(name: str, *, trust_remote_code: bool = False) -> int | None:
    """Tokens that a model was made for, from its configuration; None where it names none.

    Raises:
        UserError: No such model.
    """
    return positions_of(load_config(resolve(name), trust_remote_code=trust_remote_code))


# As vLLM looks for it (vllm/config/model.py, _get_and_verify_max_len); the first is mapped to the others by the
# transformers classes of GPT-2, OPT and their kin.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


def positions_of(config: Any) -> int | None:
    """Tokens that a model of this configuration was made for; None where it names none, as recurrent models.

    With RoPE scaling, ``max(max_position_embeddings, factor * original_max_position_embeddings)``: the model cards of
    Qwen2.5 and Qwen3 add YaRN and leave ``max_position_embeddings``. Dynamic NTK has no length that it is made for
    beyond its original one. A linear factor without an original length says nothing: ``max_position_embeddings`` is
    the length before in Vicuna 1.5 16k, and the length after in Gemma 3.
    """
    text = config.get_text_config(decoder=True)
    length = next((value for key in _LENGTH_KEYS if _is_count(value := getattr(text, key, None))), None)
    if length is None:
        return None
    scaling = getattr(text, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    for rope in [scaling, *(value for value in scaling.values() if isinstance(value, dict))]:
        factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
        if rope.get("rope_type") != "dynamic" and _is_count(original) and _is_factor(factor):
            length = max(length, int(factor * original))
    return length


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_factor(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf


def load_config(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model, of transformers; of an adapter's folder that of its base.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoConfig

    adapter = _adapter_of(source)
    if adapter is not None:
        return load_config(adapter.base, trust_remote_code=trust_remote_code)
    options = {} if source.gguf is None else {"gguf_file": source.gguf}
    with explained(source, "model"):
        return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, **options)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, of transformers.

    Raises:
        UserError: No such tokenizer.
    """
    return _tokenizer(resolve(name), trust_remote_code)


_VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "vocab.*", "*vocab.json")


def _tokenizer(source: Source, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    folder = Path(source.path)
    has_vocabulary = (
        source.gguf is not None
        or not folder.is_dir()
        or any(file for name in _VOCABULARIES for file in folder.glob(name))
    )
    nothing = UserError(
        f"the folder {shown(source.name)} holds no tokenizer (such as tokenizer.json): copy the one that the model was "
        "trained with into it"
    )
    # Some tokenizers, of bytes or characters, have no such file.
    config = folder / "tokenizer_config.json"
    generic = (None, "TokenizersBackend", "PreTrainedTokenizerFast")
    if not has_vocabulary and (not config.is_file() or read_json(config).get("tokenizer_class") in generic):
        raise nothing
    with explained(source, "tokenizer"):
        if source.gguf is not None:
            require("gguf", extra="gguf", purpose=f"{source.name} (a .gguf file)")
            return load_gguf_tokenizer(folder / source.gguf)
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    if not has_vocabulary and tokenizer.vocab_files_names:
        # transformers makes one of the class that the configuration names, with special tokens alone.
        raise nothing
    return tokenizer


def load_weights(
    source: Source, options: dict[str, Any], dtype: torch.dtype, *, allow_pickle: bool = False
) -> tuple[Any, dict[str, Any]]:
    """A causal language model of transformers with its weights, and what was missing in them.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import GgufConfig

    from longlens.rope.load import load_model

    if source.gguf is not None:
        options = options | {"quantization_config": GgufConfig(dequantize=True)}
    else:
        options = options | {"use_safetensors": None if allow_pickle else True}
    with explained(source, "model"):
        model, problems = load_model(source.path, dtype=dtype, output_loading_info=True, **options)
    return model, problems


def check_complete(name: str, model: Any, problems: Mapping[str, Any], step: str) -> None:
    """Holds a model's files against the model that its configuration describes.

    Args:
        name: As the user gave it.
        model: What was loaded.
        problems: What transformers says of the loading.
        step: What to do about missing weights, for the message.

    Raises:
        UserError: Weights are missing, which transformers fills with random ones.

    Warns:
        LonglensWarning: There are weights that the model does not use, as those of layers beyond ``num_hidden_layers``.
    """
    missing, unused = (sorted(problems.get(key, ())) for key in ("missing_keys", "unexpected_keys"))
    if missing:
        raise UserError(
            f"{name} lacks weights of {type(model).__name__}, such as {missing[0]!r} ({len(missing)} in all), which "
            f"would be random: {step}"
        )
    if unused:
        warnings.warn(
            f"{shown(name)} has weights that {type(model).__name__} does not use, such as {shown(unused[0])} "
            f"({len(unused)} in all): if layers of the model are among them, its config.json is another model's",
            LonglensWarning,
            stacklevel=3,
        )


@contextmanager
def explained(source: Source, what: str) -> Iterator[None]:
    """Turns what other libraries raise on a model that cannot be loaded or run into one line that says what to do."""
    failed = f"cannot load the {what} {shown(source.name)} ({source.note})"
    _check_counts(source)
    with library_errors(failed, partial(_step, source, what)), _hub(source):
        yield


def _check_counts(source: Source) -> None:
    """Refuses a folder with so many layers or experts that transformers would build them for hours, or for ever."""
    path = Path(source.path) / "config.json"
    if source.gguf is not None or not path.is_file():
        return
    again = "check the files of the folder, or give another model"
    parts: list[Mapping[str, Any]] = [read_json(path, again)]
    for part in parts:
        parts += [value for value in part.values() if isinstance(value, dict)]
        for key, value in part.items():
            if isinstance(value, int | float) and value > MAX_COUNT and _COUNT.fullmatch(key):
                found = f"{shown(key)} is {shown_value(value)}, expected at most {MAX_COUNT:,}"
                raise UserError(f"{path}: {found}: {again}")


def _step(source: Source, what: str, error: BaseException) -> str:
    said, folder = str(error), Path(source.path)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "give a smaller model, --dtype bfloat16 or --device-map auto"
    for option in ("attn_implementation", "device_map"):
        if option in said:
            return f"give another --{'attention' if option.startswith('attn') else 'device-map'}, or leave it out"
    if "trust_remote_code" in said:
        return "it comes with code of its own, which runs only with --trust-remote-code"
    if source.gguf is not None:
        return "check the file, or give the model's folder or hub id"
    if not folder.is_dir():
        return "check the name, or give a folder, a .gguf file, smollm2 or gemma3-270m"
    if "ignore_mismatched_sizes" in said:
        return "its weights have other shapes than its config.json says: copy or download both again"
    if "safetensors" in said and list(folder.glob("*.bin")):
        return "weights that are pickles are read only with --allow-pickle"
    if type(error).__name__ == "SafetensorError":
        return "a file of its weights is damaged or cut short: copy or download it again"
    return "check the files of the folder, or give another model"


@cache
def _hub_answers() -> bool:
    """Whether the hub can be reached, asked once: its own client tries for a minute before it says that it cannot."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with library_errors("the hub", "connect"):  # which HTTP library it is depends on huggingface_hub's version
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except UserError:
        return False
    return True


def _check_hub(source: Source) -> None:
    """Refuses a model that is neither here nor in the hub's cache where the hub cannot be reached."""
    from huggingface_hub import constants, try_to_load_from_cache

    files = ("config.json", "tokenizer_config.json", "tokenizer.json")
    if any(isinstance(try_to_load_from_cache(source.path, file), str) for file in files) or _hub_answers():
        return
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    if source.name in EMBEDDED:
        raise UserError(f"{source.name} is not installed, and {reason}: {EMBEDDED[source.name].install}")
    raise UserError(
        f"{shown(source.name)} is not in the hub's cache on this machine, and {reason}: connect, or give a folder, a "
        ".gguf file, smollm2 or gemma3-270m"
    )


@contextmanager
def _hub(source: Source) -> Iterator[None]:
    """Where the hub cannot be reached, its client reads its cache alone meanwhile, as with HF_HUB_OFFLINE."""
    if source.gguf is not None or Path(source.path).is_dir():
        yield
        return
    from huggingface_hub import constants

    _check_hub(source)
    was = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


def find_device(device: str) -> torch.device:
    """Where a model is put: ``auto`` is the first GPU, else the CPU.

    Raises:
        UserError: It cannot be used.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).cpu()  # only use shows whether it can be used
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--device is {device!r}, which cannot be used: {reason}. Use auto, cpu or cuda") from error
    return torch.device(device)


def find_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Type of the weights: ``auto`` is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: Neither that nor one of ``float32``, ``bfloat16`` and ``float16``.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in known:
        raise UserError(f"--dtype is {dtype!r}; expected auto, {', '.join(known)}")
    return known[dtype]


def hash_files(source: Source) -> str:
    """sha256 over the names and hashes of a model's weight files, in the order of their names.

    Of an adapter's folder those of its base come first. The hub's cache names large files by their sha256, which is
    used where it is there.

    Raises:
        UserError: No weight files are found.
    """
    if source.gguf is not None:
        files = [Path(source.path) / source.gguf]
    else:
        folder = Path(source.path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = ["*.safetensors", "*.bin", ADAPTER]
            folder = Path(snapshot_download(source.path, local_files_only=True, allow_patterns=patterns))
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise UserError(f"{source.name}: no weight files (*.safetensors) in {source.path}")
    digest = hashlib.sha256()
    adapter = _adapter_of(source, files[0].parent)
    if adapter is not None:
        digest.update(f"base {hash_files(adapter.base)}\n".encode())
    for file in files:
        blob = file.resolve().name
        status = file.stat()
        is_hash = re.fullmatch(r"[0-9a-f]{64}", blob)
        content = blob if is_hash else _content_sha256(file.absolute(), status.st_size, status.st_mtime_ns)
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


@cache
def _content_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """As `file_sha256`; a file that was not written meanwhile is read once a process."""
    return file_sha256(file)
