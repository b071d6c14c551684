"""Every task of ours holds the contract of `longlens.testing.check_task`, and each rule finds who breaks it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from longlens.tasks import Draft, Plan, Task, Whole, list_tasks
from longlens.tasks.base import JudgedTask, draws
from longlens.tasks.helmet.passages import PassageTask
from longlens.testing import ConformanceError, check_task
from tests.tasks.fixtures import LENGTH, TOKENIZER, task

OPTIONS = {
    "longeval_topics": {"length": 3000},
    "longeval_lines_1350": {"length": None, "samples": 2},
    # which wants more than the letter
    "infinitebench_code_debug": {"perfect": lambda sample: f"{sample.answers[0]}."},
}


@pytest.mark.parametrize("name", list_tasks())
def test_our_tasks_pass(name, folder):
    made = task(name, folder)
    length = LENGTH if made.fills or isinstance(made, PassageTask) else None
    default = {"length": length, "samples": 5 if made.fills else 2, "tokenizer": TOKENIZER}
    check_task(made, **(default | OPTIONS.get(name, {})))


@dataclass(frozen=True, kw_only=True)
class Sums(Task):
    """Adds two numbers, far too easily; subclasses break one rule each."""

    name: str = "sums"

    suite = "toy"
    metric = "accuracy"
    max_new_tokens = 8
    fills = False
    default_samples = 9
    unit_tokens = 0

    def drawn(self, seed, index):
        return draws(self.name, seed, index, "numbers")

    def draft(self, seed, index):
        rng = self.drawn(seed, index)
        first, second = rng.randint(10**6, 10**7), rng.randint(10**6, 10**7)
        prompt = f"What is {first} and {second}? It is {first + second}. Say it again."
        at = prompt.index("It is ") + len("It is ")
        answer = str(first + second)
        return Draft(prompt=prompt, answer_prefix="\nSum:", answers=[answer], answer_spans=[(at, at + len(answer))])

    def plan(self, *, length, seed, index, tokens):
        return Whole(self.draft(seed, index))

    def score(self, sample, prediction):
        return {"accuracy": float(sample.answers[0] in prediction)}


def test_a_good_task_of_ten_lines_passes():
    check_task(Sums(), length=None, tokenizer=TOKENIZER)
    check_task(Sums())  # with the check's own tokenizer


class Padded(Plan):
    """Sums with any number of lines of 100 characters before them."""

    minimum = 1

    def __init__(self, draft):
        self._draft = draft

    def unit(self, index):
        return "=" * 99 + "\n"

    def draft(self, units):
        spans = [(start + 100 * units, end + 100 * units) for start, end in self._draft.answer_spans]
        return replace(self._draft, prompt=self.unit(0) * units + self._draft.prompt, answer_spans=spans)

    def plan(self, *, length, seed, index, tokens):
        return Padded(Sums.draft(self, seed, index))


def same(self, seed, index):
    return draws("x", seed, 0, "numbers")


STATE = {"count": 0}


def count(self, seed, index):
    STATE["count"] += 1
    return draws(self.name, seed, STATE["count"], "numbers")


def changed(**changes):
    return lambda self, seed, index: replace(Sums.draft(self, seed, index), **changes)


def score_of(value):
    return lambda self, sample, prediction: {"accuracy": value(sample, prediction)}


BROKEN = [
    ({"max_new_tokens": 0}, "`max_new_tokens` is at least 1"),
    ({"template": "jinja"}, "`template` is one of none, chat, chat-prefix, prefill"),
    ({"overlong": "cut"}, "`overlong` is one of error"),
    ({"stop": "\n"}, "`stop` is a tuple of texts"),
    ({"default_samples": 0}, "`default_samples` is at least 1"),
    ({"fills": True, "unit_tokens": 4, "plan": Padded.plan}, "less than `unit_tokens` of the length are unused"),
    ({"drawn": lambda self, seed, index: random}, "`build` does not change the state of Python's `random`"),
    ({"drawn": count}, "a sample depends only on seed and index"),
    (
        {"fills": True, "drawn": lambda self, seed, index: draws("x", seed, 0, "numbers")},
        "no two samples have the same prompt",
    ),
    ({"draft": changed(answers=[])}, "a sample has at least one right answer"),
    ({"draft": changed(prompt=" ", answer_spans=[])}, "a prompt is not empty"),
    ({"draft": changed(answer_spans=[(0, 4)])}, "`answer_spans` are the positions of answers in the prompt .'What'"),
    ({"draft": changed(answer_spans=[(9000, 9004)])}, "`answer_spans` are the positions of answers in the prompt"),
    ({"draft": changed(context_span=(0, 9000))}, "`context_span` lies in the prompt"),
    ({"draft": changed(metadata={"seed": 7})}, "metadata keeps its seed"),
    ({"draft": changed(metadata={"set": {1}})}, "metadata can be stored as JSON"),
    ({"draft": changed(metadata={"distractors": ["1", "1"]})}, "distractors differ, and none is a right answer"),
    ({"score": score_of(lambda s, p: 100.0 * (s.answers[0] in p))}, "scores are from 0 to 1"),
    ({"score": score_of(lambda s, p: float(s.answers[0] == p))}, "the perfect answer to each sample scores 100"),
    ({"score": score_of(lambda s, p: 1.0)}, "an empty answer scores less than the perfect one"),
    ({"score": score_of(lambda s, p: float(int(p) == int(s.answers[0])))}, "`score` accepts any text .ValueError"),
    ({"score": score_of(lambda s, p: float(s.prompt in p))}, "`score` returns the same for a stored sample"),
    ({"score": lambda self, sample, prediction: {"other": 1.0}}, "`score` returns accuracy"),
    ({"aggregate": lambda self, scores: {"accuracy": 200.0}}, "`aggregate` returns percentages"),
    ({"aggregate": lambda self, scores: {"other": 1.0}}, "`aggregate` returns accuracy"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_who_breaks_a_rule_is_told_which(changes: Mapping[str, object], message: str):
    broken = dataclass(frozen=True, kw_only=True)(type("Broken", (Sums,), dict(changes)))
    with pytest.raises(ConformanceError, match=f"^task sums: ({message})") as caught:
        check_task(broken(), tokenizer=TOKENIZER)
    assert "\n" not in str(caught.value)


def test_what_is_no_dataclass_of_a_task_is_told():
    with pytest.raises(ConformanceError, match=r"it is a `longlens\.tasks\.Task`"):
        check_task(object())


def test_a_judges_reply_that_cannot_be_read_has_no_score():
    @dataclass(frozen=True, kw_only=True)
    class Judged(Sums, JudgedTask):
        judged_metric = "judge"

        def judge_prompts(self, sample, prediction):
            return ["Is it right?"]

        def judged(self, sample, prediction, replies):
            return {"judge": 0.0}

    with pytest.raises(ConformanceError, match="`judged` returns nothing for replies that it cannot parse"):
        check_task(Judged(), tokenizer=TOKENIZER)
