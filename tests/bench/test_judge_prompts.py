"""What a judge needs beside stored samples, key points and prompts, reaches it; and whose prompts it got is told."""

from __future__ import annotations

import json

import pytest

from longlens.bench.engine import EngineSettings
from longlens.bench.judging import judge_run, latest_lines
from longlens.bench.results import summarize_run
from longlens.bench.run import run_bench
from longlens.bench.selection import BenchSettings
from longlens.bench.table import results_table
from longlens.cli import main
from longlens.errors import UserError
from longlens.models import generate
from longlens.settings.options import Loading
from longlens.tasks import get_task
from tests.bench.fakes import FakeEngine, rows

TASKS = ("helmet_narrativeqa", "helmet_multi_lexsum")
QUESTIONS, CASES = "helmet_narrativeqa-3000-42", "helmet_multi_lexsum-3000-42"


@pytest.fixture
def judgeable(model, data, tmp_path):
    """A run of both tasks, two answers each."""
    asked = BenchSettings(tasks=TASKS, lengths=[3000], samples=2, settings={"data_dir": str(data)})
    run_bench(EngineSettings(model=model), asked, tmp_path / "run", open_engine=FakeEngine("The weaver."))
    return tmp_path / "run"


@pytest.fixture
def prompts(tmp_path):
    """A folder with prompts of a user."""
    folder = tmp_path / "judge"
    folder.mkdir()
    fields = {
        "narrativeqa": "{question} {correct_answers} {parsed_output}",
        "multi_lexsum_fluency": "{text}",
        "multi_lexsum_recall": "{keypoints} {summary}",
        "multi_lexsum_precision": "{expert_summary} {summary}",
    }
    for name, text in fields.items():
        (folder / f"{name}.txt").write_text(f"MINE {name} {text}\n")
    return folder


class Judge:
    """Gives everything the same, and remembers what it was asked."""

    generation = None

    def __init__(self, monkeypatch, correctness=3):
        marks = {"fluency": 1, "correctness": correctness, "recall": 3, "precision": 1, "sentence_count": 1}
        self.reply, self.prompts, self.options = json.dumps(marks), [], {}
        monkeypatch.setattr(generate, "load_generator", self.load)
        monkeypatch.setattr("longlens.bench.judging._model_sha256", lambda name, options: f"what {name} is")

    def load(self, name, **options):
        self.options = options
        return self

    def generate(self, prompts):
        self.prompts += prompts
        return [generate.Completion(self.reply, True) for _ in prompts]


@pytest.fixture
def judged(log):
    def judge(folder, name="j", **places):
        log.clear()
        judge_run(folder, judge=name, nli=None, loading=Loading(), places=places)
        return list(log)

    return judge


def test_key_points_and_prompts_reach_the_judge_of_a_stored_run(judged, judgeable, data, prompts, monkeypatch):
    judge = Judge(monkeypatch)
    with pytest.raises(UserError, match=r"helmet_multi_lexsum reads data .*multi_lexsum_val\.jsonl.*data_dir"):
        judged(judgeable)
    assert not judge.options  # said before the judge is loaded
    assert judged(judgeable, data_dir=str(data)) == ["j: 4 of 4 answers to score"]
    assert judge.options["max_new_tokens"] == 4096  # HELMET's for summaries
    points = next(prompt for prompt in judge.prompts if "leaves out" in prompt)
    assert "\n1. a suit\n2. a court\n3. {town}\n" in points
    assert len(judge.prompts) == 2 + 3 * 2
    own = judge.prompts.copy()
    judge.prompts.clear()
    assert judged(judgeable, data_dir=str(data), prompts_dir=str(prompts)) == ["j: 4 of 4 answers to score"]
    assert all(prompt.startswith("MINE ") for prompt in judge.prompts)
    names = [prompt.split()[1].removeprefix("multi_lexsum_") for prompt in judge.prompts]
    assert names == ["fluency", "recall", "precision"] * 2 + ["narrativeqa"] * 2
    assert not set(own) & set(judge.prompts)


