"""Scores of answers: which text is the answer, files of predictions, runs, and scores of judges."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest

from longlens.bench import judging
from longlens.bench.engine import EngineSettings
from longlens.bench.judging import JUDGE_TOKENS, judge_answer, judge_run
from longlens.bench.results import answer_text, grade_predictions, grade_run, summarize_run
from longlens.bench.run import run_bench
from longlens.bench.samples import read_sample_file
from longlens.bench.selection import task_of
from longlens.bench.store import read_manifest, set_think_marks
from longlens.errors import UserError
from longlens.models import entailment, generate
from longlens.reasoning import MARKS, parse_marks
from longlens.settings.options import Loading
from longlens.tasks import get_task, list_tasks
from longlens.tasks.base import CitedTask, JudgedTask
from tests.bench.fakes import FakeEngine, bench_settings, rows, sample
from tests.tasks.fixtures import task as with_data
from tests.tiny import byte_tokenizer


def graded(folder):
    return list(grade_run(folder, read_manifest(folder)))


def written(path, samples):
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in samples))
    return path


# --- which text is the answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("7", "7"),
        (" 7\n", " 7\n"),
        ("<think>is it 8?</think>\n\n 7", "7"),
        ("is it 8?</think> 7", "7"),  # the template opened the reasoning
        ("<think>a<think>b</think>c</think>7", "7"),
        ("<think>a</think>8<think>b</think>7", "7"),
        ("<think>is it 8", ""),
        ("7 <think>is it 8", ""),
        ("<think>a</think>7 <think>or is it 8", ""),
        ("<think></think>", ""),
        ("</think>", ""),
        ("", ""),
        ("I think </b> 7 <thin>", "I think </b> 7 <thin>"),
    ],
)
def test_an_answer_is_what_comes_after_reasoning(output, expected):
    assert answer_text(output) == expected
    assert answer_text(output, thinks=True) == expected


WRONG = "I see 7 and 8."
FORMS = {
    **{begin: (f"{begin}{WRONG}{end}", f"{begin}{WRONG}") for begin, end in MARKS},
    "capitals": (f"<THINK>{WRONG}</Think>", f"<Think>{WRONG}"),
    "opened by the template": (f"{WRONG}[/THINK]", f"8[/THINK][THINK]{WRONG}"),
    "harmony": (
        f"<|channel|>analysis<|message|>{WRONG}<|end|><|start|>assistant<|channel|>final<|message|>",
        f"<|channel|>analysis<|message|>{WRONG}<|end|><|start|>assistant<|channel|>commentary<|message|>{WRONG}",
    ),
    "harmony with a constraint": (
        f"<|channel|>commentary<|message|>{WRONG}<|end|><|channel|>final <|constrain|>json<|message|>",
        f"<|channel|>analysis<|message|>{WRONG}",
    ),
    "harmony in plain text": (f"analysis{WRONG}assistantcommentary{WRONG}assistantfinal", f"analysis{WRONG}"),
}


@pytest.mark.parametrize("form", FORMS)
def test_reasoning_of_any_family_is_no_answer(form):
    closed, unclosed = FORMS[form]
    for thinks in (True, False):
        for is_truncated in (True, False):
            options = {"thinks": thinks, "is_truncated": is_truncated}
            assert answer_text(f"{closed}It is 9.", **options) == "It is 9."
            assert answer_text(unclosed, **options) == ""
            assert answer_text(f"{unclosed}\nIt is 9.", ("\n",), **options) == ""
    assert answer_text(f"{closed}It is 9.<|return|>", ("<|return|>",)) == "It is 9."


@pytest.mark.parametrize("text", ["analysis of the text: 7", "The final answer is 7.", "assistant [7]", "a < b > 7"])
def test_an_answer_that_has_such_words_stays(text):
    assert answer_text(text) == text


def test_other_marks_can_be_given(tmp_path):
    marks = parse_marks("<plan>, </plan>")
    assert marks == ("<plan>", "</plan>")
    assert [answer_text(text, marks=marks) for text in ("<plan>8</plan> 7", "<PLAN>8", "<think>8</think>7")] == [
        "7",
        "",
        "7",
    ]
    (found,) = grade_predictions(SAMPLES[:1], predictions(tmp_path, said(IDS[0], "<plan>0</plan>1")), marks=marks)
    assert found.scores == {"string_match_all": 0.0}
    for wrong in ("", "a", "a,", ",b", "a,a", "a,b,c"):
        with pytest.raises(UserError, match=r"`think_marks` is .*; expected BEGIN,END"):
            parse_marks(wrong)


def test_marks_of_a_run_may_be_given_later(model, tmp_path):
    run(model, tmp_path, FakeEngine(lambda request: "<plan>no</plan>7"), "longeval_lines", lengths=[1000], samples=1)
    assert [row.prediction for row in graded(tmp_path)] == ["<plan>no</plan>7"]
    set_think_marks(tmp_path, ("<plan>", "</plan>"))
    assert [row.prediction for row in graded(tmp_path)] == ["7"]


@pytest.mark.parametrize(
    ("output", "stop", "expected"),
    [
        ("7\n8", ("\n",), "7"),
        ("7. Q: 8\n", ("\n", "Q:"), "7. "),
        ("\n7", ("\n",), ""),
        ("<think>a\nb</think>\n7\n8", ("\n",), "7"),
        ("<think>Q: a</think> 7 Q: 8", ("Q:",), "7 "),
        ("7", ("\n", "."), "7"),
    ],
)
def test_an_answer_ends_at_the_first_stop_and_reasoning_does_not(output, stop, expected):
    assert answer_text(output, stop) == expected


@pytest.mark.parametrize(
    ("output", "thinks", "is_truncated", "expected"),
    [
        ("is it 8? or", True, True, ""),  # reasoning that the template opened, and that did not come to its end
        ("7", True, False, "7"),
        ("7", False, True, "7"),
        ("is it 8?</think>7 and", True, True, "7 and"),
    ],
)
def test_an_answer_cut_short_while_reasoning_is_none(output, thinks, is_truncated, expected):
    assert answer_text(output, thinks=thinks, is_truncated=is_truncated) == expected


# --- files of predictions ---------------------------------------------------------------------------------------------


def predictions(folder, *lines):
    path = folder / "predictions.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


SAMPLES = [sample(number=number, answers=(str(number),)) for number in range(3)]
IDS = [one.id for one in SAMPLES]


def said(key, text="it is 0"):
    return {"id": key, "prediction": text}


def test_predictions_are_scored_in_the_order_of_the_samples(tmp_path):
    texts = {IDS[2]: "it is 2", IDS[0]: "<think>2</think> 0", IDS[1]: "none"}
    path = predictions(tmp_path, *[said(key, text) | {"more": 1} for key, text in texts.items()])
    found = grade_predictions(SAMPLES, path)
    assert [row.sample.id for row in found] == IDS
    assert [row.prediction for row in found] == ["0", "none", "it is 2"]
    assert [row.scores for row in found] == [{"string_match_all": float(right)} for right in (1, 0, 1)]
    assert {row.batch for row in found} == {"niah_single_1-4096-42"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [said(IDS[0])],
            f"has no prediction for 2 of 3 samples, such as '{IDS[1]}': add one for each, with an empty string",
        ),
        (
            [said(IDS[0]), said("other-0")],
            "predictions.jsonl:2.: no sample has the id 'other-0': check that the predictions",
        ),
        (
            [said(IDS[0]), "", said(IDS[0])],
            f"predictions.jsonl:3.: the id '{IDS[0]}' occurs twice: keep one prediction per",
        ),
        (
            [said(IDS[0], 7)],
            r'predictions.jsonl:1.: expected \{"id": "…", "prediction": "…"\}, two texts; got the fields',
        ),
        ([said(IDS[0], None)], "predictions.jsonl:1.: expected"),
        ([said(7)], "predictions.jsonl:1.: expected"),
        ([{"id": IDS[0], "answer": "7"}], "predictions.jsonl:1.: expected .*; got the fields \\['id', 'answer'"),
        ([{}], "predictions.jsonl:1.: expected .*got no fields"),
        ([said(IDS[0]), '{"id": "a", '], r"predictions.jsonl:2' is broken"),
        ([said(IDS[0]), "[]"], r"predictions.jsonl:2' is a JSON list, expected .*prediction"),
        ([], "has no prediction for 3 of 3 samples"),
    ],
)
def test_a_wrong_file_of_predictions_is_one_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message) as caught:
        grade_predictions(SAMPLES, predictions(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_a_line_that_is_broken_off_is_an_error_in_a_file_of_predictions(tmp_path):
    path = predictions(tmp_path, *[said(key) for key in IDS])
    path.write_text(path.read_text().rstrip()[:-3])
    with pytest.raises(UserError, match=r"predictions.jsonl:3. is broken"):
        grade_predictions(SAMPLES, path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"task": "nosuch"}, "no task 'nosuch'"), ({"task": None}, "has no task in its metadata")],
)
def test_samples_of_no_task_are_an_error(tmp_path, metadata, message):
    mine = sample(**metadata)
    with pytest.raises(UserError, match=message):
        grade_predictions([mine], predictions(tmp_path, said(mine.id)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "id is 7, expected a JSON string: pass a file of longlens bench build"),
        ({"prompt": 7}, "prompt is 7, expected a JSON string"),
        ({"answers": "7"}, "answers is '7', expected a list of strings"),
        ({"answers": [7]}, r"answers is \[7\], expected a list of strings"),
        ({"answers": []}, "answers is empty, expected at least one right answer"),
        ({"metadata": []}, r"metadata is \[\], expected a JSON object"),
        ({"length": "9"}, "length is '9', expected a JSON integer"),
        ({"length": True}, "length is True, expected a JSON integer"),
        *(
            ({"metadata": SAMPLES[1].metadata | change}, f"metadata.*{next(iter(change))} is ")
            for change in (
                {"settings": []},
                {"settings": "a"},
                {"task": 7},
                {"seed": "x"},
                {"index": [1]},
                {"requested_length": "4096"},
                {"depth": "top"},
                {"depths": 5},
                {"depths": ["a"]},
                {"distractors": "abc"},
                {"distractors": [5]},
                {"cut": 3},
                {"data": "x"},
            )
        ),
        ({"answer_spans": 7}, "samples.jsonl:2.*answer_spans"),
        ({"answer_spans": [[1]]}, "samples.jsonl:2.*answer_spans"),
        ({"answer_spans": [["a", "b"]]}, "samples.jsonl:2.*answer_spans"),
        ({"context_span": [7]}, "samples.jsonl:2.*context_span"),
        ({"context_span": "none"}, "samples.jsonl:2.*context_span"),
        ({"id": IDS[0]}, f"the id '{IDS[0]}' occurs twice"),
    ],
)
def test_a_wrong_file_of_samples_is_one_line(tmp_path, change, message):
    path = tmp_path / "samples.jsonl"
    lines = [asdict(SAMPLES[0]), asdict(SAMPLES[1]) | change]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=message) as caught:
        read_sample_file(path)
    assert "\n" not in str(caught.value)


def test_an_empty_file_of_samples_is_an_error(tmp_path):
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no samples: expected the JSON Lines of longlens bench build"):
        read_sample_file(tmp_path / "samples.jsonl")


LONG = {"longeval_topics": 3000, "longeval_lines_1350": None, "infinitebench_math_calc": None}


@pytest.mark.parametrize("name", list_tasks())
def test_scores_of_a_file_are_those_of_the_task(tmp_path, name, data):
    """What a sample's JSON holds is all that its score needs."""
    task = with_data(name, data)
    made = task.build(length=LONG.get(name, 6000), samples=2, tokenizer=byte_tokenizer())
    read = read_sample_file(written(tmp_path / "samples.jsonl", made))
    assert read == [type(one)(**json.loads(json.dumps(asdict(one))) | spans(one) | {"prompt": ""}) for one in made]
    texts = [f" {made[0].answers[0]}" if made[0].answers else "", "The answer is 12345, perhaps [1]."]
    found = grade_predictions(read, predictions(tmp_path, *map(said, [one.id for one in made], texts)))
    for row, one, text in zip(found, made, texts, strict=True):
        assert row.scores == task.score(one, answer_text(text, task.stop))
        assert all(0 <= score <= 1 for score in row.scores.values())
    assert task.metric in task.aggregate([row.scores for row in found])


