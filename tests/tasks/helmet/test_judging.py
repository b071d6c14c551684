"""What a judge is asked and what is read from its replies, against HELMET's arithmetic."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks import get_task
from longlens.tasks.helmet.judging import HELMETS, PROMPTS, fields_of, fill, last_object
from tests.tasks.fixtures import TOKENIZER

ASKED = {
    "helmet_narrativeqa": ("narrativeqa",),
    "helmet_infbench_sum": ("infbench_sum_fluency", "infbench_sum_recall", "infbench_sum_precision"),
    "helmet_multi_lexsum": ("multi_lexsum_fluency", "multi_lexsum_recall", "multi_lexsum_precision"),
}
FIELDS = {
    "narrativeqa": ("question", "correct_answers", "parsed_output"),
    "fluency": ("text",),
    "recall": ("keypoints", "summary"),
    "precision": ("expert_summary", "summary"),
}
KEYS = {
    "narrativeqa": {"fluency", "correctness"},
    "fluency": {"fluency"},
    "recall": {"supported_key_points", "recall"},
    "precision": {"precision", "sentence_count"},
}


def first(name, folder, **options):
    made = get_task(name, data_dir=folder, **options)
    return made, made.build(samples=1, tokenizer=TOKENIZER)[0]


def kind(name):
    return name.rpartition("_")[2]


def theirs(folder, tag="", **changes):
    """A folder with prompts of a user, in HELMET's way of writing braces."""
    folder.mkdir(exist_ok=True)
    for name in sum(ASKED.values(), ()):
        fields = " | ".join(f"{field}={{{field}}}" for field in FIELDS[kind(name)])
        text = changes.get(name, f'{tag}{name}: as {{{{"fluency": 1}}}}. {fields}\n')
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_each_task_asks_what_it_says_and_there_is_no_other_prompt():
    assert {name: get_task(name).prompts for name in ASKED} == ASKED
    assert set(PROMPTS) == set(sum(ASKED.values(), ())) == set(HELMETS)


@pytest.mark.parametrize("name", PROMPTS)
def test_our_prompts_show_replies_that_are_read(name):
    text = PROMPTS[name]
    assert fields_of(text) == set(FIELDS[kind(name)])
    assert all(text.count(f"{{{field}}}") == 1 for field in FIELDS[kind(name)])
    shown = [json.loads(found) for found in re.findall(r"\{\"[^{}]*\}", text)]
    assert len(shown) >= 2
    for reply in shown:
        assert reply.keys() == KEYS[kind(name)]
        assert reply.get("fluency", 1) in (0, 1)
        assert reply.get("correctness", 0) in range(4)
        assert len(reply.get("supported_key_points", [])) == reply.get("recall", 0)
        assert reply.get("precision", 0) <= reply.get("sentence_count", 0)


def test_an_answer_is_judged_by_question_and_right_answers(folder):
    made, sample = first("helmet_narrativeqa", folder)
    for reply in (" The {smith}\nof Arle ", "Answer: The {smith}\nof Arle"):
        (prompt,) = made.judge_prompts(sample, reply)
        end = f"Question: {sample.metadata['question']}\nRight answers: {sample.answers!r}\nAnswer: "
        assert prompt.endswith(f'{{"fluency": 1, "correctness": 2}}.\n\n{end}The {{smith}} of Arle\n')
    (prompt,) = made.judge_prompts(sample, " a smith\n\nQuestion: and?\nAnswer: b")
    assert prompt.endswith("Answer: a smith  Question: and? Answer: b\n")  # all that a base model writes


def test_prompts_of_the_user_take_the_place_of_ours(folder, tmp_path):
    own = theirs(tmp_path / "judge")
    made, sample = first("helmet_narrativeqa", folder, prompts_dir=own)
    (prompt,) = made.judge_prompts(sample, " The {question}\n")
    begin = f'narrativeqa: as {{"fluency": 1}}. question={sample.metadata["question"]}'
    assert prompt == f"{begin} | correct_answers={sample.answers!r} | parsed_output=The {{question}}\n"
    made, sample = first("helmet_infbench_sum", folder, prompts_dir=str(own))
    fluency, recall, precision = made.judge_prompts(sample, "{text} }}")
    assert fluency == 'infbench_sum_fluency: as {"fluency": 1}. text={text} }}\n'
    assert recall.startswith('infbench_sum_recall: as {"fluency": 1}. keypoints=1. ')
    assert precision.endswith(f"expert_summary={sample.answers[0]} | summary={{text}} }}}}\n")
    assert "prompts_dir" not in sample.metadata["settings"]


