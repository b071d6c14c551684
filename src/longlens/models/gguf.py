"""Reads the tokenizer of a ``.gguf`` file, and caches what is read from the file, which takes tens of seconds.

A file contains the vocabulary, the merges and the name of a pre-tokenizer (``tokenizer.ggml.pre``), but not the rule
with that name. The rules here are those of llama.cpp (src/llama-vocab.cpp, ``llm_tokenizer_bpe``), where known in the
form of the model's own tokenizer.json. transformers knows some of the names, and splits by GPT-2's rule for the others.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Collection
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from longlens.errors import LonglensWarning, UserError, library_errors, shown, shown_value
from longlens.files import cache_folder, content_sha256, write_json

KEPT_BYTES = 2**29
"""Largest file whose conversion is cached; as float32 its weights are up to eight times as large."""
LEFT_SECONDS = 3600.0
"""Age of a temporary directory after which its process is assumed to have been killed."""
_RECORD = "checksums.json"
_FORMAT = 1
"""Version of the cache format, incremented with every change of the cached files."""
_LOGGER = logging.getLogger(__name__)
_PREFIX = "tokenizer.ggml."
_LISTS = ("tokens", "merges", "token_type")
_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}%s]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}%s]"


def _cased(digits: str, contraction: str = "", less: str = "", end: str = "/") -> str:
    upper, lower, start = _UPPER % less, _LOWER % less, r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{start}{upper}*{lower}+{contraction}|{start}{upper}+{lower}*{contraction}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{end}]*|{_SPACES}"
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT, _THREE = r"\p{N}", r"\p{N}{1,3}"
_LLAMA3, _QWEN2 = _WORDS % _THREE, _WORDS % _DIGIT
_GPT4O = _cased(_THREE, _CONTRACTIONS + "?")
_HAN = "&&[^\\p{Han}]"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_PUNCTUATED = (  # line breaks themselves stand in the classes, as in the models' own files
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"


class _Rule(NamedTuple):
    """Pre-tokenization before byte-level BPE.

    Attributes:
        patterns: Regular expressions, each applied to the pieces from the one before.
        nfc: Whether the text is normalized to NFC first. llama.cpp does not do this; the models' own tokenizers do.
        ignore_merges: Whether a piece in the vocabulary is one token regardless of the merges.
        adds_bos: Whether a text begins with BOS by default; the file can override this.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_RULES = {
    name: rule
    for names, rule in (
        (
            "gpt-2 phi-2 gigachat a.x-4.0 mellum modern-bert mpt jais trillion granite-docling exaone4 jina-es jina-de "
            "jina-v1-en jina-v2-code jina-v2-es jina-v2-de roberta-bpe",
            _Rule((_GPT2,)),
        ),
        ("olmo", _Rule((_GPT2,), nfc=True)),
        ("smollm starcoder refact codeshell exaone minerva-7b", _Rule((_DIGIT, _GPT2))),
        ("command-r", _Rule((_DIGIT, _GPT2), nfc=True)),
        (
            "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
            _Rule((_LLAMA3,), ignore_merges=True, adds_bos=True),
        ),
        ("dbrx smaug-bpe glm4 chatglm-bpe", _Rule((_LLAMA3,))),
        ("qwen2", _Rule((_QWEN2,), nfc=True)),
        ("deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _Rule((_QWEN2,))),
        (
            "qwen35",
            _Rule(
                (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,),
                nfc=True,
            ),
        ),
        ("gpt-4o llama4 kanana2 talkie minimax-m2", _Rule((_GPT4O,))),
        ("tiny_aya", _Rule((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))),
        ("tekken", _Rule((_cased(_DIGIT),), ignore_merges=True, adds_bos=True)),
        (
            "kimi-k2",
            _Rule((r"\p{Han}+|" + _cased(_THREE, _CONTRACTIONS + "?", less=_HAN, end=""),)),
        ),
        ("deepseek-v3 hunyuan-dense joyai-llm", _Rule((_THREE, "[一-龥぀-ゟ゠-ヿ]+", _PUNCTUATED))),
        ("deepseek-coder", _Rule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT))),
        (
            "deepseek-llm",
            _Rule(
                (
                    "[\r\n]",
                    rf"\s?[{_DEEPSEEK_LETTERS}]+",
                    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                    r"\s+$",
                    _CJK,
                    _DIGIT,
                )
            ),
        ),
        ("falcon", _Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
        ("bloom poro-chat gpt3-finnish", _Rule((_BLOOM,))),
        ("viking", _Rule((_BLOOM, _DIGIT))),
        (
            "bailingmoe bailingmoe2 llada-moe",
            _Rule(
                (
                    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
                    r"|\s+(?!\S)|\s+",
                )
            ),
        ),
        (
            "seed-coder",
            _Rule((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,)),
        ),
        ("default", _Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    )
    for name in names.split()
}


def kept(file: Path, part: str) -> Path | None:
    """The cache directory for data from a file, which may be read only if `is_whole`.

    It depends on the content of the file and on the version of transformers. None for a large file, or if the user has
    no home directory.

    Args:
        file: The ``.gguf`` file.
        part: ``config``, ``tokenizer`` or ``model``.
    """
    try:
        folder = cache_folder() / "gguf"
    except RuntimeError:  # for example a container's user without an entry in passwd
        return None
    if file.stat().st_size > KEPT_BYTES:
        return None
    return folder / f"{content_sha256(file)[:32]}-{metadata.version('transformers')}-{_FORMAT}" / part


def is_whole(folder: Path | None) -> TypeGuard[Path]:
    """Whether a cache directory exists and its bytes are those that were written; otherwise it is made again."""
    if folder is None:
        return False
    try:
        return bool(_checksums(folder) == json.loads((folder / _RECORD).read_bytes()))
    except (OSError, ValueError):
        return False


def _checksums(folder: Path) -> dict[str, int]:
    """Checksums of the files of a directory by name. They detect damage in a tenth of the time of a hash."""
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name == _RECORD:
            continue
        sums[path.name] = 0
        with path.open("rb") as file:
            while block := file.read(2**22):
                sums[path.name] = zlib.crc32(block, sums[path.name])
    return sums


def keep(folder: Path | None, write: Callable[[Path], object]) -> None:
    """Makes a directory of the cache atomically; if it cannot be written, the file is read again next time.

    Incomplete directories are replaced, and leftovers of killed processes are removed.

    Args:
        folder: A directory from `kept`; None to cache nothing.
        write: Writes the files into the directory that is passed to it, like ``save_pretrained``.
    """
    if folder is None:
        return
    step = "the .gguf file is read again next time"
    try:
        # Each library reports a full disk in its own way.
        with library_errors(f"{folder} is not cached", step):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left in folder.parent.glob(f".{folder.name}-*"):
                if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
                made = Path(temporary) / folder.name
                write(made)
                write_json(made / _RECORD, _checksums(made))
                if folder.is_dir() and not is_whole(folder):
                    os.rename(folder, Path(temporary) / "damaged")
                os.rename(made, folder)
    except UserError as error:
        if not is_whole(folder):  # else another process was faster
            _LOGGER.info("%s", error)


def load_gguf_tokenizer(path: Path) -> Any:
    """The transformers tokenizer of a file.

    Raises:
        UserError: The file uses a pre-tokenizer whose rule is unknown here, so that its tokens would differ from the
            model's own.
    """
    from transformers import AutoTokenizer

    folder = kept(path, "tokenizer")
    if is_whole(folder):
        return AutoTokenizer.from_pretrained(folder)
    said = _read_metadata(path, [*(_PREFIX + name for name in _LISTS)])
    if said.get(_PREFIX + "model") == "gpt2":
        tokenizer = _byte_level(path, said)
        folder = folder if _PREFIX + "pre" in said else None  # without it there is a warning, every time
    else:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if str(said.get("general.architecture", "")).startswith("gemma"):
            _prefer_runs(tokenizer)
    keep(folder, tokenizer.save_pretrained)
    return tokenizer


def _byte_level(path: Path, metadata: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata[_PREFIX + "tokens"]
    kinds = metadata.get(_PREFIX + "token_type", [])
    rule = _find_rule(path, metadata)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get(_PREFIX + "merges", [])]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=rule.ignore_merges)
    )
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    splits = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == _DIGIT
        else pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in rule.patterns
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=False)
            if kind in (_CONTROL, _USER_DEFINED) and token
        ]
    )
    special = {
        f"{name}_token": tokens[metadata[f"{_PREFIX}{key}_token_id"]]
        for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if f"{_PREFIX}{key}_token_id" in metadata
    }
    adds_bos = metadata.get(_PREFIX + "add_bos_token", rule.adds_bos) and "bos_token" in special
    adds_eos = metadata.get(_PREFIX + "add_eos_token", False) and "eos_token" in special
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        add_bos_token=adds_bos,
        add_eos_token=adds_eos,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _find_rule(path: Path, metadata: dict[str, Any]) -> _Rule:
    name = metadata.get(_PREFIX + "pre")
    if name in (None, "default"):
        warnings.warn(
            f"{shown(path)} has no pre-tokenizer (tokenizer.ggml.pre): tokens may differ from the model's own; "
            "use the model's directory or Hub id if available",
            LonglensWarning,
            stacklevel=4,
        )
    elif name not in _RULES:
        raise UserError(
            f"{shown(path)} has the pre-tokenizer {shown_value(name)}, which longlens does not know, so tokens could "
            "differ from the model's own: use the model's directory or Hub id"
        )
    return _RULES[name or "default"]


