"""``longlens study reproduce answers``: scores responses to LongEval's lines, token by token.

A sample is a prompt, the response that contains the right answer, and nine wrong numbers as alternatives. The
answer tokens are those of the number; all others are the response's other tokens and those of the prompt.

::

    OUT/samples/MODEL-LINES-SEED.json   log-probabilities of one model, number of lines and seed
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from longlens.errors import UserError, shown_value
from longlens.settings.recipe import Integer, Name, Names, Real
from longlens.study.answers.summary import summarize, tables
from longlens.study.reproduce import Inputs, Steps, Study, StudySettings, identities
from longlens.windows import check_window_settings, plan_windows

if TYPE_CHECKING:
    from longlens.scoring.transformers import ContinuationScorer
    from longlens.tasks.base import Sample

_LOGGER = logging.getLogger(__name__)
DIGITS = 5
"""Decimals of a stored log-probability."""
MIN_LENGTHS = 5
"""Minimum number of lengths for a correlation over lengths."""
Count = Annotated[Integer, Field(ge=1)]


class AnswersSettings(StudySettings):
    """Settings of the experiment.

    Attributes:
        models: Names of models, for the engine transformers.
        dtype: Dtype of their weights.
        lines: Numbers of lines of a record, increasing.
        samples: Number of samples of each number of lines and seed.
        record_samples: Number of these samples for which all tokens of the prompt are scored.
        response: What the answer begins with, ``{line}`` being the line that is asked for.
        context: K, tokens.
        stride: d, tokens.
        alpha: Threshold of LSD, nats.
        beta: Threshold of LCL, nats.
        classified_lines: The number of lines at which all tokens of the prompt have a short context, and thresholds are
            chosen.
        development_samples: On which they are chosen.
        development_seed: Seed of the development samples; not among the seeds.
    """

    models: Names
    dtype: Name
    lines: Annotated[tuple[Count, ...], Field(strict=False, min_length=MIN_LENGTHS)]
    samples: Count
    record_samples: Annotated[Integer, Field(ge=2)]
    response: Name
    context: Count
    stride: Count
    alpha: Real
    beta: Real
    classified_lines: Count
    development_samples: Annotated[Integer, Field(ge=2)]
    development_seed: Integer

    @model_validator(mode="after")
    def _check(self) -> AnswersSettings:
        check_window_settings(self.context, self.stride)
        if list(self.lines) != sorted(set(self.lines)):
            raise UserError(f"lines are {list(self.lines)}; expected different numbers in increasing order")
        if self.classified_lines not in self.lines:
            raise UserError(f"classified_lines is {self.classified_lines}; expected one of {list(self.lines)}")
        if self.record_samples > self.samples:
            raise UserError(f"record_samples is {self.record_samples}; expected at most samples, {self.samples}")
        if self.development_seed in self.seeds:
            raise UserError(f"development_seed {self.development_seed} is among the seeds: use another one")
        if not re.search(r"REGISTER_CONTENT> is$", self.response):
            raise UserError(f"response is {shown_value(self.response)}; expected it to end in 'REGISTER_CONTENT> is'")
        return self


def read(settings: AnswersSettings) -> Inputs:
    """Returns the identity of the models."""
    return Inputs({"identities": identities(settings.models, settings.dtype)})


def run(settings: AnswersSettings, steps: Steps, content: None) -> dict[str, Any]:
    """Scores missing samples, and summarizes all samples, see `summary.summarize`.

    Raises:
        UserError: A model cannot be loaded, or a token spans the boundary of prompt and response.
    """
    development = (settings.classified_lines, settings.development_seed, settings.development_samples)
    parts = [development, *((lines, seed, settings.samples) for seed in settings.seeds for lines in settings.lines)]
    found: dict[str, dict[tuple[int, int], Any]] = {}
    for number, name in enumerate(settings.models):
        model = _LazyModel(name, settings)
        slug = f"{number}-{re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-.')[-60:]}"
        found[name] = {}
        for lines, seed, samples in parts:
            step = f"samples/{slug}-{lines}-{seed}.json"
            steps.progress.start(f"{name}, {lines} lines, seed {seed}", unit="samples", total=samples)
            try:
                made = steps.json(step, partial(model.score, lines, seed, samples, steps))
            finally:
                steps.progress.finish()
            found[name][lines, seed] = made["samples"]
    return summarize(settings, found)


class _LazyModel:
    """A model that is loaded on first use."""

    def __init__(self, name: str, settings: AnswersSettings) -> None:
        self._name, self._settings = name, settings
        self._scorer: ContinuationScorer | None = None

    def score(self, lines: int, seed: int, samples: int, steps: Steps) -> dict[str, Any]:
        """Scores the samples of one number of lines and one seed."""
        from longlens.tasks.longeval import LongEvalLines

        if self._scorer is None:
            self._scorer = _load(self._name, self._settings.dtype)
        scorer, settings = self._scorer, self._settings
        task = LongEvalLines(lines=lines, answer_prefix=settings.response)
        made = task.build(samples=samples, seed=seed, tokenizer=scorer.tokenizer)
        rows = []
        is_development = seed == settings.development_seed
        for number, sample in enumerate(made):
            reads = number < settings.record_samples or is_development
            target = str(task.target(sample))
            rows.append(score_sample(scorer, sample, target, settings, record=reads, lines=lines))
            steps.progress.update(number + 1)
        return {"samples": rows}


def _load(name: str, dtype: str) -> ContinuationScorer:
    from longlens.models import load_transformers
    from longlens.scoring.transformers import ContinuationScorer
    from longlens.settings.options import Loading

    loaded = load_transformers(name, Loading(dtype=dtype))
    return ContinuationScorer(loaded.model, loaded.tokenizer, weights_sha256=loaded.info.weights_sha256)


def score_sample(
    scorer: ContinuationScorer, sample: Sample, target: str, settings: AnswersSettings, *, record: bool, lines: int
) -> dict[str, Any]:
    """What a model says of one sample.

    The short-context scores are those of `longlens.score` with the same K and d over prompt and response.

    Args:
        scorer: The model.
        sample: Sample of LongEval's lines.
        target: The right continuation of its prompt, such as ``" <12345>"``.
        settings: Settings of the experiment.
        record: Whether the tokens of the prompt are scored as well.
        lines: Lines of the record; at `AnswersSettings.classified_lines` these tokens have short-context scores too.

    Returns:
        ``num_tokens``, of prompt and response; ``num_prompt_tokens``; ``in_short``: whether the line that is asked for
        is in the short context of the answer; ``choices``: log-probabilities of what follows the response, the
        right one first; ``is_exact``: whether greedy decoding writes it; ``response``: ``tokens``, ``long``, ``short``
        and ``is_answer`` of each of its tokens; ``record``: ``long`` and ``short`` of the prompt's, or None.

    Raises:
        UserError: A token reaches from the prompt into the response, or from that into the answer.
    """
    from longlens.corpus import Document
    from longlens.scoring.scorer import Request

    def encode(text: str) -> Any:
        return scorer.encode(Document(id=sample.id, text=text))

    prefix = [] if scorer.info.bos_token_id is None else [scorer.info.bos_token_id]
    before, number = sample.prompt + sample.answer_prefix, sample.answers[0]
    encoded = encode(before + target)
    ids, spans = encoded.token_ids.tolist(), encoded.char_spans
    first, answer = (int(np.searchsorted(spans[:, 0], place)) for place in (len(sample.prompt), len(before)))
    if spans[first, 0] != len(sample.prompt) or spans[answer, 0] != len(before):
        raise UserError(f"{sample.id}: a token of {scorer.info.name} reaches over the begin of response or answer")
    texts = [target, *(target.replace(number, wrong) for wrong in sample.metadata["distractors"])]
    continuations = []
    for text in texts:
        tokens = encode(before + text).token_ids.tolist()
        if tokens[:answer] != ids[:answer]:
            raise UserError(f"{sample.id}: {text!r} changes the tokens of {scorer.info.name} before it")
        continuations.append(tokens[first:])
    said = scorer.continuations([*prefix, *ids[:first]], continuations)
    at = len(before) + target.index(number)
    is_answer = (spans[:, 0] < at + len(number)) & (spans[:, 1] > at)

    has_record_short = record and lines == settings.classified_lines
    requests = [Request(None, [*prefix, *ids[:first]], max(1, len(prefix)))] if record else []
    windows = plan_windows(len(ids), settings.context, settings.stride)
    windows = [window for window in windows if has_record_short or window.stop > first]
    for window in windows:
        start = window.first if has_record_short else max(window.first, first)
        tokens = [*prefix, *ids[window.start : window.stop]]
        requests.append(Request(start, tokens, len(prefix) + start - window.start, is_short=True))
    long, short = np.full(first, np.nan), np.full(len(ids), np.nan)
    for result in scorer.logprobs(requests):
        if result.key is None:
            long[first - len(result.logprobs) :] = result.logprobs
        else:
            short[result.key : result.key + len(result.logprobs)] = result.logprobs
    places = np.flatnonzero(is_answer)
    window = next(window for window in windows if window.stop > places[0])
    start, _ = sample.answer_spans[0]
    return {
        "num_tokens": len(ids),
        "num_prompt_tokens": first,
        "in_short": bool(spans[window.start, 0] <= start),
        "choices": [round(float(sum(one.logprobs[answer - first :])), DIGITS) for one in said],
        "is_exact": all(said[0].greedy[answer - first :]),
        "response": {
            "tokens": [(before + target)[start:end] for start, end in spans[first:].tolist()],
            "long": _rounded(said[0].logprobs),
            "short": _rounded(short[first:]),
            "is_answer": is_answer[first:].tolist(),
        },
        "record": {"long": _rounded(long), "short": _rounded(short[:first]) if has_record_short else None}
        if record
        else None,
    }


def _rounded(values: Sequence[float] | np.ndarray[Any, Any]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), DIGITS) for value in values]


STUDY = Study(settings=AnswersSettings, run=run, tables=tables, read=read)
