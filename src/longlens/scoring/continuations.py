"""Several continuations of one long text: their log-probabilities, and whether greedy decoding would write them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longlens.logprobs import greedy_tokens, token_logprobs
from longlens.models.forward import running
from longlens.scoring.transformers import CHUNK_TOKENS, TransformersScorer


class Continuation(NamedTuple):
    """A continuation of a text.

    Attributes:
        logprob: Sum of its tokens' log-probabilities, in nats.
        is_greedy: Whether each of its tokens is the most likely one after those before it.
    """

    logprob: float
    is_greedy: bool


class ContinuationScorer(TransformersScorer):
    """Scores continuations of a text, which goes through the model once for all of them.

    With p the text and c a continuation, the answer is that of one pass over ``p + c``::

        logits = model(p + c).logits[len(p) - 1 : -1]
        logprob = logits.float().log_softmax(-1).gather(-1, c).sum()
        is_greedy = (logits.argmax(-1) == c).all()

    but logits exist for the continuation's tokens alone, and the key-value cache of p serves each continuation. Each
    one takes a pass of its own where the model has no such cache (state-space and hybrid models), or its rotary
    frequencies depend on the length of the whole (dynamic NTK, LongRoPE).
    """

    def continuations(self, text: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Continuation]:
        """One answer for each continuation.

        Args:
            text: Tokens, at least one, special ones included.
            continuations: Tokens, each at least one.
        """
        with running(self.model):
            if len(continuations) == 1 or not self._forward.has_cache:
                return [self._alone(text, tokens) for tokens in continuations]
            cache = self._read(text[:-1])
            answers: list[Continuation] = []
            at_once = max(1, self._batch_tokens // max(1, len(text)))
            for first in range(0, len(continuations), at_once):
                answers += self._beside(cache, text[-1], continuations[first : first + at_once])
            return answers

    def _alone(self, text: Sequence[int], tokens: Sequence[int]) -> Continuation:
        input_ids = torch.tensor([[*text, *tokens]], dtype=torch.int64, device=self._device)
        keep = torch.zeros_like(input_ids, dtype=torch.bool)
        keep[0, len(text) - 1 : -1] = True
        return self._answer(self._hidden(input_ids, keep), tokens)

    def _read(self, text: Sequence[int]) -> Any:
        """The key-value cache of a text."""
        cache = self._forward.new_cache()
        ids = torch.tensor([list(text)], dtype=torch.int64, device=self._device)
        chunk = self._chunk_tokens(1, len(text)) if self._window is not None else max(CHUNK_TOKENS, len(text))
        for start in range(0, len(text), max(1, chunk)):
            self._forward.extend(ids[:, start : start + chunk], cache)
        return cache

    def _beside(self, cache: Any, last: int, continuations: Sequence[Sequence[int]]) -> list[Continuation]:
        """All of them as one batch after the cache, padded on the right, where no token before sees it."""
        longest = max(map(len, continuations))
        rows = [[last, *tokens[:-1], *[0] * (longest - len(tokens))] for tokens in continuations]
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(len(rows))
        input_ids = torch.tensor(rows, dtype=torch.int64, device=self._device)
        states = self._forward.extend(input_ids, own)
        return [self._answer(row[: len(tokens)], tokens) for row, tokens in zip(states, continuations, strict=True)]

    def _answer(self, hidden: Tensor, tokens: Sequence[int]) -> Continuation:
        device = self._head.weight.device
        states, targets = hidden.to(device), torch.tensor(list(tokens), dtype=torch.int64, device=device)
        logprobs = token_logprobs(states, targets, self._head)
        is_greedy = bool((greedy_tokens(states, self._head) == targets).all())
        return Continuation(float(logprobs.double().sum()), is_greedy)