def spans(one):
    return {"answer_spans": list(one.answer_spans), "context_span": one.context_span}


def test_settings_of_a_task_are_those_of_its_samples():
    task = get_task("niah_grid", needle="The key is under the mat.", answer="under the mat", question="Where?")
    made = task.build(length=1000, samples=1, tokenizer=byte_tokenizer())[0]
    assert task_of(made).needle == task.needle
    assert task_of(made).judge_prompts(made, "here") == task.judge_prompts(made, "here")


# --- runs -------------------------------------------------------------------------------------------------------------


def run(model, folder, engine, *tasks, settings=None, **changes):
    asked = bench_settings(tasks=tasks, settings=settings or {}, **changes)
    return run_bench(EngineSettings(model=model), asked, folder, open_engine=engine)


def test_answers_of_a_run_are_scored_by_its_samples(model, tmp_path):
    def text(request):
        return f"<think>12\n</think>{'7' if '42-0' in request.key else '8'}"

    run(model, tmp_path, FakeEngine(text), "longeval_lines", lengths=[1000], samples=3)
    found = graded(tmp_path)
    assert [row.prediction for row in found] == ["7", "8", "8"]
    for row in found:
        right = float(row.sample.answers[0] == row.prediction)
        assert row.scores == {"accuracy": right}
        assert (row.is_truncated, row.is_skipped, row.nll) == (False, False, None)


