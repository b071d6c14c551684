"""A small study with one seed gives the numbers that it gave when it had a training loop of its own."""

import json
from pathlib import Path

import pytest

from longlens.study.longce import model as models
from longlens.study.longce.documents import Facts
from longlens.study.reproduce import reproduce
from tests.study.longce.toys import toy_study, toy_text

GOLDEN = Path(__file__).parents[2] / "golden" / "longce_study.json"


def small_study():
    """Warm-up, cosine, weight decay and drills are all there, and CE goes on after the others."""
    study, facts = toy_study(seeds=(1,)), Facts(stated=1, repeated=0, distance=3)
    base = study.base.replace(steps=12, documents=4, warmup=3, weight_decay=0.1, facts=facts)
    training = study.training.replace(steps=4, learning_rate=2e-3, warmup=2)
    evaluator = training.replace(steps=3)
    return study.replace(base=base, training=training, evaluator=evaluator, checkpoints=(2, 4), ce_steps=6)


def close(found, golden):
    """The same keys and values, numbers up to what another processor rounds."""
    if isinstance(golden, dict):
        return found.keys() == golden.keys() and all(close(found[name], golden[name]) for name in golden)
    if isinstance(golden, list):
        return len(found) == len(golden) and all(map(close, found, golden))
    return found == pytest.approx(golden, rel=2e-4, abs=1e-6) if isinstance(golden, float) else found == golden


def test_a_small_study_gives_its_golden_numbers(tmp_path, monkeypatch, caplog):
    # Which documents are held out depends on their names, which in files are their paths.
    monkeypatch.setattr("longlens.study.longce.run.read_text", lambda _: toy_text())
    monkeypatch.setattr(models, "time_steps", lambda *_: [(1.0, 1.25)])
    with caplog.at_level("INFO", logger="longlens"):
        result = reproduce("longce", small_study(), tmp_path / "out")
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").iterdir()}
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 4 + len(found)
    for name, values in golden.items():
        assert close(found.get(name, result.get(name)), values), name
    assert "pi: a step takes 1.000 s with CE and 1.250 s with LongCE, ratio 1.25" in caplog.messages
    assert [message.startswith("pi longce seed 1: step 4, answers ") for message in caplog.messages].count(True) == 1
