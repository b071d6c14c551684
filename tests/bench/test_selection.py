"""Settings of tasks as they come from a command line: a wrong one is one line, whatever it is."""

from __future__ import annotations

from contextlib import suppress

import pytest

from longlens.bench.selection import make_tasks
from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks, task_settings
from tests.bench.test_grading import LONG
from tests.tasks.fixtures import settings
from tests.tiny import byte_tokenizer

NUMBERS = ("hops", "lines", "topics", "pairs", "shots", "passages", "docs", "min_characters", "alpha")
TEXTS = (
    "ids",
    "answer_prefix",
    "needle",
    "question",
    "answer",
    "data_dir",
    "haystack",
    "prompts_dir",
    "revision",
    "split",
)


@pytest.mark.parametrize("name", list_tasks())
def test_a_value_of_another_kind_is_refused(name):
    for setting in task_settings(name):
        wrong = {
            **{number: ["many", [], [1, "a"], {}, True] for number in NUMBERS},
            **{text: [7, -1.5, [], ["a"], {}, True] for text in TEXTS},
            "depths": ["50", 50, None, [0, "a"], [[0]], {}, [True]],
            "context": ["no", 1, None, []],
        }[setting]
        for value in wrong:
            with pytest.raises(UserError, match=f"^`{setting}` of task {name!r} is .*; expected ") as caught:
                get_task(name, **{setting: value})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in list_tasks() if set(NUMBERS) & set(task_settings(name))])
def test_a_number_that_makes_no_sense_is_refused_or_builds_samples(name, data):
    for setting in set(NUMBERS) & set(task_settings(name)):
        for value in (-1, 0):
            with suppress(UserError):
                task = get_task(name, **settings(name, data) | {setting: value})
                assert task.build(length=LONG.get(name, 6000), samples=1, tokenizer=byte_tokenizer())


def test_each_setting_goes_to_the_tasks_that_have_it():
    made = make_tasks(["vt", "longeval_lines", "json_kv"], {"hops": 2, "pairs": 3})
    assert (made[0].hops, made[2].pairs) == (2, 3)
    with pytest.raises(UserError, match="none of vt, json_kv has a setting 'lines': they have hops, pairs, shots"):
        make_tasks(["vt", "json_kv"], {"hops": 2, "lines": 3})
    assert make_tasks(["vt"], {}, {"data_dir": "data"}) == [get_task("vt")]  # what no task needs to have