def test_whose_prompts_were_asked_is_told(folder, tmp_path, monkeypatch):
    labels = [get_task(name).prompts_by for name in ASKED]
    assert all(re.fullmatch("own [0-9a-f]{12}", label) for label in labels)
    assert len(set(labels)) == 3
    some, other = theirs(tmp_path / "a"), theirs(tmp_path / "b", tag="!")
    by = [get_task("helmet_infbench_sum", prompts_dir=place).prompts_by for place in (some, other, some)]
    assert by[0] == by[2] != by[1]
    texts = [(some / f"{name}.txt").read_text().rstrip() for name in ASKED["helmet_infbench_sum"]]
    assert by[0] == hashlib.sha256("\0".join(texts).encode()).hexdigest()
    for name, text in zip(ASKED["helmet_infbench_sum"], texts, strict=True):
        monkeypatch.setitem(HELMETS, name, hashlib.sha256(text.encode()).hexdigest()[:16])
        assert (get_task("helmet_infbench_sum", prompts_dir=some).prompts_by == "helmet") == name.endswith("precision")
    (some / "infbench_sum_recall.txt").write_text(f"{texts[1]}\n\n")  # as an editor leaves it
    assert get_task("helmet_infbench_sum", prompts_dir=some).prompts_by == "helmet"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Good? {text}", r"fluency\.txt: .* the fields text; expected a text with the fields \{answer\}"),
        ("Good?", r"it has the fields none; expected"),
        ("{answer.__class__}", "it has the fields none"),
        ("{answer!r} {0}", "it has the fields 0"),
        ("{answer} {other}", "it has the fields answer, other"),
        ("{{answer}}", "it has the fields none"),
    ],
)
def test_a_prompt_with_other_fields_is_refused(text, message, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(PROMPTS, "infbench_sum_fluency", "{answer}")
    made, sample = first("helmet_infbench_sum", folder, prompts_dir=theirs(tmp_path, infbench_sum_fluency=text))
    with pytest.raises(UserError, match=message):
        made.judge_prompts(sample, "x")


def test_a_prompt_that_is_not_there_is_not_replaced_by_ours(folder, tmp_path):
    own = theirs(tmp_path / "judge")
    (own / "multi_lexsum_recall.txt").unlink()
    made, sample = first("helmet_multi_lexsum", folder, prompts_dir=own)
    with pytest.raises(
        UserError, match=r"no multi_lexsum_recall\.txt in .*\{keypoints\} and \{summary\}\), from .*HELMET"
    ):
        made.judge_prompts(sample, "x")
    with pytest.raises(UserError, match=r"no multi_lexsum_recall\.txt in"):
        _ = made.prompts_by


PARTS = st.sampled_from(["{{", "}}", "{text}", "{summary}", "a", ' "', "\n", "[1]: "])
VALUES = {"text": "{summary} }} {{", "summary": "{text}{"}


@settings(derandomize=True, deadline=None)
@given(st.lists(PARTS, max_size=8))
def test_fields_are_filled_as_format_does(parts):
    template = "".join(parts)
    assert fill(template, VALUES) == template.format(**VALUES)
    assert fields_of(template) == {part[1:-1] for part in parts if part in ("{text}", "{summary}")}


def test_other_braces_stand_for_themselves():
    text = '{"a": {"b": 1}} {text.x} {text[0]} {text!r} {text:>9} { text } {}'
    assert fill(text, VALUES) == text.replace("}}", "}")


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
    assert "<text>\nThe {end}.\n</text>" in fluency
    assert recall.endswith(f"Key points:\n{listed}\n\n<summary>\nThe {{end}}.\n</summary>\n")
    for part in (f"<expert_summary>\n{expert}\n</expert_summary>", "<summary>\nThe {end}.\n</summary>"):
        assert part in precision
    assert ("novel" in recall) == ("novel" in precision) == (name == "helmet_infbench_sum")
    assert ("lawsuit" in recall) == ("lawsuit" in precision) == (name == "helmet_multi_lexsum")


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
    with pytest.raises(UserError, match=r"has no key points for document \d: use the file of the same dataset"):
        made.judge_prompts(sample, "x")
    (tmp_path / "infbench" / path.name).write_text('{"keypoints": ["a"]}')
    with pytest.raises(UserError, match="row 1: no number or string 'id'"):
        first("helmet_infbench_sum", tmp_path)[0].judge_prompts(sample, "x")


def test_the_last_object_counts():
    assert last_object('{"a": 1} {"a": 2}') == {"a": 2}
    assert last_object('{"a": {"b": 1}}') is None
    assert last_object('```json\n{"a": {"b": 1}}\n```', fenced=True) == {"a": {"b": 1}}
    assert last_object('```json\n[{"a": }]\n```', fenced=True) is None
    assert last_object("{" + "[" * 100_000 + "}") is None