def _prefer_runs(tokenizer: Any) -> None:
    """Moves the merges of repeated whitespace to the front, the longest ones first.

    SentencePiece first matches such repetitions, which are user-defined symbols of Gemma, the longest first.
    transformers orders them by their ids, so that 36 spaces become 16 and 20 instead of 31 and 5.
    """
    from tokenizers import models

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]

    def order(merge: tuple[str, str]) -> int:
        token = "".join(merge)
        return -len(token) if token[0] in "▁\n\t" and token == token[0] * len(token) else 0

    tokenizer.backend_tokenizer.model = models.BPE(
        model["vocab"],
        sorted(map(tuple, model["merges"]), key=order),
        unk_token=model["unk_token"],
        fuse_unk=model["fuse_unk"],
        byte_fallback=model["byte_fallback"],
    )


_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _LIST = 8, 9


def _read_metadata(path: Path, lists: Collection[str]) -> dict[str, Any]:
    """The metadata of a file, with only the requested lists, in the format of docs/gguf.md of ggml.

    Raises:
        ValueError: The file is not a GGUF file of version 2 or 3.
        struct.error: The file is truncated.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0

        def take(layout: str) -> Any:
            nonlocal at
            (value,) = struct.unpack_from(layout, data, at)
            at += struct.calcsize(layout)
            return value

        def take_string() -> str:
            nonlocal at
            length = take("<Q")
            at += length
            if at > len(data):
                raise struct.error("a string extends past the end of the file")
            return data[at - length : at].decode("utf-8", "replace")

        def take_value(kind: int) -> Any:
            if kind == _STRING:
                return take_string()
            if kind not in _FORMATS:
                raise ValueError(f"metadata of an unknown type, {kind}")
            return take(_FORMATS[kind])

        if take("<4s") != b"GGUF":
            raise ValueError("it is not a GGUF file (it does not begin with GGUF)")
        if (version := take("<I")) not in (2, 3):
            raise ValueError(f"it is a GGUF file of version {version}; expected 2 or 3")
        take("<Q")  # number of tensors
        metadata = {}
        for _ in range(take("<Q")):
            key, kind = take_string(), take("<I")
            if kind != _LIST:
                metadata[key] = take_value(kind)
                continue
            kind, count = take("<I"), take("<Q")
            if key in lists:
                metadata[key] = [take_value(kind) for _ in range(count)]
            elif kind in _FORMATS:
                at += count * struct.calcsize(_FORMATS[kind])
            else:
                for _ in range(count):
                    take_value(kind)
        return metadata
