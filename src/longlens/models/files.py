"""Reads facts from a model's files without its weights: configuration, tokenizer, length, adapter, hash."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from longlens.errors import UserError, library_errors, require, shown, shown_value
from longlens.files import content_sha256, read_json
from longlens.models.gguf import is_whole, keep, kept, load_gguf_tokenizer
from longlens.models.resolve import Source, hub_access, resolve

if TYPE_CHECKING:
    from longlens.tokenization import TextEncoder

ADAPTER = "adapter_config.json"
MAX_COUNT = 10_000
"""Maximum number of layers, or of experts per layer, of a transformers model."""
_COUNT = re.compile(r"(n|num|encoder|decoder)_(\w+_)?(layer|expert|block)s?")
# The keys of vLLM (vllm/config/model.py, _get_and_verify_max_len); the transformers classes of GPT-2, OPT and others
# map the first key to the others.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "vocab.*", "*vocab.json")


class Adapter(NamedTuple):
    """The base model of an adapter, and the content of its adapter_config.json."""

    base: Source
    config: dict[str, Any]


def find_adapter(source: Source, folder: Path | None = None) -> Adapter | None:
    """The PEFT adapter in a model's directory; None if there is none.

    Raises:
        UserError: The adapter's configuration has no base model.
    """
    path = (folder or Path(source.path)) / ADAPTER
    if source.gguf is not None or not path.is_file():
        return None
    config = read_json(path, "use an adapter that was saved by peft")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str):
        raise UserError(f"{path} has no base model (base_model_name_or_path): use an adapter that has one")
    return Adapter(resolve(base), config)


def load_config(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of a model; for an adapter that of its base model.

    Raises:
        UserError: The configuration cannot be loaded.
    """
    from transformers import AutoConfig

    adapter = find_adapter(source)
    if adapter is not None:
        return load_config(adapter.base, trust_remote_code=trust_remote_code)
    with loading_errors(source, "model"):
        if source.gguf is None:
            return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
        folder = kept(Path(source.path) / source.gguf, "config")
        if is_whole(folder):
            return AutoConfig.from_pretrained(folder)
        config = AutoConfig.from_pretrained(source.path, gguf_file=source.gguf)
    keep(folder, config.save_pretrained)
    return config


def config_in_force(config: Any) -> Any:
    """The configuration of the model that ``AutoModelForCausalLM`` makes from a configuration. For some multimodal
    models (Llama 4, Qwen3.5) it loads only the text part, which has the text configuration.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from longlens.rope.config import WHOLE

    if config.model_type in WHOLE:
        return config
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text = (getattr(config, "sub_configs", None) or {}).get("text_config")
    is_part = text is not None and getattr(made, "config_class", None) is text
    return config.get_text_config() if is_part else config


def load_max_length(name: str, *, trust_remote_code: bool = False) -> int | None:
    """`model_max_length` for a model's name.

    Raises:
        UserError: The model does not exist.
    """
    return model_max_length(load_config(resolve(name), trust_remote_code=trust_remote_code))


def model_max_length(config: Any) -> int | None:
    """Maximum number of tokens for which a model of this configuration was made; None if unknown (recurrent models).

    With RoPE scaling, ``max(max_position_embeddings, factor * original_max_position_embeddings)``: the model cards of
    Qwen2.5 and Qwen3 add YaRN without changing ``max_position_embeddings``. Dynamic NTK has no target length beyond its
    original one. A linear factor without an original length is ambiguous: ``max_position_embeddings`` is the length
    before scaling in Vicuna 1.5 16k, and the length after scaling in Gemma 3.
    """
    text = config.get_text_config(decoder=True)
    length = next((value for key in _LENGTH_KEYS if _is_count(value := getattr(text, key, None))), None)
    if length is None:
        return None
    scaling = getattr(text, "rope_parameters", None) or {}
    # One for all layers, or one per kind of layer.
    for rope in [scaling, *(value for value in scaling.values() if isinstance(value, dict))]:
        factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
        if rope.get("rope_type") != "dynamic" and _is_count(original) and _is_factor(factor):
            length = max(length, int(factor * original))
    return length


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_factor(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf


def load_decoder(name: str, *, trust_remote_code: bool = False) -> Callable[[Sequence[int]], str]:
    """A function that decodes the ``input_ids`` of rows to text, for `longlens.read_documents`.

    Args:
        name: Name or path of the model whose tokenizer made the ids.
        trust_remote_code: Allow custom code that comes with the model.

    Raises:
        UserError: The tokenizer does not exist.
    """
    from longlens.tokenization import decoder_of

    return decoder_of(load_tokenizer(name, trust_remote_code=trust_remote_code))


def load_encoder(name: str, *, trust_remote_code: bool = False) -> TextEncoder:
    """The tokenizer of a model as a text encoder with spans; the weights are not loaded.

    Raises:
        UserError: The tokenizer does not exist.
    """
    from longlens.tokenization import TextEncoder

    return TextEncoder(load_tokenizer(name, trust_remote_code=trust_remote_code))


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The transformers tokenizer of a model.

    Raises:
        UserError: The tokenizer does not exist.
    """
    from transformers import AutoTokenizer

    source = resolve(name)
    folder = Path(source.path)
    has_vocabulary = (
        source.gguf is not None
        or not folder.is_dir()
        or any(file for pattern in _VOCABULARIES for file in folder.glob(pattern))
    )
    nothing = UserError(
        f"the folder {shown(name)} contains no tokenizer (such as tokenizer.json): copy the model's own tokenizer into "
        "it"
    )
    # Some byte or character tokenizers have no such file.
    config = folder / "tokenizer_config.json"
    generic = (None, "TokenizersBackend", "PreTrainedTokenizerFast")
    if not has_vocabulary and (not config.is_file() or read_json(config).get("tokenizer_class") in generic):
        raise nothing
    with loading_errors(source, "tokenizer"):
        if source.gguf is not None:
            require("gguf", extra="gguf", purpose=f"{name} (a .gguf file)")
            return load_gguf_tokenizer(folder / source.gguf)
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    if not has_vocabulary and tokenizer.vocab_files_names:
        # transformers makes a tokenizer of the configured class with only special tokens.
        raise nothing
    return tokenizer


