"""What a judge is asked and what is read from its replies, against HELMET's arithmetic."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib import resources

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task
from longlens.tasks.helmet.judging import judge_prompt, last_object
from tests.tasks.fixtures import TOKENIZER

PROMPTS = {  # sha256 of the constants in scripts/eval_gpt4_longqa.py and scripts/eval_gpt4_summ.py at 4526dfb
    "narrativeqa": "5e58473efe89277f",
    "multi_lexsum_fluency": "1ae2a512ceda269a",
    "infbench_sum_fluency": "1cdd25fa4ef5982b",
    "multi_lexsum_recall": "18fbb46816b4f273",
    "infbench_sum_recall": "2716154035020275",
    "multi_lexsum_precision": "977e320bea9a5956",
    "infbench_sum_precision": "98f9964803fa36d0",
}


def first(name, folder):
    made = get_task(name, data_dir=folder)
    return made, made.build(samples=1, tokenizer=TOKENIZER)[0]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_helmets(name):
    content = (resources.files("longlens.tasks.helmet") / "prompts" / f"{name}.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == PROMPTS[name]


def test_an_answer_is_judged_by_question_and_right_answers(folder):
    made, sample = first("helmet_narrativeqa", folder)
    for reply in (" The {smith}\nof Arle ", "Answer: The {smith}\nof Arle"):
        (prompt,) = made.judge_prompts(sample, reply)
        end = f"Question: {sample.metadata['question']}\nCorrect answers: {sample.answers!r}\nAnswer: "
        assert prompt.endswith(f'{{"fluency": 0, "correctness": 1}}.\n\n{end}The {{smith}} of Arle\n')
    (prompt,) = made.judge_prompts(sample, " a smith\n\nQuestion: and?\nAnswer: b")
    assert prompt.endswith("Answer: a smith  Question: and? Answer: b\n")  # all that a base model writes


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ('So {"fluency": 1, "correctness": 3}', (1, 3)),
        ('{"fluency": 0, "correctness": 3}', (0, 3)),
        ('{"fluency": 0, "correctness": 0} no, rather\n```json\n{"fluency": 1,\n "correctness": 2}\n```', (1, 2)),
        ("I give 3.", None),
        ('{"fluency": 1, "correctness": 3} or {so}', None),
        ('{"fluency": 1}', None),
        ('{"fluency": 1, "correctness": 4}', None),
        ('{"fluency": 1, "correctness": -1}', None),
        ('{"fluency": NaN, "correctness": 1}', None),
        ('{"fluency": "1", "correctness": 1}', None),
        ("", None),
    ],
)
def test_an_answer_has_fluency_times_correctness_of_three(reply, points, folder):
    made, sample = first("helmet_narrativeqa", folder)
    scores = made.judged(sample, "x", [reply])
    if points is None:
        assert scores == {}
    else:
        fluency, correctness = points
        assert scores == {
            "judge": pytest.approx(fluency * correctness / 3),
            "judge_fluency": fluency,
            "judge_correctness": pytest.approx(correctness / 3),
        }
        assert next(iter(scores)) == made.judged_metric


@pytest.mark.parametrize("name", ["helmet_infbench_sum", "helmet_multi_lexsum"])
def test_a_summary_is_judged_in_three_ways(name, folder):
    made, sample = first(name, folder)
    fluency, recall, precision = made.judge_prompts(sample, " The {end}.\n")
    if name == "helmet_infbench_sum":
        number = sample.metadata["document"]
        file, field, expert = "longbook_sum_eng_keypoints.jsonl", "keypoints", sample.answers[0]
    else:
        number = sample.metadata["document"]
        file, field, expert = "multi_lexsum_val.jsonl", "summary/short_keypoints", sample.metadata["long_summary"]
    points = next(row[field] for row in map(json.loads, (folder / file).open()) if row["id"] == number)
    listed = "\n".join(f"{place}. {point}" for place, point in enumerate(points, 1))
    kind = made.prompts
    assert fluency == judge_prompt(f"{kind}_fluency", text="The {end}.")
    assert 'Text: "The {end}."' in fluency
    assert recall == judge_prompt(f"{kind}_recall", keypoints=listed, summary="The {end}.")
    assert precision == judge_prompt(f"{kind}_precision", expert_summary=expert, summary="The {end}.")
    assert f"\n{listed}\n" in recall
    assert expert in precision


FLUENT, RECALL, PRECISE = '{"fluency": 1}', '{"recall": 1}', '{"precision": 3, "sentence_count": 4}'


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((FLUENT, RECALL, PRECISE), (1, 1 / 3, 3 / 4)),
        (('{"fluency": 0}', RECALL, PRECISE), (0, 1 / 3, 3 / 4)),
        ((FLUENT, '{"recall": 0}', '{"precision": 0, "sentence_count": 4}'), (1, 0, 0)),
        ((FLUENT, RECALL, '{"precision": 0, "sentence_count": 0}'), (1, 1 / 3, 0)),
        ((FLUENT, '```json\n{"recall": 1, "found": {"a": 1}}\n``` done', PRECISE), (1, 1 / 3, 3 / 4)),
        ((FLUENT, '{"recall": 4}', PRECISE), None),  # of three key points
        ((FLUENT, RECALL, '{"precision": 5, "sentence_count": 4}'), None),
        ((FLUENT, RECALL, '{"precision": 3}'), None),
        ((FLUENT, "two", PRECISE), None),
        (("", RECALL, PRECISE), None),
    ],
)
def test_a_summary_has_fluency_times_f1(replies, expected, folder):
    made, sample = first("helmet_multi_lexsum", folder)
    scores = made.judged(sample, "x", replies)
    if expected is None:
        assert scores == {}
        return
    fluency, recall, precision = expected
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0
    names = ("judge", "judge_fluency", "judge_recall", "judge_precision")
    assert scores == pytest.approx(dict(zip(names, (fluency * f1, fluency, recall, precision), strict=True)))


def test_key_points_are_needed_to_judge_and_not_to_build(folder, tmp_path):
    for file in ("longbook_sum_eng.jsonl", "longbook_sum_eng_keypoints.jsonl"):
        shutil.copy(folder / file, tmp_path)
    path = tmp_path / "longbook_sum_eng_keypoints.jsonl"
    lines = path.read_text().splitlines()
    path.unlink()
    made, sample = first("helmet_infbench_sum", tmp_path)
    with pytest.raises(UserError, match=r"no longbook_sum_eng_keypoints\.jsonl or infbench/.* princeton-nlp/HELMET"):
        made.judge_prompts(sample, "x")
    (tmp_path / "infbench").mkdir()
    kept = [line for line in lines if json.loads(line)["id"] != sample.metadata["document"]]
    (tmp_path / "infbench" / path.name).write_text("\n".join(kept))
    with pytest.raises(UserError, match=r"has no key points for document \d: give the file of the same data set"):
        made.judge_prompts(sample, "x")
    (tmp_path / "infbench" / path.name).write_text('{"keypoints": ["a"]}')
    with pytest.raises(UserError, match="row 1: no number or text 'id'"):
        first("helmet_infbench_sum", tmp_path)[0].judge_prompts(sample, "x")


def test_the_last_object_counts():
    assert last_object('{"a": 1} {"a": 2}') == {"a": 2}
    assert last_object('{"a": {"b": 1}}') is None
    assert last_object('```json\n{"a": {"b": 1}}\n```', fenced=True) == {"a": {"b": 1}}
    assert last_object('```json\n[{"a": }]\n```', fenced=True) is None
    assert last_object("{" + "[" * 100_000 + "}") is None