def test_the_prompts_asked_for_last_count_and_are_told(judged, judgeable, data, prompts, monkeypatch):
    mine = {"data_dir": str(data), "prompts_dir": str(prompts)}
    ours = {"data_dir": str(data)}
    seen = []
    for place, correctness, owed in ((ours, 3, 4), (mine, 0, 4), (ours, 1, 0), (ours, 1, 0), (mine, 1, 0)):
        judge = Judge(monkeypatch, correctness)
        assert judged(judgeable, **place) == [f"j: {owed} of 4 answers to score"]
        assert len(judge.prompts) == 2 * owed
        results = summarize_run(judgeable)
        notes = results_table({"a": results}).notes
        for name, batch in zip(TASKS, (QUESTIONS, CASES), strict=True):
            label = get_task(name, **place).prompts_by
            assert results["tasks"][batch]["judged_by"] == [{"by": "j", "prompts": label}]
            assert [note for note in notes if f"{name} at 3,000: judged by j, whose prompts are {label}" in note]
        seen.append((results["tasks"][QUESTIONS]["score"], len(rows(judgeable, "judged"))))
    # Nothing is asked twice; what was known already is written again, once, to be the last.
    assert seen == [(100.0, 4), (0.0, 8), (100.0, 12), (100.0, 12), (0.0, 16)]


def test_a_judge_that_was_broken_off_is_not_filled_up_with_another_ones_scores(judged, judgeable, data, monkeypatch):
    Judge(monkeypatch)
    judged(judgeable, "first", data_dir=str(data))
    judge = Judge(monkeypatch, correctness=0)
    replies = iter([judge.reply] * 7)
    monkeypatch.setattr(judge, "generate", lambda asked: [generate.Completion(next(replies), True) for _ in asked])
    with pytest.raises((StopIteration, RuntimeError)):
        judged(judgeable, "second", data_dir=str(data))
    batch = summarize_run(judgeable)["tasks"][QUESTIONS]
    assert [one["by"] for one in batch["judged_by"]] == ["second"]
    assert (batch["score"], batch["num_scored"], batch["num_samples"]) == (0.0, 1, 2)


def test_models_of_entailment_and_judges_do_not_replace_one_another():
    lines = [
        {"id": "a", "by": "j", "prompts": "own 1", "scores": {"judge": 1.0}},
        {"id": "a", "by": "n", "prompts": None, "scores": {"citation_recall": 1.0}},
        {"id": "b", "by": "k", "prompts": "own 1", "scores": {"judge": 0.0}},
    ]
    assert latest_lines({"a"}, lines) == lines[:2]
    assert latest_lines({"a", "b"}, lines) == lines[1:]
    assert latest_lines({"c"}, lines) == []


def test_places_that_no_judged_task_has_are_refused(judged, judgeable, prompts, monkeypatch):
    Judge(monkeypatch)
    with pytest.raises(UserError, match="none of helmet_multi_lexsum, helmet_narrativeqa has a setting 'haystack'"):
        judged(judgeable, haystack="x")
    (prompts / "narrativeqa.txt").write_text("{question}")
    with pytest.raises(
        UserError, match=r"narrativeqa\.txt: it has the fields question; expected a text with the fields"
    ):
        judged(judgeable, data_dir=".", prompts_dir=str(prompts))


def test_the_command_hands_the_folders_on(judgeable, data, prompts, monkeypatch, capsys):
    judge = Judge(monkeypatch)
    places = ["--data-dir", str(data), "--judge-prompts", str(prompts)]
    assert main(["bench", "grade", str(judgeable), "--judge", "j", *places, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(judge.prompts) == 8
    assert results["tasks"][QUESTIONS]["judged_by"][0]["by"] == "j"
    assert json.loads((judgeable / "results.json").read_text()) == results
    for place in (places[:2], places[2:]):
        assert main(["bench", "grade", str(judgeable), *place]) == 2
        assert "have no effect without a judge: pass --judge too" in capsys.readouterr().err
