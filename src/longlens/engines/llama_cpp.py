"""Runs a ``.gguf`` file in its quantized form with llama.cpp in this process, through llama-cpp-python's C API.

Logits are computed only for scored tokens and stored for one batch at a time, ``n_batch * n_vocab`` floats. In
contrast, the ``Llama`` class with ``logits_all`` stores them for the whole context.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longlens.engines.frame import TOKENIZER_TEXT, Answer, EngineScorer, Greedy, engine_encoder, local_info
from longlens.errors import UserError, require, shown
from longlens.logprobs import DISTRIBUTION_BYTES
from longlens.models.files import load_config, loading_errors
from longlens.models.resolve import resolve
from longlens.scoring.scorer import Distributions, Request, ScorerInfo, check_reference, reference_record
from longlens.scoring.statistics import Statistic, describe
from longlens.settings.options import Engine, Loading
from longlens.tokenization import TextEncoder

BATCH_TOKENS = 512
"""Default number of tokens per call of ``llama_decode``: llama.cpp's own ``n_ubatch``."""
LEAST_CONTEXT = 1024
ATTENTION_BYTES = 256 * 2**20
"""Bound on the size in float32 of a layer's attention matrix, where it is materialized."""
KV_TYPES = {"auto": False, "float16": False, "float32": True}
"""Whether keys, values and attention are float32, for each ``dtype``. llama.cpp's own default is float16."""
_LOG_LEVEL_ERROR = 4  # ggml.h, GGML_LOG_LEVEL_ERROR
_LOGGER = logging.getLogger(__name__)


