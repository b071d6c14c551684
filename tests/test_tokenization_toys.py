"""Small tokenizers of every kind, trained here on a few lines."""

from __future__ import annotations

import io
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast, SentencePieceBackend
from transformers.convert_slow_tokenizer import bytes_to_unicode

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "    def f(x):\r\n        return x + 1  # naïve café",
    "漢字かな交じり文です。漢字の漢字。 한국어 שלום مرحبا",
    "😀 😀😁 👩‍👩‍👧 it's they're we'll   spaces\n\n\n",
] * 20

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EOT = "<|endoftext|>"


@lru_cache
def byte_bpe_backend() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=[EOT], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _copy(backend: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(backend.to_str())


def byte_bpe(*, trim: bool = False, bos: bool = False, normalizer: Any = None, **settings: Any) -> Any:
    backend = _copy(byte_bpe_backend())
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        steps.append(
            processors.TemplateProcessing(single=f"{EOT} $A", special_tokens=[(EOT, backend.token_to_id(EOT))])
        )
    backend.post_processor = processors.Sequence(steps)
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=EOT, eos_token=EOT, **settings)


def word_piece() -> Any:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@lru_cache
def sentencepiece_model(rule: str, kind: str = "bpe") -> bytes:
    model = io.BytesIO()
    plain = {"remove_extra_whitespaces": False} if rule == "identity" else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400 if kind == "bpe" else 340,
        byte_fallback=True,
        model_type=kind,
        normalization_rule_name=rule,
        minloglevel=2,
        **plain,
    )
    return model.getvalue()


def sentencepiece_slow(rule: str = "identity", *, kind: str = "bpe", legacy: bool = True, cls: Any = None) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(sentencepiece_model(rule, kind))
        return (cls or SentencePieceBackend)(
            vocab_file=str(path), unk_token="<unk>", bos_token="<s>", eos_token="</s>", legacy=legacy
        )


def sentencepiece_fast() -> Any:
    """The identity model as Llama-2's tokenizer.json has it: the normaliser puts ▁ before the text."""
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model("identity"))
    vocabulary = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
    merges = [
        pair
        for piece, index in vocabulary.items()
        if not model.is_byte(index) and not model.is_control(index) and not model.is_unknown(index)
        for pair in sorted(
            (
                (piece[:cut], piece[cut:])
                for cut in range(1, len(piece))
                if {piece[:cut], piece[cut:]} <= set(vocabulary)
            ),
            key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]),
        )
    ]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def token_bytes(token: str) -> bytes:
    """Bytes of a token in GPT-2's alphabet, by the table of transformers."""
    table = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes([table[character] for character in token])


class TiktokenLike(PreTrainedTokenizer):
    """As Phi-3-small and Qwen-1 do: tokens are bytes, special tokens strings."""

    def __init__(self, **settings: Any) -> None:
        vocabulary = byte_bpe_backend().get_vocab()
        ranks = {token_bytes(token): index for token, index in vocabulary.items() if token != EOT}
        self.tokenizer = tiktoken.Encoding(
            "toy", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={EOT: vocabulary[EOT]}
        )
        self.decoder: dict[int, Any] = {index: token for token, index in ranks.items()} | {vocabulary[EOT]: EOT}
        self.ids = {token: index for index, token in self.decoder.items()}
        super().__init__(eos_token=EOT, **settings)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.n_vocab

    def get_vocab(self) -> dict[Any, int]:
        return dict(self.ids)

    def tokenize(self, text: str, **_: Any) -> list[Any]:
        return [self.decoder[index] for index in self.tokenizer.encode(self.prepare(text), allowed_special="all")]

    def prepare(self, text: str) -> str:
        return text

    def _convert_token_to_id(self, token: Any) -> int:
        return self.ids[token]

    def _convert_id_to_token(self, index: int) -> Any:
        return self.decoder[index]


class LossyTiktokenLike(TiktokenLike):
    """As GLM-4 does: tokens as strings, in which half characters are replaced."""

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        return [str(self.decoder[i], "utf-8", "replace") if self.decoder[i] != EOT else EOT for i in ids]


class NfcTiktokenLike(TiktokenLike):
    """Normalises first, as Qwen-1 and Phi-3-small do."""

    def prepare(self, text: str) -> str:
        import unicodedata

        return unicodedata.normalize("NFC", text)


class LoweringTiktokenLike(TiktokenLike):
    """Its tokens do not reproduce the text."""

    def prepare(self, text: str) -> str:
        return text.lower()


class PythonByteBpe(PreTrainedTokenizer):
    """A byte-level BPE in Python whose tokens are strings in GPT-2's alphabet."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(eos_token=EOT, **settings)

    @property
    def vocab_size(self) -> int:
        return byte_bpe_backend().get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return byte_bpe_backend().get_vocab()

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return byte_bpe_backend().encode(text).tokens

    def _convert_token_to_id(self, token: str) -> int | None:
        return byte_bpe_backend().token_to_id(token)

    def _convert_id_to_token(self, index: int) -> str | None:
        return byte_bpe_backend().id_to_token(index)
