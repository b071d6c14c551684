"""``longlens study reproduce extension``: the steps of the experiment.

::

    OUT/small/SEED/base/                       the small model at its trained length
    OUT/small/SEED/own.json                    its results at this length
    OUT/small/SEED/keys-FACTORx.json           the evaluator's key tokens
    OUT/small/SEED/frozen-FACTORx-METHOD.json  an extended model
    OUT/small/tuning/FACTORx-METHOD-RATE-SEED.json  a development run
    OUT/small/SEED/trained-FACTORx-METHOD.json an extended and fine-tuned model
    OUT/pretrained/nll/METHOD-DOCUMENT.json    NLL of a document by position
    OUT/pretrained/tasks/METHOD-TASK-TEXT.json answers to the questions of a text
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from longlens.corpus import Document
from longlens.models import load_tokenizer
from longlens.study import reproduce
from longlens.study.extension.pretrained import DTYPE, measure_pretrained
from longlens.study.extension.settings import ExtensionStudy
from longlens.study.extension.small import SmallModels
from longlens.study.extension.summary import choose_rates, summarize, tables
from longlens.study.longce.documents import Text, read_text
from longlens.study.reproduce import Inputs, Steps, identities
from longlens.study.texts import four_kinds


class Texts(NamedTuple):
    """Inputs of the experiment: the prose of the small models, and documents of the published model."""

    prose: Text
    documents: Sequence[Document]


def read(study: ExtensionStudy) -> Inputs:
    """Reads the texts, and the identity of the model."""
    prose = read_text(study.text)
    identity: dict[str, Any] = {"text": {"name": prose.name, "sha256": prose.sha256}}
    documents: list[Document] = []
    part = study.pretrained
    if part is not None:
        tokenizer = load_tokenizer(part.model)
        documents = four_kinds(tokenizer, count=1, tokens=part.tokens, kinds=part.kinds)
        identity["documents_sha256"] = hashlib.sha256("\0".join(d.text for d in documents).encode()).hexdigest()
        identity["identities"] = identities([part.model], DTYPE)
    return Inputs(identity, Texts(prose, documents))


def run(study: ExtensionStudy, steps: Steps, texts: Texts) -> dict[str, Any]:
    """Trains and measures missing steps, and summarizes all steps, see `summary.summarize`."""
    small = study.small
    every = [(reach.factor, method) for reach in small.reaches for method in reach.methods]
    tuned = [(reach.factor, method) for reach in small.reaches for method in small.trained]
    with _shown(
        steps, "development runs", len(small.development_seeds) * len(tuned) * len(small.learning_rates)
    ) as done:
        tried = []
        for seed in small.development_seeds:
            models = SmallModels(small, texts.prose, steps, seed)
            for factor, method in tuned:
                for rate in small.learning_rates:
                    tried.append(models.tried(factor, method, rate))
                    done()
    rates = choose_rates(tried)
    own: dict[int, Mapping[str, Any]] = {}
    keys: dict[tuple[int, int], Mapping[str, Any]] = {}
    points: dict[tuple[int, str, str, int], Mapping[str, Any]] = {}
    with _shown(steps, "small models", len(study.seeds) * (len(every) + len(tuned))) as done:
        for seed in study.seeds:
            models = SmallModels(small, texts.prose, steps, seed)
            own[seed] = models.own()
            for factor, method in every:
                points[factor, method, "frozen", seed] = models.frozen(factor, method)
                done()
            for factor, method in tuned:
                points[factor, method, "trained", seed] = models.trained(factor, method, rates[factor, method])
                done()
            for reach in small.reaches:
                keys[reach.factor, seed] = models.evaluator(reach.factor)
    found = summarize(study, points, own, keys)
    pretrained = None
    if study.pretrained is not None:
        pretrained = measure_pretrained(study.pretrained, texts.documents, steps)
    return {
        "text": {"name": texts.prose.name, "sha256": texts.prose.sha256},
        "tuning": tried,
        "rates": [{"factor": f, "method": m, "learning_rate": rate} for (f, m), rate in rates.items()],
        **found,
        "pretrained": pretrained,
    }


@contextmanager
def _shown(steps: Steps, title: str, total: int) -> Iterator[Any]:
    """Shows the progress of a loop, which calls the yielded function after each round."""
    count = 0

    def done() -> None:
        nonlocal count
        count += 1
        steps.progress.update(count)

    steps.progress.start(title, unit="runs", total=total)
    try:
        yield done
    finally:
        steps.progress.finish()


STUDY = reproduce.Study(settings=ExtensionStudy, run=run, tables=tables, read=read)