class _Model:
    """A model of llama.cpp with a context that grows with the requested length; both are freed with the object."""

    def __init__(self, path: Path, *, device: str, batch_tokens: int, threads: int, precise: bool) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._said = _quiet(llama_cpp)
        params = llama_cpp.llama_model_default_params()
        self._on_gpu = _place(llama_cpp, params, device)
        self._handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._handle:
            raise RuntimeError(self._reason("llama.cpp cannot read it"))
        self._free_model = weakref.finalize(self, llama_cpp.llama_model_free, self._handle)
        self._vocab = llama_cpp.llama_model_get_vocab(self._handle)
        self.num_tokens = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.device = "gpu" if self._on_gpu else "cpu"
        self._batch_tokens, self._threads, self._precise = batch_tokens, threads, precise
        self._context: Any = None
        self._free_context: Any = None
        self._length = 0

    @property
    def is_decoder(self) -> bool:
        """Whether the model is a causal decoder: each token attends only to earlier ones, in one pass."""
        api, model = self._api, self._handle
        return not (api.llama_model_has_encoder(model) or api.llama_model_is_diffusion(model))

    def metadata(self, key: str) -> str | None:
        """The value of a metadata key of the file, as text; None if the key is missing."""
        buffer = ctypes.create_string_buffer(256)
        size = self._api.llama_model_meta_val_str(self._handle, key.encode(), buffer, len(buffer))
        return None if size < 0 else buffer.value.decode()

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text from llama.cpp's tokenizer, without special tokens."""
        data = text.encode()
        room = len(data) + 8
        tokens = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), tokens, room, False, True)
        if count < 0:
            raise RuntimeError("llama.cpp cannot tokenize a text")
        return list(tokens[:count])

    def logits(self, token_ids: Sequence[int], start: int) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """Yields logits after the tokens ``start, start + 1, …`` of a sequence, at most `batch_tokens` rows at a time.

        The KV cache is cleared first, and the whole sequence is decoded from its beginning.
        """
        api = self._api
        context = self._open(len(token_ids))
        api.llama_memory_clear(api.llama_get_memory(context), True)
        batch = api.llama_batch_init(self._batch_tokens, 0, 1)
        try:
            for first in range(0, len(token_ids), self._batch_tokens):
                part = token_ids[first : first + self._batch_tokens]
                wanted = [index for index in range(len(part)) if first + index >= start]
                batch.n_tokens = len(part)
                for index, token in enumerate(part):
                    batch.token[index], batch.pos[index] = token, first + index
                    batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                    batch.logits[index] = first + index >= start
                code = api.llama_decode(context, batch)
                if code != 0:
                    raise UserError(
                        f"llama.cpp cannot run {len(token_ids):,} tokens ({self._reason(f'code {code}')}): use a "
                        "smaller `max_length`, or a smaller `batch_tokens`"
                    )
                if not wanted:
                    continue
                rows = np.empty((len(wanted), self.num_tokens), np.float32)
                for row, index in zip(rows, wanted, strict=True):
                    row[:] = np.ctypeslib.as_array(api.llama_get_logits_ith(context, index), (self.num_tokens,))
                yield rows
        finally:
            api.llama_batch_free(batch)

    def _open(self, length: int) -> Any:
        """The context, allocated again if it is too short: its KV cache has its full length from the start."""
        if length <= self._length:
            return self._context
        api = self._api
        if self._free_context is not None:
            self._free_context()
        # Up to twice the old length, so that a corpus of growing lengths causes few allocations.
        self._length = -(-max(length, min(2 * self._length, 2 * length), LEAST_CONTEXT) // 256) * 256
        params = api.llama_context_default_params()
        params.n_ctx = self._length
        params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        if self._precise:
            params.type_k = params.type_v = api.GGML_TYPE_F32
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            heads = int(api.llama_model_n_head(self._handle))
            params.n_ubatch = max(1, min(self._batch_tokens, ATTENTION_BYTES // (4 * heads * self._length)))
        if not self._on_gpu:
            params.offload_kqv = params.op_offload = False
        self._context = api.llama_init_from_model(self._handle, params)
        if not self._context:
            size, self._length, self._free_context = self._length, 0, None
            raise UserError(
                f"llama.cpp lacks memory for a context of {size:,} tokens ({self._reason('out of memory')}): "
                "use a smaller `max_length`"
            )
        self._free_context = weakref.finalize(self, api.llama_free, self._context)
        # Finalizers run last in, first out: the context is freed before its model.
        return self._context

    def _reason(self, otherwise: str) -> str:
        said = [line.strip() for line in "".join(self._said).splitlines() if line.strip()]
        self._said.clear()
        return said[0] if said else otherwise


class LlamaCppScorer(EngineScorer):
    """Scores a ``.gguf`` file with llama.cpp, one sequence after the other."""

    def __init__(self, model: _Model, encoder: TextEncoder, info: ScorerInfo, *, longest: int | None) -> None:
        super().__init__(encoder, info, longest=longest)
        self._model = model
        self._statistics: Sequence[Statistic] = ()
        self._reference: Distributions | None = None

    def observe(self, statistics: Sequence[Statistic], reference: Distributions | None) -> None:
        """Computes statistics of each token under its long context from now on, see `longlens.scoring.statistics`.

        Raises:
            UserError: The reference model has another tokenizer.
        """
        if reference is not None:
            check_reference(self.info, reference.info)
        self._statistics, self._reference = statistics, reference
        self.info = replace(
            self.info,
            statistics=tuple(statistic.name for statistic in statistics),
            reference=None if reference is None else reference_record(reference.info),
        )

    def logits(self, requests: Sequence[Request]) -> Iterator[torch.Tensor]:
        """Logits of the scored tokens of a batch, `longlens.scoring.scorer.Distributions`."""
        rows = max(1, DISTRIBUTION_BYTES // (4 * self._model.num_tokens))
        for request in requests:
            for batch in self._model.logits(request.token_ids[:-1], request.start - 1):
                for start in range(0, len(batch), rows):
                    yield torch.from_numpy(batch[start : start + rows])

    def _answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        for request in requests:
            ids = request.token_ids
            largest = max(ids)
            if largest >= self._model.num_tokens:
                raise UserError(
                    f"the tokenizer returns token {largest}, but {shown(self.info.name)} has "
                    f"{self._model.num_tokens:,} tokens: remove `tokenizer`"
                )
            targets = torch.tensor(ids[request.start :], dtype=torch.int64)
            parts: list[torch.Tensor] = []
            logits = self._noting(self.logits([request]), targets, parts)
            if self._statistics and not request.is_short:
                others = None if self._reference is None else self._reference.logits([request])
                columns = describe(logits, targets, self._statistics, others)
                yield request, torch.cat(parts).numpy(), columns
            else:
                for _ in logits:
                    pass
                yield request, torch.cat(parts).numpy()

    @staticmethod
    def _noting(
        logits: Iterable[torch.Tensor], targets: torch.Tensor, parts: list[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Yields the blocks unchanged and appends the log-probabilities of their targets to ``parts``."""
        place = 0
        for rows in logits:
            parts.append(_token_logprobs(rows, targets[place : place + len(rows)]))
            place += len(rows)
            yield rows

    def _greedy(self, token_ids: Sequence[int]) -> Greedy:
        (rows,) = self._model.logits(token_ids, len(token_ids) - 1)
        best = int(rows[0].argmax())
        logprob = _token_logprobs(torch.from_numpy(rows), torch.tensor([best]))
        return Greedy(best, float(logprob[0]))


def load(name: str, loading: Loading, engine: Engine) -> LlamaCppScorer:
    """Loads a scorer of a ``.gguf`` file. The embedded models ``smollm2`` and ``gemma3-270m`` are such files.

    Args:
        name: The file, or an embedded model.
        loading: ``device`` ``auto`` and ``cuda`` put all layers on the GPU if llama-cpp-python was built for one.
            Weights keep the format of the file. ``dtype`` is that of keys, values and attention: ``auto`` and
            ``float16`` are llama.cpp's default. ``float32`` costs memory and a sixth of the time; its rounding error
            is smaller than that of weights of 16 bits and more.
        engine: ``max_model_len`` bounds the context, whose KV cache is as long as the longest document so far.

    Raises:
        UserError: The file is not a ``.gguf`` file, or llama.cpp cannot read it or splits text differently than the
            tokenizer.
    """
    source = resolve(name)
    if source.gguf is None:
        raise UserError(
            f"`engine=llama-cpp` runs .gguf files, but {shown(name)} is a {source.note}: pass the file, or use "
            "`engine=transformers`"
        )
    llama_cpp = require("llama_cpp", extra="llama-cpp", purpose="`engine=llama-cpp`")
    batch_tokens = loading.batch_tokens or BATCH_TOKENS
    if loading.dtype not in KV_TYPES:
        raise UserError(f"`dtype` is {loading.dtype!r}; expected {', '.join(KV_TYPES)} for `engine=llama-cpp`")
    precise = KV_TYPES[loading.dtype]
    encoder = engine_encoder(name, loading, engine)
    config = load_config(source)
    with loading_errors(source, "model"):
        model = _Model(
            Path(source.path) / source.gguf,
            device=loading.device,
            batch_tokens=batch_tokens,
            threads=torch.get_num_threads(),
            precise=precise,
        )
    if not model.is_decoder:
        raise UserError(f"{shown(name)} is not a causal language model, which longlens requires: use another file")
    _check_tokenizer(name, model, encoder)
    info = local_info(
        source,
        config,
        encoder,
        dtype=_file_type(model.metadata("general.file_type")) + (", float32 attention" if precise else ""),
        device=model.device,
        attention="llama.cpp",
        engine=f"llama-cpp-python {llama_cpp.__version__}",
    )
    return LlamaCppScorer(model, encoder, info, longest=engine.max_model_len)


def _token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _check_tokenizer(name: str, model: _Model, encoder: TextEncoder) -> None:
    """Compares the tokenizer with llama.cpp's: scores of text split differently than in training mean little."""
    ours, theirs = encoder.encode(TOKENIZER_TEXT).token_ids.tolist(), model.tokenize(TOKENIZER_TEXT)
    if ours == theirs:
        return
    shorter = min(len(ours), len(theirs))
    at = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    raise UserError(
        f"the tokenizer of {shown(name)} and llama.cpp tokenize a text differently from token {at} "
        f"({ours[at : at + 3]} and {theirs[at : at + 3]}): pass the model's own `tokenizer`, or use "
        "`engine=transformers`"
    )


def _file_type(value: str | None) -> str:
    """Storage type of most of a file's tensors, such as ``q4_1``, from ``general.file_type``."""
    from gguf import LlamaFileType

    known = {str(int(kind)): kind.name for kind in LlamaFileType}
    named = "gguf" if value is None else known.get(value, f"gguf-{value}")
    return named.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def _place(llama_cpp: Any, params: Any, device: str) -> bool:
    """Sets the device of the layers and returns whether it is a GPU."""
    kind, _, number = device.partition(":")
    can = bool(llama_cpp.llama_supports_gpu_offload())
    if kind not in ("auto", "cpu", "cuda") or (kind == "cuda" and not can):
        raise UserError(
            f"`device` is {device!r}; expected auto or cpu"
            + (", cuda or cuda:1" if can else " (llama-cpp-python is built without a GPU: reinstall it with one)")
        )
    on_gpu = can and kind != "cpu"
    params.n_gpu_layers = -1 if on_gpu else 0
    if number:
        params.split_mode, params.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, int(number)
    return on_gpu


_CALLBACKS: list[Any] = []
"""Log callbacks of llama.cpp, kept for the lifetime of the process."""
_ERRORS: list[str] = []


def _quiet(llama_cpp: Any) -> list[str]:
    """Sends the log of llama.cpp to the logger of longlens, and its errors to the returned list."""
    if not _CALLBACKS:

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # has no types
        def write(level: int, text: bytes, _: Any) -> None:
            said = text.decode("utf-8", "replace")
            if level == _LOG_LEVEL_ERROR:
                _ERRORS.append(said)
            _LOGGER.debug("%s", said.rstrip())

        _CALLBACKS.append(write)
        llama_cpp.llama_log_set(write, ctypes.c_void_p(0))
    _ERRORS.clear()
    return _ERRORS