def test_an_answer_after_reasoning_ends_at_the_tasks_stop(model, data, tmp_path):
    """The model is not stopped there, since the stop may stand in the reasoning."""
    engine = FakeEngine("<think>one\ntwo</think>\n\nthree\nfour")
    asked = {"settings": {"data_dir": str(data)}, "samples": 1, "lengths": [3000], "think_tokens": 50}
    run(model, tmp_path, engine, "longbench_samsum", **asked)
    assert engine.asked[0].stop == ()
    (found,) = graded(tmp_path)
    assert found.prediction == "three"


def test_an_answer_to_another_prompt_is_none(model, tmp_path):
    run(model, tmp_path, FakeEngine(), "longeval_lines", lengths=[1000], samples=2)
    (part,) = (tmp_path / "answers").iterdir()
    changed = [json.loads(line) for line in part.read_text().splitlines()]
    changed[0]["prompt_sha256"] = "of another"
    part.write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert [row.prediction for row in graded(tmp_path)] == [None, "no idea"]


def test_the_likelihood_of_the_right_answer_is_kept(model, tmp_path):
    engine = FakeEngine(logprob=lambda request: -0.25 if "42-1#" in request.key else -3.5)
    run(model, tmp_path, engine, "longeval_lines", lengths=[1000], samples=2, mode="teacher-forced")
    found = graded(tmp_path)
    assert [(row.scores, row.nll, row.prediction) for row in found] == [
        ({"teacher_forced": 0.0}, 3.5, None),
        ({"teacher_forced": 1.0}, 0.25, None),
    ]


