"""The base of recipes: what is converted, what is refused, and how it is said in one line."""

import pytest
from pydantic import Field, model_validator

from longlens.errors import UserError
from longlens.settings.recipe import Integer, Names, Real, Settings, check_values, parse, parse_integer


class Optimizer(Settings):
    rate: Real = Field(gt=0)
    steps: Integer | None = Field(default=None, ge=1)
    names: Names = ()
    is_fused: bool = False

    @model_validator(mode="after")
    def _check_together(self):
        if self.is_fused and self.names:
            raise UserError("`names` are of no use with `is_fused`: leave one out")
        return self


class Run(Settings):
    optimizer: Optimizer
    others: dict[str, Optimizer] = Field(default_factory=dict)


@pytest.mark.parametrize("number", [20, 20.0, "20", "2e1"])
def test_whole_numbers_as_people_write_them(number):
    assert Optimizer(rate=1, steps=number).steps == 20
    assert type(Optimizer(rate=1, steps=number).steps) is int
    assert parse_integer(number, "steps") == 20


@pytest.mark.parametrize("number", [0.5, "0.5", "5e-1"])
def test_numbers_as_people_write_them(number):
    assert Optimizer(rate=number).rate == 0.5
    assert type(Optimizer(rate=1).rate) is float


def test_one_name_is_a_list_of_one():
    assert Optimizer(rate=1, names="a").names == Optimizer(rate=1, names=["a"]).names == ("a",)


WRONG = [
    ({"rate": 0}, "optimizer.rate is 0; expected more than 0"),
    ({"rate": True}, "optimizer.rate is True; expected a number, such as 0.1 or 1e-5"),
    ({"rate": ".nan"}, "optimizer.rate is '.nan'; expected a number, such as 0.1 or 1e-5"),
    ({"rate": 10**400}, "optimizer.rate is <an integer of 1329 bits>; expected a number, such as 0.1 or 1e-5"),
    ({"rate": 1, "steps": 1.5}, "optimizer.steps is 1.5; expected an integer, such as 65536 or 1e9"),
    ({"rate": 1, "steps": "1e999"}, "optimizer.steps is '1e999'; expected an integer, such as 65536 or 1e9"),
    ({"rate": 1, "steps": True}, "optimizer.steps is True; expected an integer, such as 65536 or 1e9"),
    ({"rate": 1, "is_fused": 1}, "optimizer.is_fused is 1; expected true or false"),
    ({"rate": 1, "names": ["a", 3]}, "optimizer.names[1] is 3; expected text"),
    ({"rate": 1, "names": {}}, "optimizer.names is {}; expected a list"),
    (
        {"rate": 1, "stps": 3},
        "optimizer: unknown key 'stps' (nearest: 'steps'); known are rate, steps, names, is_fused",
    ),
    ({}, "optimizer.rate is missing: set it"),
    (3, "optimizer is 3; expected keys such as rate"),
    ({"rate": 0, "steps": 0, "is_fused": 1}, "optimizer.rate is 0; expected more than 0 (and 2 more)"),
    ({"rate": 1, "names": "a", "is_fused": True}, "optimizer: names are of no use with is_fused: leave one out"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_is_wrong_is_said_with_its_place(values, message):
    with pytest.raises(UserError) as refused:
        parse(Run, {"optimizer": values}, "r.yaml")
    assert str(refused.value) == f"r.yaml: {message}"
    with pytest.raises(UserError) as refused:
        parse(Run, {"optimizer": {"rate": 1}, "others": {"second": values}}, "r.yaml")
    assert str(refused.value) == f"r.yaml: {message.replace('optimizer', 'others.second', 1)}"


def test_a_number_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"r\.yaml: optimizer\.rate is nan; expected (more than 0|a finite number)"):
        parse(Run, {"optimizer": {"rate": "nan"}}, "r.yaml")  # pydantic 2.11 finds the one, later ones the other


def test_of_a_parameter_it_is_said_in_backticks():
    with pytest.raises(UserError, match=r"^`rate` is 0; expected more than 0$"):
        Optimizer(rate=0)
    with pytest.raises(UserError, match=r"^`optimizer.rate` is 0; expected more than 0$"):
        Run(optimizer={"rate": 0})
    with pytest.raises(UserError, match=r"^`names` are of no use with `is_fused`: leave one out$"):
        Optimizer(rate=1, names="a", is_fused=True)
    with pytest.raises(UserError, match=r"^`steps` is 'many'; expected an integer, such as 65536 or 1e9$"):
        parse_integer("many", "steps")


def test_other_values_are_checked_as_well():
    optimizer = Optimizer(rate=1)
    assert optimizer.replace(steps="2e1") == Optimizer(rate=1, steps=20)
    with pytest.raises(UserError, match="`steps` is 0"):
        optimizer.replace(steps=0)
    with pytest.raises(ValueError, match="frozen"):
        optimizer.rate = 2


def test_a_long_or_odd_key_is_shortened():
    with pytest.raises(UserError) as refused:
        parse(Run, {"optimizer": {"rate": 1}, "others": {"x\n" * 5000: 3}}, "r.yaml")
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


def test_values_are_held_against_the_fields_of_a_dataclass():
    from longlens.tasks.longeval import LongEvalLines

    check_values({"lines": 3}, LongEvalLines, "`{}`")
    for value in (True, "3", 3.5):
        with pytest.raises(UserError, match=r"^`lines` of a task is .*; expected int"):
            check_values({"lines": value}, LongEvalLines, "`{}` of a task")
