"""A study that runs in a second: toy words, a tiny model, one step or two of everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longlens.losses.settings import LongCE
from longlens.rope import EABF, PositionInterpolation
from longlens.study.longce.documents import Facts, Form, Text
from longlens.study.longce.settings import Shape, Study, StudyEvaluation, StudyTraining, Windows, Words

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
    """Steps of two or three, two extensions, one development seed and two that count."""
    training = StudyTraining(steps=2, documents=2, warmup=0, facts=Facts(stated=2, repeated=1, distance=40))
    base = training.replace(learning_rate=1e-2, drills=0.5, end=0.1, facts=Facts(stated=1, repeated=0, distance=3))
    study = Study(
        words=Words(words=10, keys=4, values=3, held_out=0.2),
        model=Shape(length=16, hidden=16, intermediate=16, layers=2, heads=2, theta=1e4),
        base=base,
        extensions={"pi": PositionInterpolation(factor=4), "eabf": EABF(factor=4, theta=1e5)},
        arms={"pi": ("ce", "longce", "oracle"), "eabf": ("ce",)},
        longce=LongCE(context=16, stride=16),
        windows=(Windows(context=8, stride=8),),
        training=training,
        learning_rates=(1e-3, 1e-2),
        checkpoints=(1, 2),
        evaluation=StudyEvaluation(
            documents=4,
            facts=Facts(stated=2, repeated=0, distance=40),
            forms={"lines": Form(before=("a",), between=("b", "c"), stated=2)},
            form_documents=3,
            long=2,
            alpha=0.0,
            beta=-100.0,
        ),
        evaluator=training.replace(learning_rate=1e-2),
        evaluator_method="pi",
        resamples=100,
        seeds=(1, 2),
        development_seeds=(0,),
    )
    return study.replace(**changes)


def toy_recipe(**changes: object) -> dict[str, Any]:
    """The toy study as a recipe has it."""
    content = toy_study(**changes).resolved()
    for method in content["extensions"].values():
        for key in ("original_length", "first_layer"):
            method.pop(key, None)
    content["longce"].pop("short_dtype")
    for name in ("training", "base", "evaluator"):
        content[name] = {key: value for key, value in content[name].items() if value is not None}
    return content
