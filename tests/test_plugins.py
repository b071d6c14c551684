from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from longlens.errors import UserError
from longlens.plugins import list_plugins, load_plugin
from tests.plugins import install

GROUP = "longlens.tasks"


def load(name: str, own: tuple[str, ...] = ("ours",)) -> Any:
    return load_plugin(GROUP, name, own=own, is_kind=lambda found: isinstance(found, int), expected="an integer")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modules = {
        "plugin_a": "answer = 42\ntext = 'x' * 1000",
        "plugin_broken": "import plugin_that_is_not_there",
        "plugin_b": "answer = 43",
    }
    names = {
        "good": "plugin_a:answer",
        "ours": "plugin_a:answer",
        "twice": "plugin_a:answer",
        "text": "plugin_a:text",
        "lost": "plugin_a:lost",
        "broken": "plugin_broken:answer",
        "garbled": "::",
    }
    install(
        monkeypatch, tmp_path / "a", "package-a", {GROUP: names, "longlens.caches": {"good": "plugin_a:x"}}, modules
    )
    install(monkeypatch, tmp_path / "b", "package-b", {GROUP: {"twice": "plugin_b:answer"}})


@pytest.mark.usefixtures("packages")
def test_listing_names_the_packages_and_imports_nothing() -> None:
    found = list_plugins(GROUP)
    assert {name: found[name] for name in ("good", "broken")} == {"good": "package-a", "broken": "package-a"}
    assert set(found["twice"].split(", ")) == {"package-a", "package-b"}
    assert list(found) == sorted(found)
    assert list_plugins("longlens.rope_methods").keys().isdisjoint(found)
    assert not {"plugin_a", "plugin_broken"} & set(sys.modules)


@pytest.mark.usefixtures("packages")
def test_a_name_is_loaded_when_it_is_used() -> None:
    assert load("good") == 42
    assert load("unknown") is None


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ours", r"'ours' \(entry point of longlens.tasks, from package-a\) uses a name of longlens: uninstall"),
        ("twice", r"from package-a and package-b\) is defined more than once: uninstall all but one"),
        ("text", r"'text' .* is 'xx.*; expected an integer: fix or uninstall package-a"),
        ("lost", r"cannot import 'lost' .*no attribute 'lost': fix or uninstall package-a"),
        ("broken", r"cannot import 'broken' .*No module named 'plugin_that_is_not_there': fix or uninstall package-a"),
        ("garbled", r"cannot import 'garbled' .*: fix or uninstall package-a"),
    ],
)
def test_what_cannot_be_used_is_one_line_when_it_is_used(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
