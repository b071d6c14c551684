"""Items are shared by cost, and the cost of a document is that of its windows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.runs.sharing import HIDDEN_SIZE, balance, forward_cost, hidden_size_of, windows_cost
from longlens.windows import plan_windows

COSTS = st.lists(st.integers(0, 100).map(float), max_size=7)


def heaviest(costs, owners, size):
    return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(size))


@given(costs=COSTS, size=st.integers(1, 3))
def test_no_process_has_more_than_four_thirds_of_the_best_sharing(costs, size):
    owners = balance(costs, size)
    assert len(owners) == len(costs)
    best = min(heaviest(costs, every, size) for every in itertools.product(range(size), repeat=len(costs)))
    assert heaviest(costs, owners, size) <= (4 / 3 - 1 / (3 * size)) * best + 1e-9


def test_long_documents_do_not_leave_processes_idle():
    # Every second document is long: taken in turns, one process would have all of those.
    costs = [100.0, 1.0] * 8
    assert heaviest(costs, [at % 2 for at in range(16)], 2) == 800
    assert heaviest(costs, balance(costs, 2), 2) == 404
    assert balance([5.0, 5.0, 5.0], 3) == [0, 1, 2]


@given(tokens=st.integers(0, 300), context=st.integers(1, 90), stride=st.integers(1, 40))
def test_the_cost_of_windows_is_the_sum_over_them(tokens, context, stride):
    windows = plan_windows(tokens, context, stride)
    naive = sum(forward_cost(window.stop - window.start, 64) for window in windows)
    assert windows_cost(tokens, context, stride, 64) == pytest.approx(naive)


def test_attention_costs_what_the_formula_says():
    # A transformer with P = 12 L H^2: 2 P n of its matrices, 2 L H n^2 of causal attention.
    layers, hidden, tokens = 3, 64, 1000
    flops = 2 * 12 * layers * hidden**2 * tokens + 2 * layers * hidden * tokens**2
    assert 24 * layers * hidden**2 * forward_cost(tokens, hidden) == pytest.approx(flops)


@pytest.mark.parametrize(
    ("config", "hidden"),
    [({"hidden_size": 576}, 576), ({"n_embd": 768}, 768), ({"hidden_size": None}, HIDDEN_SIZE), (None, HIDDEN_SIZE)],
)
def test_the_hidden_size_is_the_models(config, hidden):
    assert hidden_size_of(config) == hidden