@pytest.mark.parametrize(
    ("logprobs", "by_all", "by_byte"),
    [([-1.0, -2.0], 1, 1), ([-2.0, -1.0], 0, 0), ([-1.0, -1.0], 0, None), ([-4.0, -3.9], 0, None)],
    ids=["right", "wrong", "tie", "near"],
)
def test_the_right_answer_has_to_be_likelier_than_all_wrong_ones(model, tmp_path, logprobs, by_all, by_byte):
    """A tie is not a right answer; by byte, a long answer may be the likelier one."""
    right, wrong = logprobs
    engine = FakeEngine(logprob=lambda request: right if request.key.endswith("#0") else wrong)
    run(model, tmp_path, engine, "longeval_lines", lengths=[1000], samples=1, mode="choice")
    (found,) = graded(tmp_path)
    texts = [request.continuation for request in engine.asked]
    assert len(texts) > 2
    assert texts[0] == found.sample.answers[0]
    each = [(right if number == 0 else wrong) / len(text.encode()) for number, text in enumerate(texts)]
    assert found.scores == {
        "choice_accuracy": by_all,
        "choice_accuracy_by_byte": float(each[0] > max(each[1:])),
    }
    assert by_byte in (None, found.scores["choice_accuracy_by_byte"])
    assert found.nll == -right


