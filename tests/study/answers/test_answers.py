"""The experiment on a tiny model: what is stored against whole passes, resume, refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import longlens
from longlens.errors import UserError
from longlens.settings.recipe import parse
from longlens.study.answers.run import AnswersSettings
from longlens.study.reproduce import find_study, read_study, reproduce
from longlens.tasks.longeval import LongEvalLines

LINES = (10, 11, 12, 13, 14)


def settings(model: Path, **changes: Any) -> Any:
    made = {
        "models": [str(model)],
        "dtype": "float32",
        "lines": list(LINES),
        "samples": 3,
        "record_samples": 2,
        "response": "\nLine <{line}>: <REGISTER_CONTENT> is",
        "context": 64,
        "stride": 32,
        "alpha": 0.5,
        "beta": -6.0,
        "classified_lines": 12,
        "development_samples": 2,
        "development_seed": 0,
        "seeds": [1],
    }
    return parse(AnswersSettings, {**made, **changes}, "test")


@pytest.fixture(scope="module")
def done(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("answers") / "out"
    return out, reproduce("answers", settings(models / "llama"), out)


def test_log_probabilities_are_those_of_whole_passes(done: Any, models: Path) -> None:
    out, _ = done
    (path,) = (out / "samples").glob("*-12-1.json")
    row = json.loads(path.read_text())["samples"][1]
    scorer: Any = longlens.load_scorer(str(models / "llama"), dtype="float32")
    sample = LongEvalLines(lines=12, answer_prefix=settings(models).response).build(
        samples=3, seed=1, tokenizer=scorer.tokenizer
    )[1]
    text = sample.prompt + sample.answer_prefix
    target = str(LongEvalLines(lines=12).target(sample))

    def logprobs(ids: list[int]) -> Any:
        with torch.no_grad():
            logits = scorer.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return [math.nan, *(float(logits[place - 1, ids[place]]) for place in range(1, len(ids)))]

    whole = scorer.tokenizer(text + target)["input_ids"]
    before = len(scorer.tokenizer(text)["input_ids"])
    wanted = logprobs(whole)
    response = row["response"]
    number = len(response["long"])
    assert response["long"] == pytest.approx(wanted[-number:], abs=2e-4)
    assert row["choices"][0] == pytest.approx(sum(wanted[before:]), abs=1e-3)
    assert (
        "".join(token for token, is_answer in zip(response["tokens"], response["is_answer"], strict=True) if is_answer)
        == (sample.answers[0])
    )
    for choice, wrong in zip(row["choices"][1:], sample.metadata["distractors"], strict=True):
        ids = scorer.tokenizer(text + target.replace(sample.answers[0], wrong))["input_ids"]
        assert choice == pytest.approx(sum(logprobs(ids)[before:]), abs=1e-3)
    # The last window: it begins at a multiple of d, K or more tokens before what is scored in it.
    bos, content = whole[:1], whole[1:]
    first = 64 + (len(content) - 1 - 64) // 32 * 32
    short = logprobs([*bos, *content[first - 64 :]])[-(len(content) - first) :]
    assert response["short"][-len(short) :] == pytest.approx(short, abs=2e-4)


def test_every_length_is_there_with_chance_beside_it(done: Any) -> None:
    out, result = done
    assert json.loads((out / "result.json").read_text()) == result
    assert len(result["lengths"]) == len(LINES)
    for table in find_study("answers").tables(result):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert "chance" in json.dumps(result["lengths"]).lower() or "chance" in json.dumps(result).lower()


def test_a_killed_run_goes_on_and_says_the_same(done: Any, models: Path, tmp_path: Path) -> None:
    out, result = done
    again = tmp_path / "out"
    shutil.copytree(out, again)
    next((again / "samples").glob("*-13-1.json")).unlink()
    (again / "result.json").unlink()
    found = reproduce("answers", settings(models / "llama"), again)
    assert {**found, "seconds": 0} == {**result, "seconds": 0}
    with pytest.raises(UserError, match=r"contains a different run: "):
        reproduce("answers", settings(models / "other"), again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": [10, 12, 11, 13, 14]}, "expected different numbers in increasing order"),
        ({"classified_lines": 99}, "classified_lines is 99; expected one of"),
        ({"record_samples": 4}, "record_samples is 4; expected at most samples, 3"),
        ({"seeds": [0]}, "development_seed 0 is among the seeds"),
        ({"response": "The answer is"}, "expected it to end in 'REGISTER_CONTENT> is'"),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes: dict[str, Any], message: str, models: Path) -> None:
    with pytest.raises(UserError, match=message):
        settings(models / "llama", **changes)


def test_the_recipe_is_read() -> None:
    study: Any = read_study("answers")
    assert study.samples == 50
    assert len(study.lines) == 8
