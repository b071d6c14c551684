"""A study that runs in a second: toy words, a tiny model, one step or two of everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longlens.losses.settings import LongCE
from longlens.rope import EABF, PositionInterpolation
from longlens.study.longce.documents import Facts, Text
from longlens.study.longce.settings import Shape, Study, StudyEvaluation, StudyTraining, Words

LETTERS = "abcdefghij"


def toy_text(seed: int = 0) -> Text:
    """Twenty documents of 100 words; ten different words."""
    rng = np.random.default_rng(seed)
    documents = {f"document {n:02d}": tuple(rng.choice(list(LETTERS), 100).tolist()) for n in range(20)}
    return Text(name="toy", documents=documents)


def write_text(folder: Path, seed: int = 0) -> str:
    """`toy_text` in files."""
    folder.mkdir(parents=True)
    for name, words in toy_text(seed).documents.items():
        (folder / f"{name}.txt").write_text(" ".join(words))
    return str(folder)


def toy_study(**changes: object) -> Study:
    """CE for 3 steps, the others for 2, with two extensions and two seeds."""
    training = StudyTraining(
        steps=2,
        documents=2,
        learning_rate=1e-2,
        warmup=0,
        facts=Facts(stated=2, repeated=1, distance=40),
    )
    study = Study(
        words=Words(words=10, keys=4, values=3, held_out=0.2),
        model=Shape(length=16, hidden=16, intermediate=16, layers=2, heads=2, theta=1e4),
        base=training.replace(drills=0.5, end=0.1, facts=Facts(stated=1, repeated=0, distance=3)),
        base_seed=5,
        extensions={"pi": PositionInterpolation(factor=4), "eabf": EABF(factor=4, theta=1e5)},
        longce=LongCE(context=16, stride=16),
        training=training,
        ce_steps=3,
        checkpoints=(1, 2),
        evaluation=StudyEvaluation(documents=4, facts=Facts(stated=2, repeated=0, distance=40), alpha=0.0, beta=-100.0),
        evaluator=training,
        evaluator_method="pi",
        seeds=(1, 2),
        development_seed=0,
    )
    return study.replace(**changes)