def test_likelihoods_are_divided_by_bytes(model, tmp_path):
    (one,) = get_task("longeval_lines").build(length=1000, samples=1, tokenizer=byte_tokenizer())
    one = replace(one, answers=["日本"], metadata={**one.metadata, "distractors": ["aaaaa"]})
    written(tmp_path / "s.jsonl", [one])
    # 6 bytes and 5; by character the second one would be the likelier.
    engine = FakeEngine(logprob=lambda request: -6.0 if request.continuation == "日本" else -5.5)
    run(model, tmp_path / "run", engine, str(tmp_path / "s.jsonl"), mode="choice")
    (found,) = graded(tmp_path / "run")
    assert found.scores == {"choice_accuracy": 0.0, "choice_accuracy_by_byte": 1.0}


def test_a_choice_with_an_answer_missing_has_no_score(model, tmp_path):
    engine = FakeEngine(logprob=lambda request: -1.0)
    run(model, tmp_path, engine, "longeval_lines", lengths=[1000], samples=1, mode="choice")
    (part,) = (tmp_path / "answers").iterdir()
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))
    (found,) = graded(tmp_path)
    assert (found.scores, found.nll) == (None, None)


# --- judges -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def judgeable(model, data, tmp_path):
    """A run of a task with a judge, and of one with citations."""
    engine = FakeEngine("It is Ada [1]. So it is.")
    folder = tmp_path / "run"
    run(model, folder, engine, "niah_grid", lengths=[1500], samples=2)
    run(model, folder, engine, "helmet_asqa", lengths=[4000], samples=2, settings={"data_dir": str(data)})
    return folder


class FakeJudge:
    """In the place of `longlens.models.generate.TransformersGenerator`."""

    generation = None

    def __init__(self, *replies):
        self.replies, self.prompts, self.opened = list(replies), [], []

    def load(self, name, **options):
        self.opened.append((name, options))
        return self

    def generate(self, prompts):
        self.prompts += prompts
        return [generate.Completion(self.replies.pop(0), True) for _ in prompts]


def test_a_judge_scores_each_answer_once(model, judgeable, monkeypatch, log):
    judge = FakeJudge("<think>Rating: [[1]]</think>Rating: [[7]]", "no rating")
    monkeypatch.setattr(generate, "load_generator", judge.load)
    judge_run(judgeable, judge=model, nli=None, loading=Loading(dtype="float32"))
    ((name, options),) = judge.opened
    assert (name, options["max_new_tokens"], options["dtype"]) == (model, JUDGE_TOKENS, "float32")
    assert log == [f"{model}: 2 of 2 answers to score"]
    answers = [row for row in graded(judgeable) if isinstance(row.task, JudgedTask)]
    assert judge.prompts == [row.task.judge_prompts(row.sample, "It is Ada [1]. So it is.")[0] for row in answers]
    assert [(row["id"], row["by"], row["scores"], row["replies"]) for row in rows(judgeable, "judged")] == [
        (answers[0].sample.id, model, {"judge": 0.7}, ["<think>Rating: [[1]]</think>Rating: [[7]]"]),
        (answers[1].sample.id, model, {}, ["no rating"]),
    ]
    grid = summarize_run(judgeable)["tasks"]["niah_grid-1500-42"]
    # What could not be read does not count as wrong, and is not hidden.
    assert (grid["metric"], grid["score"], grid["num_scored"], grid["num_samples"]) == ("judge", 70.0, 1, 2)
    assert grid["scores"]["exact"] == 0.0
    judge_run(judgeable, judge=model, nli=None, loading=Loading())
    assert (len(judge.opened), len(judge.prompts), log[-1]) == (1, 2, f"{model}: 0 of 2 answers to score")


def test_of_two_judges_the_last_one_counts(model, judgeable, tmp_path, monkeypatch):
    for number, points in enumerate([2, 9, 4, 5, 3]):
        name = str(shutil.copytree(model, tmp_path / f"judge{number}"))
        monkeypatch.setattr(generate, "load_generator", FakeJudge(*[f"Rating: [[{points}]]"] * 2).load)
        judge_run(judgeable, judge=name, nli=None, loading=Loading())
        assert summarize_run(judgeable)["tasks"]["niah_grid-1500-42"]["score"] == 10 * points


