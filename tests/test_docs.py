"""Pages that are made from the code are up to date, and what the README and the examples show runs."""

import ast
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import docs.cli
import docs.prose
import pytest
import typer

from tests.tiny import byte_tokenizer, tiny_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


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


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[2:]]
    assert sorted(listed) == sorted(pages)


def messages():
    """The texts of the code, with a gap where a value comes in."""
    for path in (ROOT / "src" / "longlens").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_errors_that_are_explained_are_errors_of_the_code():
    known = "\n".join(messages()).replace("`", "")
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    for row in rows:
        for symptom in re.findall(r"`(.+?)`", row):
            assert symptom in known, f"docs/errors.md: no message has {symptom!r}"


def test_the_prose_of_messages_is_checked_and_that_of_docstrings_for_fewer_words():
    message = 'f"{name} is no number, "\n    "so it is refused"'
    code = f'"""What stands here."""\nraise ValueError(\n    {message}\n)\nkey = "refused"\n'
    found = list(docs.prose.complaints_of("src/longlens/x.py", code))
    assert [message.split(":")[0] for _, message in found] == ["'is no '", "'refused'"]
    assert {line for line, _ in found} <= {3, 4}
    assert not list(docs.prose.complaints_of(docs.prose.PROMPTS[0], code))
    code = '"""A function.\n\nHolds one result against the other.\n"""\nx = f(1)  # likewise\n'
    assert [line for line, _ in docs.prose.complaints_of("src/longlens/x.py", code)] == [3]


def test_the_python_api_page_names_what_exists():
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


TOLD = [ROOT / "README.md", *TUTORIALS]


def told(page):
    """The blocks of bash and Python of a page, in their order, without what installs."""
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    return [(language, re.sub(r"^(make|pip) .*\n", "", text, flags=re.MULTILINE)) for language, text in blocks]


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.stem)
def test_what_a_tutorial_and_the_readme_say_runs_with_tiny_models(page, tmp_path, monkeypatch):
    """In this process. A character is a token of these models."""
    from longlens.cli import main

    for name, layers in (("smollm2", 2), ("gemma3-270m", 3)):
        tiny_model("llama", num_hidden_layers=layers, max_position_embeddings=8192).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    for language, block in told(page):
        if language == "python":
            (tmp_path / "block.py").write_text(block, encoding="utf-8")
            runpy.run_path(str(tmp_path / "block.py"))
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command, *arguments = shlex.split(line, comments=True) or [""]
            if arguments[:1] == ["train"] or arguments[:2] == ["bench", "run"]:
                continue  # need the model that the recipe names, and lm-evaluation-harness: tests/train, tests/bench
            assert command in ("", "longlens"), line
            assert not arguments or main(arguments) == 0, line


@pytest.mark.real
@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.stem)
def test_what_a_tutorial_and_the_readme_say_runs(page, tmp_path):
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shutil.copy(ROOT / "README.md", tmp_path)  # the README scores itself
    for language, block in told(page):
        done = subprocess.run(
            [*command[language], block], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        print(done.stdout)
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"


EXAMPLES = {
    "benchmark": r"niah_single_1: \d+\.0 % of 20 samples",
    "compare": r"log LongPPL  [+-]\d\.\d{3} nats per token, 95 % interval \[.*\]: \w+",
    "extend": r"YaRN +takes 32,768 tokens, PPL +\d+\.\d\d",
    "key_tokens": r"PPL \d+\.\d+, LongPPL \d+\.\d+ on \d+ of 2048 tokens",
    "report": r"report\.html: context helps up to \d+ tokens back",
    "train": r"step 4: loss \d\.\d{3}, mean weight \d\.\d{3}",
    "longce_trl": r"train_loss",
}


SLOW = ("compare", "extend", "report", "longce_trl")


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
