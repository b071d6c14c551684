"""``longlens study reproduce`` as a user has it."""

import json
import subprocess
import sys

import pytest
import yaml

from longlens.study.reproduce import read_study
from tests.study.longce.toys import toy_recipe, write_text


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def prose(work):
    """Words in files, and a recipe of toys."""
    write_text(work / "prose")
    content = toy_recipe(seeds=(1,), learning_rates=(1e-2,), windows=())
    (work / "toy.yaml").write_text(yaml.safe_dump(content))
    assert read_study("longce", "toy.yaml").seeds == (1,)
    return work


REPRODUCE = ("study", "reproduce", "longce", "-o", "out", "--recipe", "toy.yaml", "--set", "text=prose")


def test_help_has_an_example_and_imports_nothing_heavy(run):
    shown = run("study", "reproduce", "--help").out
    assert "Example: longlens study reproduce longce -o " in shown
    assert all(
        f" {option} " in shown.replace(",", " ") for option in ("--out", "--recipe", "--seeds", "--set", "--json")
    )
    assert "\n  reproduce " in run("study", "--help").out
    program = (
        "import sys, longlens.cli\nlonglens.cli.main(['study', 'reproduce', '--help'])\n"
        "print({'torch', 'transformers', 'pyarrow', 'longlens.study'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_reproduce_prints_a_table_or_one_object_and_runs_once(prose, run):
    first = run(*REPRODUCE)
    assert first.code == 0
    assert "runs/pi-longce-1.json: " in first.err
    rows = [line.split() for line in first.out.splitlines()]
    assert ["pi", "oracle", "2"] in [row[:3] for row in rows]
    assert ["pi", "longce", "equal", "steps", "2", "/", "2"] in [row[:7] for row in rows]
    assert first.out.splitlines()[-1] == "seeds 1; all numbers are in out/result.json"
    again = run.json(*REPRODUCE)
    assert again.items() == {"out": "out", **json.loads((prose / "out" / "result.json").read_text())}.items()
    assert again["text"]["name"] == "prose"
    assert run(*REPRODUCE).err == ""
    more = run.json(*REPRODUCE, "--seeds", "1, 5")
    assert more["seeds"] == [1, 5]
    assert len(list((prose / "out" / "runs").iterdir())) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study"], "Missing command. See longlens study --help"),
        (["study", "reproduce", "longppl", "-o", "out"], "no study 'longppl'; expected one of longce"),
        ([*REPRODUCE, "--seeds", "1,x"], "--seeds is 'x'; expected a whole number, such as "),
        (
            [*REPRODUCE, "--seeds", "-1"],
            "toy.yaml: seeds are [-1]; expected different whole numbers from 0 on",
        ),
        ([*REPRODUCE[:-2], "--recipe", "nosuch"], "no recipe 'nosuch': give a YAML file, or one of longce"),
        ([*REPRODUCE, "--set", "text=nosuch"], "no such file or folder: 'nosuch'"),
        ([*REPRODUCE, "--set", "text=a.txt"], "the text has "),
        ([*REPRODUCE, "-o", "a.txt"], "a.txt is a file; give a folder for the run"),
        ([*REPRODUCE, "-o", "llama"], "llama is not empty and holds no run (it has "),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, prose, run):
    before = everything(prose)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert everything(prose) == before


def test_another_recipe_in_the_same_folder_is_refused(prose, run):
    assert run(*REPRODUCE).code == 0
    text = (prose / "toy.yaml").read_text()
    (prose / "toy.yaml").write_text(text.replace("resamples: 100", "resamples: 200"))
    before = everything(prose / "out")
    assert run(*REPRODUCE).error.startswith(
        "error: out holds another run: resamples is 100 there and 200 here. Give another "
    )
    assert everything(prose / "out") == before
