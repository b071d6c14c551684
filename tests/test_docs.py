"""Pages that are made from the code are up to date, and what the README and the examples show runs."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import docs.cli
import pytest
import typer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.skipif(
    typer.__version__ < "0.29", reason="the page is made with a newer typer, which wraps lines elsewhere"
)
def test_the_command_line_page_is_what_the_commands_say():
    assert docs.cli.PAGE.read_text(encoding="utf-8") == docs.cli.render(), "run: python -m docs.cli"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", prose):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_generated_block_was_generated():
    for page in PAGES:
        for name, body in re.findall(r"<!-- (\w+): generated -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL):
            assert body.strip(), f"{page.name}: run python -m benchmarks.{name}"


def test_commands_in_the_pages_use_options_that_exist():
    page = docs.cli.render()
    sections = dict(zip(re.findall(r"## longlens (.+)", page), re.split(r"## longlens .+", page)[1:], strict=True))
    recipes = sorted((ROOT / "src" / "longlens" / "recipes").glob("*.sh"))
    for path in [*PAGES, *recipes]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, rest in re.findall(r"^\s*longlens ((?:bench |data |study |plan )?\w+)(.*)$", text, re.MULTILINE):
            for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest):
                assert option in sections[command], f"{path.name}: longlens {command} has no {option}"


def test_what_the_pages_import_exists():
    for path in PAGES:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            for module, names in re.findall(r"^from (longlens(?:\.\w+)*) import (\([^)]*\)|.+)", block, re.MULTILINE):
                found = importlib.import_module(module)
                for name in re.sub(r"#.*|[()]", "", names).replace(",", " ").split():
                    assert hasattr(found, name), f"{path.name}: {module} has no {name}"


EXAMPLES = {
    "benchmark": r"niah_single_1: \d+\.0 % of 20 samples",
    "compare": r"log LongPPL  [+-]\d\.\d{3} nats a token, 95 % interval \[.*\]: \w+",
    "extend": r"YaRN +takes 32,768 tokens, PPL +\d+\.\d\d",
    "key_tokens": r"PPL \d+\.\d+, LongPPL \d+\.\d+ on \d+ of 2048 tokens",
    "report": r"report\.html: context helps up to \d+ tokens back",
    "train": r"step 4: loss \d\.\d{3}, mean weight \d\.\d{3}",
}


SLOW = ("compare", "extend", "report")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.real if name in SLOW else ()) for name in EXAMPLES]
)
def test_an_example_runs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert re.search(EXAMPLES[name], capsys.readouterr().out)


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
