"""Backends of lm-evaluation-harness, made safe for long prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from lm_eval.api.registry import get_model
from lm_eval.models import MODEL_MAPPING
from lm_eval.models.huggingface import HFLM

from longlens.bench.engine import HF, EngineSettings, Texts, own_bos
from longlens.bench.lm_eval.engine import PENALTY, HarnessEngine, quiet
from longlens.errors import UserError
from longlens.runs.identity import ModelIdentity

HF_ARGUMENTS = ("logits_cache", "max_batch_size", "mixed_precision_dtype", "prefix_token_id", "softmax_dtype")
"""Of the Hugging Face backend: what does not belong to loading a model or to the chat template, which are ours."""
FULL_LOGITS_BYTES = 2**28
"""Continuations in lm-evaluation-harness's own tasks whose logits would take more are scored as ours are."""


class Exact:
    """Keeps a backend from moving the border of a prompt and its continuation; mixed into each of them.

    Attributes:
        exact_pairs: Off for lm-evaluation-harness's own tasks, which count on its moving spaces to the continuation.
    """

    exact_pairs = True
    adds_bos = False

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.exact_pairs:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)  # type: ignore[misc]
            return pair
        encode = cast(Any, self).tok_encode
        before = list(encode(context, add_special_tokens=self.adds_bos))
        whole = list(encode(context + continuation, add_special_tokens=self.adds_bos))
        return before, whole[len(before) :]  # the border was checked with the same tokenizer


class LensHFLM(Exact, HFLM):  # type: ignore[misc]
    """The Hugging Face backend, without logits of long sequences, and it knows which answers were cut short.

    Attributes:
        ended: Of the last batch: whether each answer ended by itself or by a stop.
        scorer: Scores continuations of long prompts.
    """

    ended: list[bool]
    scorer: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ended = []

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        written = super()._model_generate(context, max_length, stop, **options)
        self.ended = [self._has_ended(row[context.shape[1] :].tolist(), stop) for row in written]
        return written

    def _has_ended(self, tokens: list[int], stop: Sequence[str]) -> bool:
        ends = self.model.generation_config.eos_token_id
        ids = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        if not ids.isdisjoint(tokens):
            return True
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return any(term in text for term in stop if term)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        row_bytes = 4 * self.model.get_input_embeddings().weight.shape[0]
        lengths = [(len(before) + len(after)) * row_bytes for _, before, after in requests]
        # lm-evaluation-harness's own tasks keep its own arithmetic where that fits.
        is_long = [self.exact_pairs or length > FULL_LOGITS_BYTES for length in lengths]
        short = [request for request, long in zip(requests, is_long, strict=True) if not long]
        answers = iter(super()._loglikelihood_tokens(short, disable_tqdm, override_bs) if short else ())
        long_ones = iter(self._scored([request for request, long in zip(requests, is_long, strict=True) if long]))
        return [next(long_ones if long else answers) for long in is_long]

    def _scored(self, requests: Sequence[Any]) -> Iterator[tuple[float, bool]]:
        """Requests of one prompt stand together, and their prompt goes through the model once."""
        for before, group in groupby(requests, key=lambda request: request[1]):
            pairs = [(pair, after) for pair, _, after in group]
            for (pair, _), scored in zip(
                pairs, self.scorer.continuations(before, [after for _, after in pairs]), strict=True
            ):
                answer = (scored.logprob, scored.is_greedy)
                if pair is not None:
                    self.cache_hook.add_partial("loglikelihood", pair, answer)
                yield answer


def open_engine(settings: EngineSettings, texts: Texts) -> HarnessEngine:
    """Loads a model, or makes ready to ask a server.

    Raises:
        UserError: No such model or backend, or its arguments are wrong.
    """
    if settings.backend not in MODEL_MAPPING:
        known = ", ".join(sorted(MODEL_MAPPING))
        raise UserError(f"no backend {settings.backend!r}; lm-evaluation-harness has {known}")
    return (_open_hf if settings.backend == HF else _open_other)(settings, texts)


def _open_hf(settings: EngineSettings, texts: Texts) -> HarnessEngine:
    from longlens.models import load_scorer
    from longlens.scoring.continuations import ContinuationScorer

    loaded = load_scorer(
        settings.model,
        dtype=settings.dtype,
        device=own_device(settings.device),
        device_map=settings.device_map,
        attention=settings.attention,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )
    for name in settings.arguments:
        if name not in HF_ARGUMENTS:  # it would take and ignore them, since the model is loaded already
            raise UserError(f"--model-arg {name}: the backend 'hf' takes {', '.join(HF_ARGUMENTS)}")
    arguments = {"max_length": texts.max_length, "batch_size": settings.batch_size}
    with _explained(settings), quiet():
        lm = LensHFLM(pretrained=loaded.model, tokenizer=texts.tokenizer, **arguments, **settings.arguments)
    info = loaded.info
    lm.scorer = ContinuationScorer(loaded.model, texts.tokenizer, weights_sha256=info.weights_sha256)
    names = ("source", "architecture", "device", "attention")
    described = {name: getattr(info, name) for name in names} | info.identity.to_json()
    return HarnessEngine(lm, settings, texts, described)


def own_device(device: str) -> str:
    """The device of this process: with ``auto``, each of the processes that torchrun started has a GPU of its own."""
    import torch

    if device != "auto" or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ['LOCAL_RANK']}"


def _open_other(settings: EngineSettings, texts: Texts) -> HarnessEngine:
    from longlens.models import identify

    server = settings.server
    arguments: dict[str, Any] = {"batch_size": settings.batch_size, "add_bos_token": bool(own_bos(texts.tokenizer))}
    if server:
        path = "chat/completions" if settings.is_chat else "completions"
        arguments |= {"model": server.name, "base_url": f"{server.address}/{path}", "tokenizer_backend": "none"}
        # Its own maximum is one less, for a token to write.
        arguments |= {"max_length": texts.max_length + 1}
    else:
        arguments |= {"pretrained": settings.model, "max_model_len": texts.max_length}
        arguments |= {} if settings.dtype == "auto" else {"dtype": settings.dtype}
    with _explained(settings), quiet():
        base = get_model(settings.backend)
        given = {name: value for name, value in settings.arguments.items() if name != PENALTY}
        lm = type(f"Exact{base.__name__}", (Exact, base), {})(**(arguments | given))
    if server and not settings.is_chat:
        # It would load a tokenizer by its name on the hub; this is the one that counts.
        lm.tokenizer, lm.tokenizer_backend = texts.tokenizer, "huggingface"
        lm.tokenized_requests = bool(given.get("tokenized_requests", True))
    described = {"source": settings.backend if server is None else server.address}
    identity = ModelIdentity(dtype=settings.dtype)
    if server is None and Path(settings.model).is_dir():
        identity = identify(settings.model, texts.tokenizer, settings.dtype, settings.trust_remote_code)
    return HarnessEngine(lm, settings, texts, described | identity.to_json())


@contextmanager
def _explained(settings: EngineSettings) -> Iterator[None]:
    """Turns what a backend says of its arguments, or of a package that it lacks, into one line."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, ModuleNotFoundError, ImportError, RuntimeError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the backend {settings.backend!r} cannot be made ready for {settings.model}: {reason}: check the model, "
            "--model-args and that the backend's package is installed"
        ) from error
