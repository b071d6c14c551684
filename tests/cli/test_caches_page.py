"""docs/caches.md: its own policy is run by its own commands, and the workflow is the one in examples."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import docs.cli
import pytest
import yaml

from longlens import UserError
from longlens.models.policies import load_cache
from longlens.testing import check_cache

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "caches.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Your own policy") : PAGE.index("## In CI")]
(CODE,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
SMALL = {"smollm2": "llama", "64,256,1024": "8,16,32", "32,64,256": "4,8,16", "512": "16"}


@pytest.fixture
def own(work, monkeypatch):
    (work / "own_policy.py").write_text(CODE)
    (work / "books").mkdir()
    for number in range(4):
        (work / "books" / f"{number}.txt").write_text(f"{number} text with some words in it. " * 12)
    monkeypatch.syspath_prepend(str(work))
    yield work
    sys.modules.pop("own_policy", None)


def test_the_page_from_top_to_bottom(own, run):
    assert len(CODE.splitlines()) <= 40
    check_cache(load_cache("own_policy:LargeValues:32"))
    for line in COMMANDS.splitlines():
        if line.startswith("export "):
            continue
        for name, small in SMALL.items():
            line = line.replace(name, small)
        program, *arguments = shlex.split(line)
        assert program == "longlens"
        if arguments[0] == "score":
            arguments += ["--cache-chunk", "8"]
        else:
            arguments += ["--no-lcl", "--alpha", "-5"]
        ended = run(*arguments)
        assert ended.code == 0, ended.err
    assert "large-values:16" in (own / "runs" / "mine" / "manifest.json").read_text()
    assert (own / "cost.html").exists()
    assert "mine" in ended.out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_policy:Nothing:1", "own_policy has no function or class Nothing"),
        ("own_policy:LargeValues:x", "whose settings are invalid"),
        ("no_such_module:LargeValues", "expected one of full, window"),
        ("own_policy", "expected one of full, window"),
        ("own_policy.deeper:LargeValues", "expected one of full, window"),
        ("broken:LargeValues", "the module of `cache` 'broken:LargeValues' cannot be imported"),
        ("os:getcwd", "whose settings are invalid"),
        ("builtins:str:x", "makes str; expected a CachePolicy"),
    ],
)
def test_what_no_policy_is_made_of(own, name, said):
    (own / "broken.py").write_text("import no_such_thing_at_all")
    with pytest.raises(UserError, match=re.escape(said)):
        load_cache(name)


def test_the_workflow():
    text = (ROOT / "examples" / "cache.yml").read_text(encoding="utf-8")
    assert f"```yaml\n{text}```" in PAGE
    workflow = yaml.safe_load(text)
    steps = workflow["jobs"]["cache"]["steps"]
    assert all(step.keys() & {"run", "uses"} for step in steps)
    reference = docs.cli.render()
    commands = [step["run"] for step in steps if step.get("run", "").startswith("longlens ")]
    assert [command.split()[1] for command in commands] == ["score", "score", "cost"]
    for command in commands:
        section = reference.split(f"## longlens {command.split()[1]}\n")[1].split("\n## ")[0]
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", command):
            assert option in section, option
