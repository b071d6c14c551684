"""Recipes of studies: the shipped one is read, and a wrong one says what is wrong."""

import pytest
import yaml

from longlens.errors import UserError
from longlens.settings.recipe import presets
from longlens.study.reproduce import STUDIES, read_study
from tests.study.longce.toys import toy_recipe, toy_study


@pytest.fixture
def recipe(tmp_path):
    """Writes the toy study as YAML with some changes, ``{"training.steps": 3}``; None takes a key away."""

    def write(changes):
        content = toy_recipe()
        for name, value in changes.items():
            *parents, last = name.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            if value is None:
                del place[last]
            else:
                place[last] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_every_study_has_a_recipe():
    assert set(presets("studies")) == set(STUDIES)
    for name in STUDIES:
        assert read_study(name).seeds


def test_the_shipped_recipe_is_read():
    study = read_study("longce")
    assert study.length > study.model.length
    assert not set(study.development_seeds) & set(study.seeds)
    assert len(study.seeds) >= 8
    assert study.evaluation.documents >= 256
    assert study.evaluation.facts.distance >= study.longce.context + study.longce.stride
    assert study.training.facts.distance >= study.longce.context + study.longce.stride


def test_what_is_written_is_what_is_read(recipe):
    assert read_study("longce", recipe({})) == toy_study()
    assert read_study("longce", recipe({"learning_rates": ["1e-3"]})).learning_rates == (1e-3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"traning": 1},
            "recipe.yaml: unknown key 'traning' (nearest: 'training'); known are seeds, words, model, base, exte",
        ),
        ({"training": None}, "recipe.yaml: training is missing: set it"),
        ({"training.steps": None}, "recipe.yaml: training.steps is missing: set it"),
        (
            {"training.steps": "many"},
            "recipe.yaml: training.steps is 'many'; expected an integer, such as 65536 or 1e9",
        ),
        (
            {"training.facts.stated": 0},
            "recipe.yaml: training.facts: repeated is 1 and stated 0: expected 0 <= repeated <= stated",
        ),
        ({"training.facts": 3}, "recipe.yaml: training.facts is 3; expected keys such as stated"),
        (
            {"training.end": 0.5},
            "recipe.yaml: training has end, drills or learning_rate, but CE trains for longer than",
        ),
        ({"training.learning_rate": 1e-3}, "recipe.yaml: training has end, drills or learning_rate, but CE trains for"),
        ({"base.learning_rate": None}, "recipe.yaml: base has no learning_rate: set one, such as 1e-3"),
        ({"learning_rates": []}, "recipe.yaml: learning_rates is []; expected at least one"),
        ({"arms.pi": ["longce"]}, "recipe.yaml: arms of pi are ['longce']; expected ce and others of ce, longce, flo"),
        ({"arms.pi": ["ce", "best"]}, "recipe.yaml: arms of pi are ['ce', 'best']; expected ce and others of ce, lo"),
        ({"arms.eabf": None}, "recipe.yaml: arms are of pi; expected those of "),
        ({"evaluation.forms.lines.stated": 0}, "recipe.yaml: evaluation.forms.lines.stated is 0; expected at least 1"),
        (
            {"training.repeats": 0.5},
            "recipe.yaml: training: unknown key 'repeats' (nearest: 'steps'); known are steps, documents, learnin",
        ),
        ({"base.learning_rate": 0}, "recipe.yaml: base.learning_rate is 0; expected more than 0"),
        ({"base.drills": 2}, "recipe.yaml: base.drills is 2; expected at most 1"),
        ({"model.hidden": 18}, "recipe.yaml: model: hidden is 18 and heads 2: a head needs an even, equal share of it"),
        ({"words.held_out": 0.5}, "recipe.yaml: words.held_out is 0.5; expected less than 0.5"),
        ({"words.keys": 0}, "recipe.yaml: words.keys is 0; expected at least 1"),
        ({"longce.gamma": 0}, "recipe.yaml: longce.gamma is 0; expected more than 0"),
        ({"longce.context": 64}, "recipe.yaml: context of longce is 64; documents have 64 tokens"),
        ({"checkpoints": 2}, "recipe.yaml: checkpoints is 2; expected a list"),
        ({"checkpoints": [2, 1]}, "recipe.yaml: checkpoints are [2, 1]; expected steps in order, such as [20, 40]"),
        ({"checkpoints": [1]}, "recipe.yaml: checkpoints are [1] and steps 2: expected the last checkpoint"),
        ({"seeds": [0, 1]}, "recipe.yaml: seeds are [0, 1] and development_seeds [0]: expected different seeds"),
        ({"evaluator_method": "yarn"}, "recipe.yaml: evaluator_method is 'yarn'; expected one of "),
        ({"extensions.pi.factor": 2}, "recipe.yaml: extensions have the factors ['2.0', '4.0']; expected one that all"),
        (
            {"extensions.pi.method": "pie"},
            "recipe.yaml: extensions.pi: method is 'pie'; expected one of pi, ntk, dynamic-ntk, yarn, longrope, l",
        ),
        (
            {"extensions.pi.theta": 3},
            "recipe.yaml: extensions.pi: theta is not a setting of method pi, which has factor, original_length: lea",
        ),
        ({"extensions": ["pi"]}, "recipe.yaml: extensions is ['pi']; expected keys with values"),
        ({"evaluation.documents": 1}, "recipe.yaml: evaluation.documents is 1; expected at least 2"),
        ({"evaluation.facts.distance": 62}, "recipe.yaml: documents of 64 tokens have no room for 2 facts"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(changes, message, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        read_study("longce", recipe(changes).name)
    assert str(raised.value).startswith(message)


def test_an_unknown_recipe_lists_those_that_there_are():
    with pytest.raises(UserError, match="no recipe 'nosuch': pass a YAML file, or one of answers, "):
        read_study("longce", "nosuch")
    with pytest.raises(UserError, match="no study 'nosuch'; expected one of answers, "):
        read_study("nosuch")


def test_changes_make_sections_and_refuse_to_look_into_values():
    assert read_study("extension", changes=["pretrained=null"]).pretrained is None
    with pytest.raises(UserError, match=r"extension: pretrained\.methods is missing: set it"):
        read_study("extension", changes=["pretrained=null", "pretrained.model=smollm2"])
    message = r"`changes` seeds.first: seeds is \[1, 2, 3, 4\] and has no keys: set seeds instead"
    with pytest.raises(UserError, match=message):
        read_study("extension", changes=["seeds.first=1"])
