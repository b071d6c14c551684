"""Many-shot learning: prompts, numbers for classes, balance of the examples, and which texts are asked."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks import get_task
from longlens.tasks.helmet.icl import SHOTS, LabeledText, by_label, rounds
from tests.tasks.fixtures import LENGTH, TOKENIZER, task
from tests.tasks.helmet.rows_rag_rerank_icl import CLINIC, TREC, labeled_rows

NAMES = ["helmet_trec_coarse", "helmet_trec_fine", "helmet_banking77", "helmet_clinic150", "helmet_nlu"]
CLASSES = {"helmet_trec_coarse": 6, "helmet_trec_fine": 50, "helmet_banking77": 77, "helmet_clinic150": 151}
TEMPLATE = (
    'Use the provided mapping from the text to label to assign a label to the text. Only output "label: {{label}}" and '
    "nothing else. \n\n{context}\n\n{question}\nlabel:"
)
TRAIN = {
    "helmet_trec_coarse": {row["text"]: row["coarse_label"] for row in TREC},
    "helmet_trec_fine": {row["text"]: row["fine_label"] for row in TREC},
    "helmet_banking77": {row["text"]: row["label"] for row in labeled_rows(range(12), 5, ("label",), "Why does my")},
    "helmet_clinic150": {
        row["text"]: row["intent"] for row in labeled_rows(CLINIC, 4, ("intent",), "Tell me what the")
    },
    "helmet_nlu": {row["text"]: row["label"] for row in labeled_rows(range(0, 68, 9), 12, ("label",), "Wake the")},
}


def build(name, folder, samples=3, **arguments):
    return task(name, folder).build(**({"length": LENGTH, "samples": samples, "tokenizer": TOKENIZER} | arguments))


def examples_of(sample):
    return re.findall(r"(?:^|\n\n)(.+)\nlabel: (\d+)", sample.prompt[slice(*sample.context_span)])


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_helmets_template_with_a_number_for_each_class(name, folder):
    numbers_by_sample = []
    for sample in build(name, folder, samples=5):
        shown = examples_of(sample)
        assert len(shown) == sample.metadata["shots"] == sample.metadata["units"]
        question = sample.prompt.rpartition("\n\n")[2]
        context = "\n\n".join(f"{text}\nlabel: {number}" for text, number in shown)
        assert sample.prompt + sample.answer_prefix == TEMPLATE.format(context=context, question=question)
        numbers = {}
        for text, number in shown:
            assert numbers.setdefault(TRAIN[name][text], number) == number
        assert len(set(numbers.values())) == len(numbers) == len(set(TRAIN[name].values()))
        assert {int(number) for number in numbers.values()} <= set(range(CLASSES.get(name, 68)))
        numbers_by_sample.append(numbers)
        classes = {number: label for label, number in numbers.items()}
        asked = int(re.search(r"\d+", question)[0])  # the texts of these tests say their class
        told = {"helmet_trec_fine": 7}.get(name, 1)
        assert classes[sample.answers[0]] // told == asked
        wrong, others = set(sample.metadata["distractors"]), set(numbers.values()) - set(sample.answers)
        assert len(wrong) == min(9, CLASSES.get(name, 68) - 1)
        assert sample.metadata["distractors_in_text"] == min(9, len(others)) == len(wrong & others)
        assert {int(number) for number in wrong - others} <= set(range(CLASSES.get(name, 68)))
        wanted = [number for _, number in shown].count(sample.answers[0])
        assert len(sample.answer_spans) == wanted
        assert all(sample.prompt[:start].endswith("\nlabel: ") for start, _ in sample.answer_spans)
    assert len({json.dumps(numbers, sort_keys=True) for numbers in numbers_by_sample}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_balanced_and_repeat_only_when_a_class_is_used_up(name, folder):
    (sample,) = get_task(name, data_dir=folder, shots=200).build(samples=1, tokenizer=TOKENIZER)
    shown = [(text, TRAIN[name][text]) for text, _ in examples_of(sample)]
    assert len(shown) == 200
    labels = set(TRAIN[name].values())
    for first in range(0, 200 - len(labels), len(labels)):
        assert {label for _, label in shown[first : first + len(labels)]} == labels
    orders = {tuple(label for _, label in shown[first : first + len(labels)]) for first in range(0, 60, len(labels))}
    assert len(orders) > 1
    for label in labels:
        own = [text for text, of in shown if of == label]
        there = [text for text, of in TRAIN[name].items() if of == label] if name != "helmet_nlu" else None
        if there is not None:
            assert sorted(own[: len(there)]) == sorted(there)[: len(own)] or len(own) < len(there)
            assert max(Counter(own).values()) - min(Counter(own).values()) <= 1


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(0, 5))
def test_rounds_have_one_of_each_class(sizes, seed):
    texts = {label: [f"{label}-{number}" for number in range(size)] for label, size in enumerate(sizes)}
    drawn = list(islice(rounds(texts, random.Random(seed)), 12))
    for one_each in drawn:
        assert sorted(example.label for example in one_each) == list(range(len(sizes)))
    for label, size in enumerate(sizes):
        own = [example.text for one_each in drawn for example in one_each if example.label == label]
        for first in range(0, 12 - size + 1, size):
            assert sorted(own[first : first + size]) == sorted(texts[label])


def test_classes_are_grouped_in_their_order():
    assert by_label([LabeledText("b", 2), LabeledText("a", 0), LabeledText("c", 2)]) == {0: ["a"], 2: ["b", "c"]}
    assert list(by_label([LabeledText("b", 2), LabeledText("a", 0)])) == [0, 2]


def test_a_small_test_set_is_asked_whole(folder):
    asked = [sample.prompt.rpartition("\n\n")[2] for sample in build("helmet_trec_coarse", folder, samples=30)]
    assert sorted(asked) == sorted("Now, " + row["text"] for row in TREC[:30])
    again = [sample.prompt.rpartition("\n\n")[2] for sample in build("helmet_trec_coarse", folder, samples=30, seed=1)]
    assert sorted(again) == sorted(asked)
    assert again != asked
    with pytest.raises(
        UserError, match=r"helmet_trec_coarse: test\.jsonl has 30 texts to ask: request no more samples"
    ):
        build("helmet_trec_coarse", folder, samples=31)


def test_a_large_test_set_is_balanced(folder, tmp_path):
    (tmp_path / "banking77").mkdir()
    for split, each in (("train", (3, 3, 3)), ("test", (400, 150, 90))):
        rows = [
            {"text": f"{split} {label} no {number}", "label": label}
            for label, size in enumerate(each)
            for number in range(size)
        ]
        (tmp_path / "banking77" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = get_task("helmet_banking77", data_dir=tmp_path, shots=3)
    assert len(made.split(42).test) == 640
    asked = made.split(42).test[:500]
    for first in range(0, 498, 3):
        assert {example.label for example in asked[first : first + 3]} == {0, 1, 2}
    third = [example.text for example in asked if example.label == 2]
    assert (len(set(third)), max(Counter(third).values())) == (90, 2)
    prompts = [sample.prompt for sample in made.build(samples=4, tokenizer=TOKENIZER)]
    assert [prompt.rpartition("\n\n")[2] for prompt in prompts] == [example.text for example in asked[:4]]


def test_nlu_asks_a_tenth_that_is_not_among_the_examples(folder):
    made = task("helmet_nlu", folder)
    for seed in (1, 2):
        split = made.split(seed)
        train = [LabeledText(text, label) for label, texts in split.train.items() for text in texts]
        assert len(split.test) == 10  # of 96
        assert sorted([*train, *split.test]) == sorted(LabeledText(*item) for item in TRAIN["helmet_nlu"].items())
    assert made.split(1).test != made.split(2).test
    assert made.split(1) == task("helmet_nlu", folder).split(1)


def test_every_class_is_shown_once_at_least(folder):
    with pytest.raises(UserError, match="is too short") as least:
        build("helmet_clinic150", folder, length=60)
    length = int(re.search(r"pass `length=(\d+)", str(least.value))[1])
    for sample in build("helmet_clinic150", folder, length=length, samples=3):
        assert len({number for _, number in examples_of(sample)}) == len(CLINIC)


def test_a_fixed_number_of_examples_is_cut_at_its_end(folder):
    made = get_task("helmet_trec_fine", data_dir=folder, shots=40)
    assert (made.fills, get_task("helmet_trec_fine").fills) == (False, True)
    (whole,) = made.build(samples=1, tokenizer=TOKENIZER)
    (cut,) = made.build(samples=1, length=whole.length - 100, tokenizer=TOKENIZER)
    end = whole.context_span[1]
    assert cut.prompt == whole.prompt[: end - 100] + whole.prompt[end:]
    assert cut.metadata["cut"]["policy"] == "context-only"
    (other,) = get_task("helmet_trec_fine", data_dir=folder, shots=30).build(samples=1, tokenizer=TOKENIZER)
    assert examples_of(whole)[:30] == examples_of(other)
    with pytest.raises(UserError, match="`shots=0`; expected at least 1"):
        get_task("helmet_nlu", shots=0)


def test_helmets_numbers_of_examples_are_by_length():
    assert list(SHOTS) == NAMES
    assert [SHOTS[name][131072] for name in NAMES] == [6600, 6400, 5900, 7050, 8296]
    assert list(SHOTS["helmet_nlu"].items())[:2] == [(4096, 250), (8192, 510)]


@pytest.mark.parametrize(
    ("reply", "right"),
    [(" {}", 1.0), (" label: {}", 1.0), (" {}.\nNow", 1.0), (" It is {}", 0.0), ("{}", 1.0), ("", 0.0), ("\n{}", 0.0)],
)
def test_a_reply_is_scored_as_helmet_does(reply, right, folder):
    """data.py, load_icl: the exact match of the parsed output alone."""
    sample = build("helmet_trec_coarse", folder, samples=1)[0]
    made = task("helmet_trec_coarse", folder)
    assert made.score(sample, reply.format(sample.answers[0])) == {"exact_match": right}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "coarse_label": 6}, r"train\.jsonl, row 1: coarse_label is 6; expected .*from 0 to 5"),
        ({"text": "a", "coarse_label": "6"}, "row 1: no int 'coarse_label'"),
        ({"coarse_label": 1}, "row 1: no str 'text'"),
    ],
)
def test_rows_of_another_schema_are_named(row, message, tmp_path):
    (tmp_path / "trec").mkdir()
    (tmp_path / "trec" / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        get_task("helmet_trec_coarse", data_dir=tmp_path).build(length=LENGTH, samples=1, tokenizer=TOKENIZER)


def test_missing_data_says_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=r"clinc_oos/train\.jsonl or clinc_oos/train\.parquet .*clinc_oos, subset plus"):
        get_task("helmet_clinic150").build(length=LENGTH, samples=1, tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"no trec/train\.jsonl or trec/train\.parquet in"):
        get_task("helmet_trec_fine", data_dir=tmp_path).build(length=LENGTH, samples=1, tokenizer=TOKENIZER)


def test_settings_are_helmets():
    for name in NAMES:
        made = get_task(name)
        assert (made.suite, made.category, made.metric, made.overlong) == (
            "helmet",
            "icl",
            "exact_match",
            "context-only",
        )
        assert (made.max_new_tokens, made.default_samples, made.stop) == (20, 500, ("\n",))
