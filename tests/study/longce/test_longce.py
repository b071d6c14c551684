"""A whole study on toys: what is in its folder, that it goes on where it was stopped, and that it repeats."""

import json
import shutil

import pytest

from longlens.errors import UserError
from longlens.progress import Progress
from longlens.study.longce import model as models
from longlens.study.reproduce import reproduce
from tests.study.longce.toys import toy_study, toy_text, write_text

RUNS = sorted(
    f"{method}-{arm}-{seed}.json"
    for method in ("pi", "eabf")
    for arm in ("ce", "longce", "permuted", "normalised")
    for seed in (1, 2)
)


def run(out, folder, progress=None, **changes):
    """The experiment on the text of a folder."""
    return reproduce("longce", toy_study(text=str(folder), **changes), out, progress=progress)


class Shown(Progress):
    """Keeps what it shows."""

    def __init__(self):
        self.titles, self.steps = [], []

    def start(self, title, *, unit, total=None, done=0.0):
        self.titles.append(f"{title}: {total} {unit}")

    def update(self, done, *, note=""):
        self.steps.append((done, note))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study, its result and the progress that it showed."""
    place, progress = tmp_path_factory.mktemp("study"), Shown()
    write_text(place / "toy")
    return place / "out", run(place / "out", place / "toy", progress), progress


def again(done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    write_text(tmp_path / "toy")
    return out


def again_equals(result, before):
    """Whether two results say the same; how long it took, and which seeds were asked for, aside."""
    return {**result, "seconds": 0, "settings": 0} == {**before, "seconds": 0, "settings": 0}


def test_the_folder_holds_a_file_for_each_run(done):
    out, result, progress = done
    assert sorted(path.name for path in (out / "runs").iterdir()) == RUNS
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "base" / "model.safetensors").is_file()
    assert result["text"] == {"name": "toy", "sha256": toy_text().sha256}
    assert result["base"]["parameters"] > 1000
    assert progress.titles[:2] == ["base: 2 steps", "evaluator: 2 steps"]
    assert progress.titles[3] == "pi longce seed 1: 2 steps"
    assert [number for number, _ in progress.steps[:4]] == [1, 2, 1, 2]
    assert all(note.startswith("loss ") for _, note in progress.steps)


def test_ce_goes_on_to_equal_time_and_the_others_stop(done):
    out, result, _ = done
    for method, timing in result["timing"].items():
        assert timing["ratio"] > 0
        ce = json.loads((out / "runs" / f"{method}-ce-1.json").read_text())
        wanted = {1, 2, 3} | {max(1, round(step * timing["ratio"])) for step in (1, 2)}
        assert [point["step"] for point in ce["points"]] == sorted(wanted)
        longce = json.loads((out / "runs" / f"{method}-longce-1.json").read_text())
        assert [point["step"] for point in longce["points"]] == [1, 2]


def test_arms_of_a_seed_begin_alike_and_then_differ(done):
    out, result, _ = done
    losses = {
        arm: [json.loads((out / "runs" / f"pi-{arm}-{seed}.json").read_text())["points"][-1]["ppl"] for seed in (1, 2)]
        for arm in ("longce", "permuted", "normalised")
    }
    assert len({tuple(values) for values in losses.values()}) == 3
    assert losses["longce"][0] != losses["longce"][1]
    weights = {(row["method"], row["arm"]): row for row in result["weights"]}
    assert weights["pi", "normalised"]["mean"] == pytest.approx(1)
    assert weights["pi", "longce"]["mean"] != pytest.approx(1, abs=1e-6)


def test_a_finished_study_is_not_run_again(done, tmp_path, monkeypatch):
    out = again(done, tmp_path)
    for name in ("train", "score", "make_model", "time_steps"):
        monkeypatch.setattr(models, name, None)
    assert again_equals(run(out, out.with_name("toy")), done[1])


def test_a_stopped_study_goes_on_and_says_the_same(done, tmp_path, monkeypatch):
    out, calls = again(done, tmp_path), []
    for name in ("runs/eabf-longce-2.json", "runs/pi-permuted-1.json", "result.json"):
        (out / name).unlink()
    train = models.train
    monkeypatch.setattr(models, "train", lambda *a, **k: calls.append(a[1].steps) or train(*a, **k))
    assert again_equals(run(out, out.with_name("toy")), done[1])
    assert calls == [2, 2]


def test_a_killed_base_is_begun_again(tmp_path, monkeypatch, done):
    out = again(done, tmp_path)
    shutil.rmtree(out / "base")
    (out / ".base.tmp").mkdir()
    (out / ".base.tmp" / "half").touch()
    before = (done[0] / "base" / "model.safetensors").read_bytes()
    assert again_equals(run(out, out.with_name("toy")), done[1])
    assert (out / "base" / "model.safetensors").read_bytes() == before
    assert not (out / ".base.tmp").exists()
    assert not (out / "base" / "half").exists()


def test_other_seeds_join_the_folder_and_development_documents_are_others(done, tmp_path):
    out = again(done, tmp_path)
    result = run(out, tmp_path / "toy", seeds=(0,))
    assert result["seeds"] == [0]
    assert {row["documents"] for row in result["start"]} == {"development"}
    assert len(list((out / "runs").iterdir())) == len(RUNS) + 8
    assert done[1]["start"][0]["metrics"]["ppl"]["mean"] != result["start"][0]["metrics"]["ppl"]["mean"]


def test_another_study_or_text_is_refused_and_nothing_changes(done, tmp_path):
    out = again(done, tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = toy_study(training=toy_study().training.replace(learning_rate=0.5))
    with pytest.raises(UserError, match=r"holds another run: training.learning_rate is 0.01 there and 0.5 here"):
        reproduce("longce", other.replace(text=str(tmp_path / "toy")), out)
    with pytest.raises(UserError, match=r"holds another run: text.sha256 is "):
        run(out, write_text(tmp_path / "other" / "toy", seed=1))
    with pytest.raises(UserError, match=r"seeds are \[1, 1\]; expected different whole numbers from 0 on"):
        run(out, tmp_path / "toy", seeds=(1, 1))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
