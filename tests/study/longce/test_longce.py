"""A whole study on toys: what is in its folder, that it goes on where it was stopped, and that it repeats."""

import json
import shutil

import pytest

from longlens.errors import UserError
from longlens.progress import Progress
from longlens.study.longce import model as models
from longlens.study.reproduce import reproduce
from tests.study.longce.toys import toy_study, toy_text, write_text

PAIRS = (("pi", "ce"), ("pi", "longce"), ("pi", "oracle"), ("pi", "longce-K8-d8"), ("eabf", "ce"))
RUNS = sorted(f"{method}-{arm}-{seed}.json" for method, arm in PAIRS for seed in (1, 2))


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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_holds_a_file_for_each_run(done):
    out, result, progress = done
    assert names(out / "runs") == RUNS
    tried = [f"{method}-{arm}-{rate}-0.json" for method, arm in PAIRS for rate in ("0.001", "0.01")]
    assert names(out / "tuning") == sorted(tried)
    assert json.loads((out / "result.json").read_text()) == result
    assert all((out / "seeds" / seed / "base" / "model.safetensors").is_file() for seed in "012")
    assert result["text"] == {"name": "toy", "sha256": toy_text().sha256}
    assert [start["documents"] for start in result["starts"]] == ["development", "test", "test"]
    assert progress.titles == [
        "base models: 1 runs",
        "development runs: 10 runs",
        "base models: 2 runs",
        "runs: 10 runs",
    ]
    assert "questions" not in json.dumps(result)


def test_ce_goes_on_to_equal_time_and_the_others_stop(done):
    out, result, _ = done
    for method, timing in result["timing"].items():
        ratios = [found["ratio"] for found in timing.values()]
        assert min(ratios) > 0
        ce = json.loads((out / "runs" / f"{method}-ce-1.json").read_text())
        wanted = {1, 2} | {max(1, round(2 * ratio)) for ratio in ratios}
        assert [point["step"] for point in ce["points"]] == sorted(wanted)
    longce = json.loads((out / "runs" / "pi-longce-1.json").read_text())
    assert [point["step"] for point in longce["points"]] == [1, 2]
    assert [sorted(point["forms"]) for point in longce["points"]] == [["trained"], ["lines", "trained"]]


def test_every_arm_runs_at_the_rate_with_the_lowest_development_nll(done):
    out, result, _ = done
    for method, arm in PAIRS:
        tried = [
            json.loads((out / "tuning" / f"{method}-{arm}-{rate}-0.json").read_text()) for rate in ("0.001", "0.01")
        ]
        best = min(tried, key=lambda run: run["answer_nll"])["learning_rate"]
        assert json.loads((out / "runs" / f"{method}-{arm}-2.json").read_text())["learning_rate"] == best
    assert len(result["tuning"]) == 10


def test_seeds_draw_base_models_and_questions_and_arms_of_a_seed_share_them(done):
    out, _, _ = done
    weights = [(out / "seeds" / seed / "base" / "model.safetensors").read_bytes() for seed in "012"]
    assert len(set(weights)) == 3
    first = {
        (arm, seed): json.loads((out / "runs" / f"pi-{arm}-{seed}.json").read_text())["points"][0]["ppl"]
        for arm in ("ce", "longce", "oracle")
        for seed in (1, 2)
    }
    assert len(set(first.values())) == 6
    starts = {row["arm"]: row["metrics"]["ppl"]["values"] for row in done[1]["means"] if row["step"] == 0}
    assert starts["not trained"][0] != starts["not trained"][1]


def test_a_finished_study_is_not_run_again(done, tmp_path, monkeypatch):
    out = again(done, tmp_path)
    for name in ("train", "score", "make_model", "time_steps"):
        monkeypatch.setattr(models, name, None)
    assert again_equals(run(out, out.with_name("toy")), done[1])


def test_a_stopped_study_goes_on_and_says_the_same(done, tmp_path, monkeypatch):
    out, calls = again(done, tmp_path), []
    for name in ("runs/eabf-ce-2.json", "tuning/pi-oracle-0.01-0.json", "result.json"):
        (out / name).unlink()
    train = models.train
    monkeypatch.setattr(models, "train", lambda *a, **k: calls.append(a[1].learning_rate) or train(*a, **k))
    assert again_equals(run(out, out.with_name("toy")), done[1])
    assert len(calls) == 2
    assert calls[0] == 0.01


def test_a_killed_base_is_begun_again(tmp_path, done):
    out = again(done, tmp_path)
    base = out / "seeds" / "1" / "base"
    before = (base / "model.safetensors").read_bytes()
    shutil.rmtree(base)
    (out / "seeds" / "1" / "start.json").unlink()
    (base.with_name(".base.tmp")).mkdir()
    (base.with_name(".base.tmp") / "half").touch()
    assert again_equals(run(out, out.with_name("toy")), done[1])
    assert (base / "model.safetensors").read_bytes() == before
    assert not (base.with_name(".base.tmp")).exists()
    assert not (base / "half").exists()


def test_two_processes_find_what_one_does(tmp_path, done):
    out = again(done, tmp_path)
    for path in (*(out / "runs").iterdir(), out / "seeds" / "2" / "start.json"):
        path.unlink()
    assert again_equals(run(out, out.with_name("toy"), processes=2), done[1])


def test_another_study_or_text_is_refused_and_nothing_changes(done, tmp_path):
    out = again(done, tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = toy_study(learning_rates=(0.5, 1e-2))
    with pytest.raises(
        UserError, match=r"contains a different run: learning_rates is \[0.001, 0.01\] there and \[0.5, 0.01\] here"
    ):
        reproduce("longce", other.replace(text=str(tmp_path / "toy")), out)
    with pytest.raises(UserError, match=r"contains a different run: text.sha256 is "):
        run(out, write_text(tmp_path / "other" / "toy", seed=1))
    with pytest.raises(UserError, match=r"seeds are \[1, 1\]; expected distinct integers of at least 0"):
        run(out, tmp_path / "toy", seeds=(1, 1))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