def hash_files(source: Source) -> str:
    """sha256 over the names and hashes of a model's weight files, in the order of their names.

    For an adapter, the files of its base model come first. The Hub's cache names large files by their sha256, which is
    then used.

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
    adapter = find_adapter(source, files[0].parent)
    if adapter is not None:
        digest.update(f"base {hash_files(adapter.base)}\n".encode())
    for file in files:
        blob = file.resolve().name
        content = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else content_sha256(file)
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


@contextmanager
def loading_errors(source: Source, what: str) -> Iterator[None]:
    """Converts errors of other libraries while a model is loaded or run to one-line errors with a next step."""
    failed = f"cannot load the {what} {shown(source.name)} ({source.note})"
    _check_counts(source)
    with library_errors(failed, partial(_next_step, source)), hub_access(source):
        yield


def _check_counts(source: Source) -> None:
    """Rejects a directory with too many layers or experts in config.json, which transformers would build for hours."""
    path = Path(source.path) / "config.json"
    if source.gguf is not None or not path.is_file():
        return
    again = "check the files of the directory, or use another model"
    parts: list[Mapping[str, Any]] = [read_json(path, again)]
    for part in parts:
        parts += [value for value in part.values() if isinstance(value, dict)]
        for key, value in part.items():
            if isinstance(value, int | float) and value > MAX_COUNT and _COUNT.fullmatch(key):
                found = f"{shown(key)} is {shown_value(value)}, expected at most {MAX_COUNT:,}"
                raise UserError(f"{path}: {found}: {again}")


def _next_step(source: Source, error: BaseException) -> str:
    said, folder = str(error), Path(source.path)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 'use a smaller model, `dtype="bfloat16"` or `device_map="auto"`'
    for option, parameter in {"attn_implementation": "attention", "device_map": "device_map"}.items():
        if option in said:
            return f"set another `{parameter}`, or remove it"
    if "trust_remote_code" in said:
        return "it contains custom code, which runs only with `trust_remote_code=True`"
    if source.gguf is not None:
        return "check the file, or pass the model's directory or Hub id"
    if not folder.is_dir():
        return "check the name, or pass a directory, a .gguf file, smollm2 or gemma3-270m"
    if "ignore_mismatched_sizes" in said:
        return "its weights have other shapes than its config.json describes: copy or download both again"
    if "safetensors" in said and list(folder.glob("*.bin")):
        return "its weights are pickles, which are read only with `allow_pickle=True`"
    if type(error).__name__ == "SafetensorError":
        return "a file of its weights is damaged or truncated: copy or download it again"
    return "check the files of the directory, or use another model"
