"""``longlens study reproduce cost``: measures the cost of LongPPL relative to perplexity, as in Table 12 of the paper.

::

    OUT/plans/ROLE.json              measured FLOP/s of this machine on one layer of the model
    OUT/keys/LENGTH/keys.jsonl       key tokens that the evaluator selected before, and the time that this took
    OUT/rounds/LENGTH-SEED.json      seconds of each variant in one round
    OUT/result.json

Each round times these variants, in an order that depends on its seed, in one process:

- ``ppl``: the model scores the documents, ``perplexity(scores)``;
- ``offline``: the same, ``perplexity(scores, keys=FILE)`` with stored key tokens;
- ``online``: the evaluator scores the documents with long and short context (K, d), the model scores them,
  ``perplexity(scores, evaluator_scores=...)``.

Source: LongPPL, appendix B.8 and Table 12.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, model_validator

from longlens.corpus import Document, text_sha256
from longlens.errors import UserError
from longlens.evaluation import open_sources
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.metrics.longppl import perplexity
from longlens.models import UnloadedModel, load_scorer
from longlens.scoring.run import score
from longlens.settings.options import Loading, Reading, Truncation
from longlens.settings.recipe import Integer, Settings
from longlens.study.published import table
from longlens.study.reproduce import Inputs, Steps, Study, StudySettings, Table, identities

if TYPE_CHECKING:
    from longlens.planning.score import ScorePlan
    from longlens.scoring.scorer import Scorer

WARM_UP_CHARACTERS = 1000
"""Tokens of a text that is scored as a warm-up before a round, and not timed."""
# Section 4.1 of the paper: "documents with the context length up to 32k tokens", K = 4096; appendix A.1: d = 1024.
PUBLISHED_SETTING = {"length": 32768, "context": 4096, "stride": 1024}
_MISTRAL = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
PUBLISHED_MODELS = {
    # From config.json of mistralai/Mistral-7B-Instruct-v0.2 and of meta-llama/Llama-3.1-8B.
    "Mistral-7B": {**_MISTRAL, "num_key_value_heads": 8, "vocab_size": 32000},
    "Llama-3.1-8B": {**_MISTRAL, "num_key_value_heads": 8, "vocab_size": 128256},
}


class Window(Settings):
    """A short context.

    Attributes:
        context: K, tokens.
        stride: d, tokens.
    """

    context: Integer = Field(ge=1)
    stride: Integer = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> Window:
        if self.stride > self.context:
            raise UserError(f"`stride` is {self.stride}; expected at most `context`, which is {self.context}")
        return self


class CostSettings(StudySettings):
    """Settings of the study.

    Attributes:
        model: The evaluated model.
        evaluator: The model that selects key tokens.
        documents: Sources, as for ``longlens score``.
        samples: Number of documents: the first ones that are long enough.
        lengths: Lengths to which documents are truncated, in tokens of the evaluator.
        windows: Short contexts of the evaluator.
        alpha: Key tokens have LSD > alpha, nats.
        beta: Key tokens have LCL > beta, nats.
        dtype: Dtype of both models.
        seeds: Seeds of the rounds; each determines the order of the timed variants.
    """

    model: str
    evaluator: str
    documents: tuple[str, ...] = Field(strict=False, min_length=1)
    samples: Integer = Field(ge=1)
    lengths: tuple[Integer, ...] = Field(strict=False, min_length=1)
    windows: tuple[Window, ...] = Field(strict=False, min_length=1)
    alpha: float
    beta: float
    dtype: str

    @model_validator(mode="after")
    def _check_lengths(self) -> CostSettings:
        longest = max(window.context for window in self.windows)
        if min(self.lengths) <= longest:
            raise UserError(
                f"`lengths` has {min(self.lengths)} and `windows` a `context` of {longest}: no token would have a "
                "short-context score; pass larger `lengths`"
            )
        for name in ("lengths", "windows"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise UserError(f"`{name}` contains a value twice: remove it")
        return self


class Way(NamedTuple):
    """A timed variant; ``window`` is that of an online variant."""

    kind: str
    window: Window | None = None

    @property
    def name(self) -> str:
        """Name in the files of rounds."""
        return self.kind if self.window is None else f"{self.kind}-{self.window.context}-{self.window.stride}"


def ways(settings: CostSettings) -> list[Way]:
    """Returns all timed variants."""
    return [Way("ppl"), Way("offline"), *(Way("online", window) for window in settings.windows)]


def read_long_documents(settings: CostSettings) -> list[Document]:
    """Reads the documents, which are longer than all lengths.

    Raises:
        UserError: There are too few documents.
    """
    evaluator = UnloadedModel(settings.evaluator, Loading(dtype=settings.dtype))
    found: list[Document] = []
    for document in open_sources(settings.documents, Reading()):
        if len(evaluator.encode(document).token_ids) >= max(settings.lengths):
            found.append(document)
        if len(found) == settings.samples:
            return found
    raise UserError(
        f"`documents` has {len(found)} of at least {max(settings.lengths):,} tokens; expected {settings.samples}: add "
        "more sources, or use smaller `lengths`"
    )


def read(settings: CostSettings) -> Inputs:
    """Returns the identity of documents and models."""
    documents = read_long_documents(settings)
    texts = {document.id: text_sha256(document.text) for document in documents}
    models = identities(_roles(settings).values(), settings.dtype)
    return Inputs({"texts": texts, "identities": models}, documents)


def run(settings: CostSettings, steps: Steps, documents: Sequence[Document]) -> dict[str, Any]:
    """Times the missing rounds, and summarizes all rounds."""
    timed = _Timed(settings, steps, documents)
    found = []
    for length in settings.lengths:
        rounds = [
            steps.json(f"rounds/{length}-{seed}.json", lambda length=length, seed=seed: timed.round(length, seed))  # type: ignore[misc]
            for seed in settings.seeds
        ]
        found.append(summarize(settings, length, rounds, timed.plan))
    return {
        **rounds[0]["machine"],
        "lengths": found,
        "published_setting": steps.json("plans/published.json", published_setting),
    }


class _Timed:
    """Times rounds with both models, which are loaded on first use."""

    def __init__(self, settings: CostSettings, steps: Steps, documents: Sequence[Document]) -> None:
        self.settings, self.steps, self.documents = settings, steps, documents

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """By role."""
        return {role: load_scorer(name, dtype=self.settings.dtype) for role, name in _roles(self.settings).items()}

    @property
    def clock(self) -> Callable[[], float]:
        """Returns the clock: on a CPU, process time, which other work on the machine affects less."""
        on_cpu = self.scorers["evaluator"].info.device == "cpu"
        return time.process_time if on_cpu else time.perf_counter

    def cut(self, length: int) -> list[Document]:
        """Truncates the documents to a number of the evaluator's tokens, so that both models score the same text."""
        from longlens.scoring.truncation import cut_documents, make_limit

        limit = make_limit(Truncation(max_length=length, extrapolate=True), self.scorers["evaluator"])
        return list(cut_documents(self.documents, limit))

    def keys(self, length: int, documents: Sequence[Document]) -> Path:
        """Returns the file of key tokens with the first window, created once."""
        window = self.settings.windows[0]

        def make(folder: Path) -> None:
            scores = score(documents, self.scorers["evaluator"], context=window.context, stride=window.stride)
            keys = select_key_tokens(scores, alpha=self.settings.alpha, beta=self.settings.beta)
            write_keys(folder / "keys.jsonl", keys)

        return self.steps.folder(f"keys/{length}", make) / "keys.jsonl"

    def measure(self, role: str) -> dict[str, Any]:
        """Measures FLOP/s on one layer of the model."""
        from longlens.planning.devices import measure
        from longlens.planning.score import find_config

        longest = max(self.settings.lengths)
        device = self.scorers[role].info.device.partition(":")[0]
        found = measure(
            find_config(_roles(self.settings)[role]),
            device=device,
            dtype=self.settings.dtype,
            lengths=(min(256, longest // 2), min(2048, longest)),
            clock=self.clock,
        )
        return {"device": device, "rates": asdict(found.forward)}

    def plan(self, role: str, length: int, window: Window | None) -> ScorePlan:
        """Predicts the cost of a document with this number of tokens, from the measured speed."""
        from longlens.planning.devices import Rates, this_machine
        from longlens.planning.score import plan_score

        measured = self.steps.json(f"plans/{role}.json", lambda: self.measure(role))
        return plan_score(
            _roles(self.settings)[role],
            length=length,
            context=None if window is None else window.context,
            stride=1 if window is None else window.stride,
            dtype=self.settings.dtype,
            device=this_machine(measured["device"]),
            rates=Rates(**measured["rates"]),
        )

    def round(self, length: int, seed: int) -> dict[str, Any]:
        """Times each variant once."""
        documents = self.cut(length)
        keys = self.keys(length, documents)
        scorers, clock = self.scorers, self.clock
        for scorer in scorers.values():
            score([documents[0].text[:WARM_UP_CHARACTERS]], scorer, context=None)
        order = ways(self.settings)
        random.Random(seed).shuffle(order)
        found: dict[str, Any] = {}
        self.steps.progress.start(f"{length} tokens, round {seed}", unit="runs", total=len(order))
        try:
            for number, way in enumerate(order):
                started = clock()
                evaluator_scores = None
                if way.window is not None:
                    evaluator_scores = score(
                        documents, scorers["evaluator"], context=way.window.context, stride=way.window.stride
                    )
                evaluated = clock()
                scores = score(documents, scorers["model"], context=None, extrapolate=True)
                if evaluator_scores is not None:
                    result = perplexity(
                        scores,
                        evaluator_scores=evaluator_scores,
                        alpha=self.settings.alpha,
                        beta=self.settings.beta,
                    )
                else:
                    result = perplexity(scores, keys=read_keys(keys) if way.kind == "offline" else None)
                ended = clock()
                found[way.name] = {
                    "seconds": ended - started,
                    "evaluator_seconds": evaluated - started,
                    "ppl": result.ppl,
                    "longppl": result.longppl,
                    "num_key_tokens": result.num_key_tokens,
                }
                self.steps.progress.update(number + 1)
        finally:
            self.steps.progress.finish()
        import torch

        return {
            "ways": found,
            "tokens": [len(one.token_ids) for one in scores],
            "machine": {
                "clock": "CPU seconds of the process" if clock is time.process_time else "seconds",
                "threads": torch.get_num_threads(),
            },
        }


def summarize(
    settings: CostSettings,
    length: int,
    rounds: Sequence[Mapping[str, Any]],
    plan: Callable[[str, int, Window | None], ScorePlan],
) -> dict[str, Any]:
    """Computes medians and ranges over the rounds of one length.

    Args:
        settings: Settings of the study.
        length: Length of the documents, tokens of the evaluator.
        rounds: Results of `_Timed.round`.
        plan: Predicts the seconds of a role at a length.

    Returns:
        ``rows``, one per variant: ``seconds`` per document and ``ratio`` to ``ppl`` of the same round, each ``median``,
        ``low``, ``high``; ``planned_seconds``, ``planned_ratio``; LongPPL and the number of key tokens.
    """
    tokens = rounds[0]["tokens"]
    model_plan = sum(plan("model", n, None).seconds or 0.0 for n in tokens) / len(tokens)
    rows = []
    for way in ways(settings):
        of_way = [one["ways"][way.name] for one in rounds]
        planned = model_plan
        if way.window is not None:
            planned += plan("evaluator", length, way.window).seconds or 0.0
        rows.append(
            {
                "way": way.kind,
                "window": None if way.window is None else way.window.model_dump(),
                "seconds": _range([one["seconds"] / settings.samples for one in of_way]),
                "ratio": _range([one["ways"][way.name]["seconds"] / one["ways"]["ppl"]["seconds"] for one in rounds]),
                "planned_seconds": planned,
                "planned_ratio": planned / model_plan,
                **{name: of_way[0][name] for name in ("ppl", "longppl", "num_key_tokens")},
            }
        )
    return {"length": length, "model_tokens": sum(tokens) / len(tokens), "rows": rows}


def published_setting() -> dict[str, Any]:
    """Returns the FLOPs of online LongPPL relative to perplexity, for the models, K, d and length of the paper."""
    from transformers import LlamaConfig

    from longlens.planning.devices import find_device
    from longlens.planning.score import plan_score

    setting = PUBLISHED_SETTING
    configs = {
        name: LlamaConfig(max_position_embeddings=131072, **shape)  # a Mistral without its window is a Llama
        for name, shape in PUBLISHED_MODELS.items()
    }
    shared: dict[str, Any] = {"length": setting["length"], "device": find_device("a100")}
    model = plan_score(configs["Mistral-7B"], context=None, **shared).flops
    evaluator = plan_score(
        configs["Llama-3.1-8B"], context=setting["context"], stride=setting["stride"], **shared
    ).flops
    return {**setting, "arithmetic_ratio": (model + evaluator) / model}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns tables in the form of Table 12, with the paper's own numbers."""
    settings = result["settings"]
    columns = [
        *("tokens", "K", "d", "PPL, s", "LongPPL offline, s", "LongPPL online, s", "online, range over rounds"),
        *("online, planned", "key tokens", "LongPPL"),
    ]
    rows = []
    for found in result["lengths"]:
        ppl, offline, *online = found["rows"]
        for row in online:
            window, ratio = row["window"], row["ratio"]
            rows.append(
                [
                    f"{found['length']:,}",
                    str(window["context"]),
                    str(window["stride"]),
                    f"{ppl['seconds']['median']:.1f}",
                    _more(offline, ppl),
                    _more(row, ppl),
                    f"{_percent(ratio['low'])} to {_percent(ratio['high'])}",
                    _percent(row["planned_ratio"]),
                    str(row["num_key_tokens"]),
                    "-" if row["longppl"] is None else f"{row['longppl']:.2f}",
                ]
            )
    title = (
        f"{result['clock']} per document ({settings['model']} evaluated, {settings['evaluator']} evaluator, "
        f"{settings['dtype']}, {result['threads']} thread(s)), median of {len(settings['seeds'])} rounds; in brackets "
        "the increase over PPL (median of ratios within rounds). Planned: predicted from the speed of one layer:"
    )
    paper = table(12)
    published = [
        [
            row.name,
            str(row.values[0]),
            f"{row.values[1]} (+{row.values[2]}, +{row.values[3]:.0f} %)",
            f"{row.values[4]} (+{row.values[5]}, +{row.values[6]:.0f} %)",
        ]
        for row in paper.rows
    ]
    setting = result["published_setting"]
    return [
        Table(title=title, columns=columns, rows=rows, left=0),
        Table(
            title=(
                "Published (Table 12, seconds per sequence). The planner predicts "
                f"{_percent(setting['arithmetic_ratio'])} for Mistral-7B with Llama-3.1-8B at {setting['length']:,} "
                f"tokens, K = {setting['context']}, d = {setting['stride']}:"
            ),
            columns=["", "PPL", "LongPPL (Llama-3.1-8B)", "LongPPL (Qwen2-72B-Instruct)"],
            rows=published,
        ),
    ]


def _more(row: Mapping[str, Any], ppl: Mapping[str, Any]) -> str:
    seconds = row["seconds"]["median"]
    return f"{seconds:.1f} ({seconds - ppl['seconds']['median']:+.1f}, {_percent(row['ratio']['median'])})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _roles(settings: CostSettings) -> dict[str, str]:
    return {"model": settings.model, "evaluator": settings.evaluator}


STUDY = Study(settings=CostSettings, run=run, tables=tables, read=read)
