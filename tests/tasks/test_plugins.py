"""Tasks that other installed packages add."""

from __future__ import annotations

import json

import pytest

from longlens.bench.lm_eval.export import export_tasks
from longlens.bench.selection import select_tasks, suites
from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks, plugin_tasks, task_settings
from longlens.testing import check_task
from tests.plugins import install
from tests.tasks.fixtures import TOKENIZER

TOYS = """
from dataclasses import dataclass
from functools import partial
from longlens.tasks import Draft, Task, Whole

@dataclass(frozen=True, kw_only=True)
class Copy(Task):
    name: str = "toy_copy"
    word: str = "mill"

    suite = "toys"
    metric = "accuracy"
    max_new_tokens = 8
    fills = False
    default_samples = 4
    unit_tokens = 0

    def plan(self, *, length, seed, index, tokens):
        return Whole(Draft(prompt=f"Copy {self.word}{index}.", answer_prefix="", answers=[f"{self.word}{index}"],
                           answer_spans=[]))

    def score(self, sample, prediction):
        return {"accuracy": float(sample.answers[0] in prediction)}

@dataclass(frozen=True, kw_only=True)
class Ruler(Copy):
    suite = "ruler"

wells = partial(Copy, word="well")
needs = partial(Copy, nosuch=1)
TOYS = "x"
"""
NAMES = {
    "toy_copy": "toys_module:Copy",
    "toy_wells": "toys_module:wells",
    "toy_lost": "toys_module:lost",
    "toy_text": "toys_module:TOYS",
    "toy_ruler": "toys_module:Ruler",
    "toy_needs": "toys_module:needs",
    "vt": "toys_module:Copy",
}


@pytest.fixture(autouse=True)
def _toys(monkeypatch, tmp_path):
    install(
        monkeypatch, tmp_path / "toys", "toy-tasks", {"longlens.tasks": NAMES}, {"toys_module": TOYS + "TOYS = 'x'\n"}
    )


def test_a_task_of_a_package_is_like_our_own():
    assert plugin_tasks() == dict.fromkeys(sorted(set(NAMES) - {"vt"}), "toy-tasks")
    assert set(list_tasks()) > set(NAMES)
    assert (task_settings("toy_copy"), task_settings("toy_wells")) == (["word"], [])
    assert get_task("toy_copy", word="inn").build(samples=1, tokenizer=TOKENIZER)[0].prompt == "Copy inn0."
    assert get_task("toy_wells").build(samples=1, tokenizer=TOKENIZER)[0].id == "toy_wells-whole-42-0"
    check_task(get_task("toy_copy"), length=None, samples=4)
    assert suites()["toys"] == ("toy_copy", "toy_wells")
    assert select_tasks(["toys"]).tasks == ("toy_copy", "toy_wells")
    with pytest.raises(UserError, match="has no setting 'words': it has word"):
        get_task("toy_copy", words="inn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy_lost", "cannot import 'toy_lost' .*fix or uninstall toy-tasks"),
        ("toy_text", "'toy_text' .* is 'x'; expected a dataclass that is a longlens.tasks.Task"),
        ("toy_ruler", "has the suite 'ruler', which is one of longlens: rename it in the package"),
        ("toy_needs", "cannot make task 'toy_needs' of the package toy-tasks: .*nosuch"),
        ("vt", "'vt' .*from toy-tasks. uses a name of longlens: uninstall toy-tasks"),
    ],
)
def test_what_cannot_be_used_is_said_when_it_is_used(name, message):
    with pytest.raises(UserError, match=message) as caught:
        get_task(name)
    assert "\n" not in str(caught.value)


def test_listing_goes_on_and_says_which_package(monkeypatch, tmp_path, capsys):
    from longlens.cli import main

    assert main(["bench", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["task"]: row["package"] for row in listed["tasks"]} == {
        **{name: "longlens" for name in list_tasks() if not name.startswith("toy_") and name != "vt"},
        **dict.fromkeys(("toy_copy", "toy_wells"), "toy-tasks"),
    }
    assert set(listed["unusable"]) == {"toy_lost", "toy_text", "toy_ruler", "toy_needs", "vt"}
    assert main(["bench", "list"]) == 0
    shown = capsys.readouterr().out
    assert ", of the package toy-tasks (" in shown
    assert "cannot be used: cannot import 'toy_lost'" in shown
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {path.stem for path in export_tasks().iterdir()}
    assert {"longlens_toy_copy", "longlens_toy_wells"} <= files
    assert "longlens_toy_lost" not in files
