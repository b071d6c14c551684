"""Adapts backends of lm-evaluation-harness so that they are safe for long prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, cast

import torch
from lm_eval.api.registry import get_model
from lm_eval.models import MODEL_MAPPING
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria

from longlens.bench.engine import HF, EngineSettings, PromptLimit, describe
from longlens.bench.lm_eval.engine import PENALTY, HarnessEngine, quiet
from longlens.errors import UserError, one_line, shown_value
from longlens.models.forward import Forward, generation_record, greedy, pack, running
from longlens.tokenization import own_bos

HF_ARGUMENTS = ("logits_cache", "max_batch_size", "mixed_precision_dtype", "prefix_token_id", "softmax_dtype")
"""Arguments of the Hugging Face backend other than those for loading a model or for the chat template."""
FULL_LOGITS_BYTES = 2**28
"""In the harness's own tasks, continuations whose logits need more memory are scored by `ContinuationScorer`."""


class ExactPairs:
    """A mixin that prevents a backend from moving the boundary between a prompt and its continuation.

    Attributes:
        exact_pairs: False for the harness's own tasks, which rely on spaces being moved to the continuation.
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
        return before, whole[len(before) :]  # the boundary was checked with the same tokenizer


class LensHFLM(ExactPairs, HFLM):  # type: ignore[misc]
    """The Hugging Face backend, without logits of long sequences, and with a record of which answers were truncated.

    Attributes:
        ended: For the last batch, whether each answer ended at an end token or a stop sequence.
        scorer: Scores continuations of long prompts.
    """

    ended: list[bool]
    scorer: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ended = []
        self.forward = Forward(self.model)

    @property
    def generation(self) -> dict[str, Any]:
        """The effective generation settings, unless a task of lm-evaluation-harness sets others."""
        return generation_record(self.model, **self._end_settings())

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """See `lm_eval.api.model.LM`; an answer does not depend on other prompts or on the model's own settings."""
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        rows = [self.tok_encode(request.args[0]) for request in requests]
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        answers = [""] * len(requests)
        for numbers in kinds.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks)
            stop, tokens = handle_stop_sequences(options.pop("until", None), eos=eos), options.pop("max_gen_toks")
            room = self.max_length - tokens
            if room < 1:
                raise UserError(
                    f"an answer of {tokens:,} tokens leaves no room for a prompt within {self.max_length:,}"
                )
            # The prompts of longlens are checked against the limit before; others are truncated as in
            # lm-evaluation-harness.
            prompts = [rows[number][-room:] for number in numbers]
            for batch in self._batches([len(prompt) + tokens for prompt in prompts]):
                written = self._written([prompts[place] for place in batch], tokens, stop, options)
                self.ended = [self._has_ended(row, stop) for row in written]
                for place, row in zip(batch, written, strict=True):
                    text = postprocess_generated_text(self.tok_decode(row), stop=stop, think_end_token=None)
                    answers[numbers[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[numbers[place]].args, text)
        return answers

    def _written(
        self, prompts: list[list[int]], tokens: int, stop: list[str], options: Mapping[str, Any]
    ) -> list[list[int]]:
        """Returns the generated tokens of each prompt."""
        from transformers import GenerationConfig

        unknown = sorted(set(options) - set(vars(GenerationConfig())))
        if unknown:
            raise UserError(f"transformers has no generation setting {shown_value(unknown[0])}, which the task sets")
        settings: dict[str, Any] = {**options, "max_new_tokens": tokens}
        if not settings.get("do_sample"):
            settings.pop("temperature", None)  # 0 means greedy decoding
        autocast = torch.autocast(
            self.device.type, self.mixed_precision_dtype, enabled=self.mixed_precision_dtype is not None
        )
        criteria = stop_sequences_criteria(self.tokenizer, stop, max(map(len, prompts)), len(prompts))
        with running(self.model), autocast, greedy(self.model, **self._end_settings(), **settings) as config:
            return self.forward.generate(prompts, config, stopping_criteria=criteria)

    def _end_settings(self) -> dict[str, Any]:
        named = self.model.generation_config.eos_token_id
        ends = {*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id} - {None}
        return {"eos_token_id": sorted(ends), "pad_token_id": min(ends, default=0)}

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yields batches of prompt indices; with ``auto``, batches depend on the tokens, answers included."""
        if len(lengths) == 1 or self.batch_size == 1 or not self.forward.generates_batches:
            return pack(lengths, pads=False, rows=1)
        pads = len(set(lengths)) == 1 or self.forward.pads_left
        if self.batch_size == "auto":
            return pack(lengths, pads=pads, tokens=self.scorer._batch_tokens)
        return pack(lengths, pads=pads, rows=self.batch_size)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        """Returns the number of rows whose logits fit; the harness tries 64 rows of the model's maximum length."""
        length = self.max_length if not requests else len(requests[pos][1]) + len(requests[pos][2])
        return max(1, min(int(self.max_batch_size), FULL_LOGITS_BYTES // (length * self._row_bytes)))

    @property
    def _row_bytes(self) -> int:
        return 4 * int(self.model.get_input_embeddings().weight.shape[0])

    def _has_ended(self, tokens: list[int], stop: Sequence[str]) -> bool:
        if not set(self._end_settings()["eos_token_id"]).isdisjoint(tokens):
            return True
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return any(term in text for term in stop if term)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        lengths = [(len(before) + len(after)) * self._row_bytes for _, before, after in requests]
        # The harness's own tasks keep its own computation if the logits fit.
        is_long = [self.exact_pairs or length > FULL_LOGITS_BYTES for length in lengths]
        short = [request for request, long in zip(requests, is_long, strict=True) if not long]
        answers = iter(super()._loglikelihood_tokens(short, disable_tqdm, override_bs) if short else ())
        long_ones = iter(self._scored([request for request, long in zip(requests, is_long, strict=True) if long]))
        return [next(long_ones if long else answers) for long in is_long]

    def _scored(self, requests: Sequence[Any]) -> Iterator[tuple[float, bool]]:
        """Scores requests; those with the same prompt must be adjacent, and the model runs each prompt once."""
        for before, group in groupby(requests, key=lambda request: request[1]):
            pairs = [(pair, after) for pair, _, after in group]
            for (pair, _), scored in zip(
                pairs, self.scorer.continuations(before, [after for _, after in pairs]), strict=True
            ):
                answer = (scored.logprob, scored.is_greedy)
                if pair is not None:
                    self.cache_hook.add_partial("loglikelihood", pair, answer)
                yield answer


def open_engine(settings: EngineSettings, limit: PromptLimit) -> HarnessEngine:
    """Loads a model, or prepares requests to a server.

    Raises:
        UserError: The model or backend does not exist, or its arguments are wrong.
    """
    if settings.backend not in MODEL_MAPPING:
        known = ", ".join(sorted(MODEL_MAPPING))
        raise UserError(f"no backend {settings.backend!r}; lm-evaluation-harness has {known}")
    return (_open_hf if settings.backend == HF else _open_other)(settings, limit)


def _open_hf(settings: EngineSettings, limit: PromptLimit) -> HarnessEngine:
    from longlens.models import load_transformers
    from longlens.scoring.transformers import ContinuationScorer

    for name in settings.arguments:
        if name not in HF_ARGUMENTS:  # the backend would ignore them, because the model is already loaded
            raise UserError(f"`arguments` has {name}: the backend 'hf' accepts {', '.join(HF_ARGUMENTS)}")
    loaded = load_transformers(settings.model, settings.loading)
    arguments = {"max_length": limit.max_length, "batch_size": settings.batch_size}
    with _explained(settings), quiet():
        lm = LensHFLM(pretrained=loaded.model, tokenizer=limit.tokenizer, **arguments, **settings.arguments)
    info = loaded.info
    lm.scorer = ContinuationScorer(loaded.model, limit.tokenizer, weights_sha256=info.weights_sha256)
    names = ("source", "architecture", "device", "attention")
    described = {name: getattr(info, name) for name in names} | info.identity.to_json() | {"generation": lm.generation}
    return HarnessEngine(lm, settings, limit, described)


def _open_other(settings: EngineSettings, limit: PromptLimit) -> HarnessEngine:
    server = settings.server
    arguments: dict[str, Any] = {"batch_size": settings.batch_size, "add_bos_token": bool(own_bos(limit.tokenizer))}
    if server:
        path = "chat/completions" if settings.is_chat else "completions"
        arguments |= {"model": server.name, "base_url": f"{server.address}/{path}", "tokenizer_backend": "none"}
        # The backend's own maximum is one less, because it reserves a token for generation.
        arguments |= {"max_length": limit.max_length + 1}
    else:
        arguments |= {"pretrained": settings.model, "max_model_len": limit.max_length}
        arguments |= {} if settings.loading.dtype == "auto" else {"dtype": settings.loading.dtype}
    with _explained(settings), quiet():
        base = get_model(settings.backend)
        given = {name: value for name, value in settings.arguments.items() if name != PENALTY}
        own = _server_key(settings.api_key) if server else {}
        lm = type(f"Exact{base.__name__}", (ExactPairs, base), own)(**(arguments | given))
    if server and not settings.is_chat:
        # Otherwise the backend would load a tokenizer from the Hub; this is the tokenizer that counts lengths.
        lm.tokenizer, lm.tokenizer_backend = limit.tokenizer, "huggingface"
        lm.tokenized_requests = bool(given.get("tokenized_requests", True))
    return HarnessEngine(lm, settings, limit, describe(settings, limit) or {})


def _server_key(key: str) -> dict[str, Any]:
    """Returns class attributes that set this key; otherwise the backend sends the environment's key to any host."""

    def header(lm: Any) -> dict[str, str]:
        return lm._header or ({"Authorization": f"Bearer {key}"} if key else {})

    return {"api_key": key, "header": property(header)}


@contextmanager
def _explained(settings: EngineSettings) -> Iterator[None]:
    """Converts errors of a backend about its arguments or a missing package to one line."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, ModuleNotFoundError, ImportError, RuntimeError, OSError) as error:
        reason = settings.redact(one_line(error))
        raise UserError(
            f"the backend {settings.backend!r} cannot load {settings.model}: {reason}: check the model, "
            "`arguments` and that the backend's package is installed"
        ) from error
