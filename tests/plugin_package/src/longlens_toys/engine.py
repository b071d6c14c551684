"""An engine: bytes, scored by how often a file has one after the other."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from longlens import Document, UserError
from longlens.scoring.scorer import Request, Result, ScorerInfo
from longlens.settings.options import Engine, Loading
from longlens.tokenization import Encoded


class BigramScorer:
    """log P(byte | the byte before it), from the pairs in a file with one added to each count."""

    def __init__(self, model: str, loading: Loading, engine: Engine) -> None:
        path = Path(model)
        if not path.is_file():
            raise UserError(f"{model!r} is no file; the engine bigram takes a text file, whose pairs it counts")
        content = path.read_bytes()
        data = np.frombuffer(content, np.uint8)
        counts = np.ones((256, 256))
        np.add.at(counts, (data[:-1], data[1:]), 1)
        self._logprobs = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        self.info = ScorerInfo(
            name=path.stem,
            source="counts of a file",
            architecture="Bigram",
            weights_sha256=hashlib.sha256(content).hexdigest(),
            tokenizer_sha256="bytes",
            max_length=None,
            dtype="float32",
            device="cpu",
            attention="none",
            bos_token_id=None,
        )

    def encode(self, document: Document) -> Encoded:
        """A token is a byte; its span is the character that it belongs to."""
        text = document.text
        starts = np.repeat(np.arange(len(text)), [len(character.encode()) for character in text])
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        return Encoded(ids, np.stack([starts, starts + 1], axis=1))

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """An answer to each request, as they come."""
        for request in requests:
            ids = np.asarray(request.token_ids)
            yield Result(request.key, self._logprobs[ids[:-1], ids[1:]][request.start - 1 :])
