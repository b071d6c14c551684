"""``longlens train`` as a user has it."""

import json
from pathlib import Path

import pytest

from longlens.settings.recipe import presets, read_yaml
from longlens.train.recipe import read_recipe

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
        (["train", "nosuch", "-o", "out"], "no recipe 'nosuch': pass a YAML file, or one of lecture-length-512k, "),
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
    assert (
        "warning: `gamma` is 0.5, the largest weight: tokens that the long context helps have lower weights"
        in ended.err
    )


# --- list, show, schema, --dry-run ------------------------------------------------------------------------------------


def test_list_has_a_line_on_each_recipe(run):
    ended = run("train", "list")
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == presets("train")
    assert all(len(line) <= 80 and len(line.split()) > 3 for line in lines)
    assert ended.err.splitlines()[0] == "next: longlens train show smollm2-cpu"
    listed = run.json("train", "list")["recipes"]
    assert [row["recipe"] for row in listed] == presets("train")


def test_show_prints_the_file_and_all_settings(run, recipe):
    shown = run("train", "show", "smollm2-cpu")
    Path("mine.yaml").write_text(shown.out)
    assert read_recipe("mine.yaml").runs == read_recipe("smollm2-cpu").runs
    assert "# Autocast" in shown.out  # comments are part of it
    resolved = run("train", "show", "recipe.yaml", "--resolved", "--set", "training.steps=7").out
    Path("all.yaml").write_text(resolved)
    assert read_recipe("all.yaml").runs == read_recipe("recipe.yaml", ["training.steps=7"]).runs
    assert "weight_decay: 0.0" in resolved
    assert run.json("train", "show", "recipe.yaml")["runs"]["."]["training"]["steps"] == 3
    assert "would have no effect without --resolved" in run("train", "show", "recipe.yaml", "--set", "loss=ce").error
    assert run("train", "show", "nosuch").error.startswith("error: no recipe 'nosuch'")


def test_a_recipe_called_as_a_command_is_given_as_a_path(run, recipe):
    Path("list").write_text(Path("recipe.yaml").read_text())
    assert run("train", "./list", "--set", "training.steps=1", "-o", "out").code == 0


def test_a_dry_run_says_what_a_run_takes_and_makes_nothing(run, recipe):
    before = everything(recipe)
    ended = run(*TRAIN, "--set", "training.steps=5", "--dry-run")
    assert ended.code == 0, ended.err
    rows = {line.split("  ")[0]: line.split()[-1] for line in ended.out.splitlines()}
    assert (rows["steps"], rows["tokens"], rows["tokens a step"]) == ("5", str(5 * 2 * 32), str(2 * 32))
    assert ended.err.splitlines()[-2].endswith("longlens train recipe.yaml --set training.steps=5 -o out")
    sweep = ("--set", "sweep={loss.longce.gamma: [2, 5]}")
    found = run.json(*TRAIN, *sweep, "--dry-run")["runs"]
    assert list(found) == ["loss.longce.gamma=2", "loss.longce.gamma=5"]
    plan = found["loss.longce.gamma=2"]
    assert (plan["steps"], plan["tokens"]) == (3, 3 * 2 * 32)
    assert plan["hours"] == pytest.approx(plan["seconds"] * 3 / 3600, rel=1e-6)
    assert everything(recipe) == before


def test_a_dry_run_reads_the_length_of_packed_rows(run, recipe):
    assert run("data", "pack", "a.txt", "--tokenizer", "llama", "--length", "32", "-o", "rows").code == 0
    found = run.json(*TRAIN, "--set", "data={packed: rows}", "--dry-run")["runs"]["."]
    assert (found["length"], found["tokens"]) == (32, 3 * 2 * 32)


def holds(value, schema, whole):
    """Whether a value holds a JSON Schema, by the words that ours has."""
    if "$ref" in schema:
        return holds(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}

    def is_kind(name):
        if name in ("number", "integer"):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return number and (name == "number" or value == int(value))
        return isinstance(value, kinds[name])

    types = schema.get("type", [])
    tests = [
        not types or any(map(is_kind, [types] if isinstance(types, str) else types)),
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(holds(value, one, whole) for one in schema["anyOf"]),
        not isinstance(value, (int, float)) or schema.get("minimum", value) <= value,
    ]
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        tests += [name in value for name in schema.get("required", ())]
        if "if" in schema and not holds(value, schema["if"], whole):
            tests.append(holds(value, schema["else"], whole))
        for name, one in value.items():
            rule = known.get(name, more)
            tests.append(rule if isinstance(rule, bool) else holds(one, rule, whole))
    if isinstance(value, list) and "items" in schema:
        tests += [holds(one, schema["items"], whole) for one in value]
    return all(tests)


def test_the_schema_takes_all_recipes_and_finds_mistakes(run):
    schema = json.loads(run("train", "schema").out)
    # YAML 1.2, which editors read, takes 5e-5 for a number; the sections of a sweep may lack what it gives.
    plain = {name: numbers(read_yaml(name, "train", "model")) for name in presets("train")}
    for name, content in plain.items():
        assert "sweep" in content or holds(content, schema, schema), name
    good = plain["smollm2-cpu"]
    assert holds({**good, "loss": "ce"}, schema, schema)
    for wrong in (
        {"training": {**good["training"], "stps": 3}},
        {"training": {**good["training"], "steps": "many"}},
        {"loss": {"longcee": {}}},
        {"loss": {"longce": {"contxt": 3}}},
        {"data": {"documents": ["a"], "length": 32, "packing": "full"}},
        {"model": 3},
        {"lora": {"rank": 3}},
        {"colour": "red"},
    ):
        assert not holds({**good, **wrong}, schema, schema), wrong
    assert not holds({name: value for name, value in good.items() if name != "data"}, schema, schema)
    assert schema["$defs"]["Training"]["properties"]["steps"]["description"] == "Number of updates; or use `epochs`."


def numbers(value):
    if isinstance(value, dict):
        return {name: numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [numbers(one) for one in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
