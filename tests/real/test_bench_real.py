"""Benchmarks on a real model: teacher forcing says what generation does, and a choice is that of single passes; and a
GGUF file is the same model before and after its weights are loaded."""

from __future__ import annotations

import pytest

from longlens.bench.run import run_bench
from longlens.bench.store import read_answers, read_samples
from longlens.models import identify, load_scorer
from longlens.settings.options import Loading
from longlens.tasks.longeval import BASE_PREFIX
from tests.bench.fakes import bench_settings, engine_settings

pytestmark = pytest.mark.real
ENGINE = engine_settings(model="smollm2", dtype="float32")


def asked(folder, mode, **changes):
    settings = bench_settings(
        **{"tasks": ["longeval_lines"], "lengths": [330], "samples": 12, "mode": mode, "template": "none"}
        | {"settings": {"answer_prefix": BASE_PREFIX}}
        | changes
    )
    return run_bench(ENGINE, settings, folder)


def test_teacher_forcing_says_what_generation_does(tmp_path):
    asked(tmp_path / "forced", "teacher-forced")
    asked(tmp_path / "written", "generate")
    greedy = {
        row["key"].partition("#")[0]: row["is_greedy"] for row in read_answers(tmp_path / "forced", "teacher-forced")
    }
    targets = {row["id"]: row["continuations"][0] for _, row in read_samples(tmp_path / "forced")}
    written = {row["key"]: row["text"] for row in read_answers(tmp_path / "written", "generate")}
    assert greedy.keys() == written.keys() == targets.keys()
    assert greedy == {key: text.startswith(targets[key]) for key, text in written.items()}
    assert 0 < sum(greedy.values()) < len(greedy)  # both happen, so that agreement says something


def test_a_choice_is_easier_than_writing_the_answer(tmp_path):
    (chosen,) = asked(tmp_path / "choice", "choice")["tasks"].values()
    (forced,) = asked(tmp_path / "forced", "teacher-forced")["tasks"].values()
    assert chosen["num_choices"] > 2
    assert chosen["score"] >= forced["score"]
    assert chosen["answer_nll"] == pytest.approx(forced["answer_nll"], abs=1e-3)


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_a_gguf_file_is_identified_without_its_weights(name):
    assert identify(name, Loading(dtype="float32")) == load_scorer(name, dtype="float32").info.identity