def test_another_model_under_the_name_of_a_judge_is_asked_again(model, judgeable, tmp_path, monkeypatch, log):
    monkeypatch.setattr(judging, "JUDGE_TOKENS", 3)
    folder = shutil.copytree(model, tmp_path / "judge")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257, "repetition_penalty": 9.0}))
    config = folder / "config.json"
    before = config.read_text()
    for content in (before, before.replace('"rms_norm_eps": ', '"rms_norm_eps": 1'), before):
        config.write_text(content)
        judge_run(judgeable, judge=str(folder), nli=None, loading=Loading(dtype="float32"))
    assert [line.partition(": ")[2] for line in log] == [f"{n} of 2 answers to score" for n in (2, 2, 0)]
    lines = rows(judgeable, "judged")
    assert [len({line["model"] for line in lines[i : i + 2]} | {lines[0]["model"]}) for i in (0, 2, 4)] == [1, 2, 1]
    generation = lines[0]["generation"]
    assert (generation["in_force"]["num_beams"], generation["ignored"]) == (1, {"repetition_penalty": 9.0})


def test_a_judge_that_fails_loses_no_score(model, judgeable, monkeypatch):
    monkeypatch.setattr(generate, "load_generator", FakeJudge("Rating: [[10]]").load)
    with pytest.raises(IndexError):
        judge_run(judgeable, judge=model, nli=None, loading=Loading())
    again = FakeJudge("Rating: [[5]]")
    monkeypatch.setattr(generate, "load_generator", again.load)
    judge_run(judgeable, judge=model, nli=None, loading=Loading())
    assert len(again.prompts) == 1
    assert [row["scores"] for row in rows(judgeable, "judged")] == [{"judge": 1.0}, {"judge": 0.5}]


def test_citations_are_scored_by_a_model_of_entailment(model, judgeable, monkeypatch):
    asked = []

    class FakeEntails:
        generation = None

        def __call__(self, premise, claim):
            asked.append((premise, claim))
            return claim.startswith("It is Ada")

    monkeypatch.setattr(entailment, "load_entails", lambda name, **options: FakeEntails())
    judge_run(judgeable, judge=None, nli=model, loading=Loading())
    answers = [row for row in graded(judgeable) if isinstance(row.task, CitedTask)]
    assert len(answers) == 2
    for row, answer in zip(rows(judgeable, "judged"), answers, strict=True):
        by_hand = answer.task.cited(answer.sample, answer.prediction, lambda premise, claim: "Ada" in claim)
        assert (row["id"], row["by"], row["scores"]) == (answer.sample.id, model, by_hand)
    # One of two sentences is supported, and its one citation is right.
    cited = summarize_run(judgeable)["tasks"]["helmet_asqa-4000-42"]["scores"]
    assert (cited["citation_recall"], cited["citation_precision"]) == (50.0, 100.0)
    assert {claim for _, claim in asked} == {"It is Ada."}


@pytest.mark.parametrize(
    ("task", "options"), [("longeval_lines", {"judge": "j"}), ("niah_grid", {"nli": "n"}), ("cwe", {"nli": "n"})]
)
def test_a_run_that_no_judge_could_score_is_an_error(model, tmp_path, monkeypatch, task, options):
    run(model, tmp_path, FakeEngine(), task, lengths=[2500], samples=1)
    monkeypatch.setattr(generate, "load_generator", lambda *a, **o: pytest.fail("loaded"))
    monkeypatch.setattr(entailment, "load_entails", lambda *a, **o: pytest.fail("loaded"))
    (name,) = options.values()
    with pytest.raises(UserError, match=f"has no answers for {name} to score"):
        judge_run(tmp_path, **{"judge": None, "nli": None} | options, loading=Loading())


def test_what_there_is_nothing_to_ask_about_has_no_score(judgeable):
    row = next(r for r in graded(judgeable) if isinstance(r.task, JudgedTask))
    silent = type("Silent", (type(row.task),), {"judge_prompts": lambda self, sample, prediction: []})()
    mine = type(row)(sample=row.sample, task=silent, batch=row.batch, prediction="")
    assert judge_answer(mine, lambda prompts: pytest.fail("asked")) == ({}, [])
    assert judge_answer(row, lambda prompts: ["Rating: 10"] * len(prompts)) == ({"judge": 1.0}, ["Rating: 10"])
