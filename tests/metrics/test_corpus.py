"""What every function of stored scores takes alike: an evaluator's scores or keys, how they select, and answers."""

import inspect

import pytest

import longlens
from longlens import UserError, select_key_tokens
from longlens.metrics.corpus import read_once
from tests.metrics.test_reach import evaluator, run

pytestmark = pytest.mark.filterwarnings("ignore::longlens.LonglensWarning")


@pytest.fixture(params=["perplexity", "compare", "reach", "distributions", "write_report"])
def call(request, tmp_path):
    """One of the functions, of two runs where it takes several."""
    function = getattr(longlens, request.param)
    two = [run(name="M"), run([0, 0.1, 0.2], name="N")]
    first = {"compare": (two,), "write_report": (tmp_path / "r.html", two)}.get(request.param, (two[0],))
    return lambda **options: function(*first, **options)


@pytest.mark.parametrize("name", ["perplexity", "compare", "reach", "distributions", "write_report"])
def test_the_parameters_have_the_same_names(name):
    parameters = inspect.signature(getattr(longlens, name)).parameters
    assert {"evaluator_scores", "keys", "alpha", "beta", "use_lcl", "answers"} <= parameters.keys()


def test_evaluator_scores_keys_and_answers_are_taken(call):
    for source in ({"evaluator_scores": evaluator(), "alpha": 1.0}, {"keys": select_key_tokens(evaluator())}):
        call(**source, answers={"d00": [(40, 48)]})


def test_the_same_things_are_refused(call):
    keys = select_key_tokens(evaluator())
    with pytest.raises(UserError, match="both evaluator scores and keys were passed"):
        call(evaluator_scores=evaluator(), keys=keys)
    with pytest.raises(UserError, match="`alpha` cannot be set with keys"):
        call(keys=keys, alpha=1.0)
    with pytest.raises(UserError, match="beta` is 1, and `use_lcl=False` selects without beta"):
        call(evaluator_scores=evaluator(), beta=1, use_lcl=False)
    with pytest.raises(UserError, match=r"answers were passed for \['x'\] …, but none of these documents was scored"):
        call(evaluator_scores=evaluator(), answers={"x": [(0, 1)]})
    with pytest.raises(UserError, match="document 'd11' was scored with M, and has no scores of the evaluator E"):
        call(evaluator_scores=evaluator(n=11))
    with pytest.raises(UserError, match="document 'd00': M and the keys have different texts"):
        call(keys=select_key_tokens(evaluator(pieces=["xy"] * 24)))


def test_a_run_that_is_named_twice_is_read_once_and_documents_come_in_the_order_that_is_asked_for():
    one, two = run(n=3), run(n=2, name="N")
    found = list(read_once(["d02", "d00", "d02"], [one, two, None, one]))
    assert [[row and row.id for row in rows] for rows in found] == [
        ["d02", None, None, "d02"],
        ["d00", "d00", None, "d00"],
    ]
    assert found[0][0] is found[0][3]
