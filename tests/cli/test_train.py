"""``longlens train`` as a user has it."""

import json
from pathlib import Path

import pytest

RECIPE = {
    "model": "llama",
    "data": {"documents": ["a.txt"], "length": 32, "packing": "fill"},
    "loss": {"longce": {"context": 8, "stride": 4}},
    "training": {"steps": 3, "batch_size": 2, "learning_rate": 1e-3},
}
TRAIN = ("train", "recipe.yaml", "-o", "out")


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*") if path.name != ".lock"}


@pytest.fixture
def recipe(work):
    (work / "recipe.yaml").write_text(json.dumps(RECIPE))
    return work


def test_help_has_an_example_with_options_that_there_are(run):
    ended = run("train", "--help")
    assert (ended.code, ended.err) == (0, "")
    example = ended.out[ended.out.index("Example: longlens train ") : ended.out.index("Arguments:")].split()
    for option in (word for word in example if word.startswith("-")):
        assert f" {option} " in ended.out.split("Options:")[1].replace(",", " "), option


def test_a_run_prints_one_object_and_the_same_again(recipe, run):
    found = run.json(*TRAIN)
    assert found.keys() == {"schema_version", "out", "model", "steps", "loss", "evaluation"}
    assert (found["steps"], found["out"], found["evaluation"]) == (3, "out", None)
    before = everything(recipe / "out")
    assert run.json(*TRAIN) == found
    assert everything(recipe / "out") == before
    ended = run(*TRAIN)
    assert (
        ended.err
        == "out: done already, nothing was changed\nnext: longlens score DOCS --model out/model -o scores/out\n"
    )
    assert ended.out.endswith("the trained model is in out/model\n")
    assert [line.split()[:3] for line in ended.out.splitlines()[1:3]] == [
        [end, str(step), f"{found['loss'][end]:.3f}"] for end, step in (("first", 0), ("last", 3))
    ]
    scored = run("score", "b.txt", "--model", "out/model", "--context", "32", "--stride", "16", "-o", "scores")
    assert scored.code == 0


def test_set_and_out_of_the_recipe(recipe, run):
    ended = run("train", "recipe.yaml", "--set", "training.steps=1", "--set", "loss=ce", "--set", "out=here")
    assert ended.code == 0, ended.err
    assert len(Path("here/log.jsonl").read_text().splitlines()) == 1
    assert "training.steps" not in run("train", "recipe.yaml", "-o", "another").out
    assert len(Path("another/log.jsonl").read_text().splitlines()) == 3


def test_a_sweep(recipe, run):
    arguments = (*TRAIN, "--set", "training.steps=1", "--set", "sweep={loss.longce.gamma: [2, 5]}")
    found = run.json(*arguments)
    assert list(found["runs"]) == ["loss.longce.gamma=2", "loss.longce.gamma=5"]
    shown = run(*arguments).out.splitlines()
    assert shown[1].startswith("loss.longce.gamma=2: first")
    assert shown[-1] == "the trained model is in out/loss.longce.gamma=5/model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument "),
        (["train", "nosuch", "-o", "out"], "no recipe 'nosuch': give a YAML file, or one of lecture-length-512k, "),
        (["train", "recipe.yaml"], "recipe.yaml sets no run directory: pass -o, such as -o run"),
        ([*TRAIN, "--set", "training.stps=3"], "recipe.yaml: training: unknown key 'stps' (nearest: 'steps')"),
        ([*TRAIN, "--set", "loss.longce.context=32"], "recipe.yaml: the context K of the loss is 32 and rows have 32 "),
        ([*TRAIN, "--set", "loss.longce.gamma=0"], "recipe.yaml: loss.longce.gamma is 0; expected more than 0"),
        (
            [*TRAIN, "--set", "model=nothing"],
            "the folder 'nothing' contains no model (no config.json): expected a directory",
        ),
        ([*TRAIN, "--set", "data.documents=[none.txt]"], "no such file or folder: 'none.txt'; a dataset on the Hub "),
        ([*TRAIN, "--set", "data.documents=[stdlib:sys]"], "'stdlib:sys' is built in or an extension, and has no Pyth"),
        ([*TRAIN[:-1], "llama"], "llama is not empty and contains no run (it has "),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, recipe, run):
    before = everything(recipe)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert everything(recipe) == before


def test_gamma_below_1_is_said(recipe, run):
    ended = run(*TRAIN, "--set", "loss.longce.gamma=0.5", "--set", "training.steps=1")
    assert ended.code == 0
    assert "warning: `gamma` is 0.5, the largest weight: tokens that the long context helps weigh less" in ended.err
