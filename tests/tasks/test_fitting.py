"""The fit is exact whatever the estimates are worth, and is quick where they are good."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from longlens.tasks.fitting import Draft, Plan, TokenCounter, fit, shortest
from tests.tasks.fixtures import TOKENIZER


class Toy(Plan):
    """Units of given sizes; the whole has `extra` tokens more for each unit than its estimate says."""

    def __init__(self, sizes, extra, minimum):
        self.sizes, self.extra, self.minimum, self.maximum = sizes, extra, minimum, len(sizes)
        self.drafted = []

    def unit(self, index):
        return "x" * self.sizes[index]

    def draft(self, units):
        self.drafted.append(units)
        return Draft(
            prompt="x" * (sum(self.sizes[:units]) + self.extra * units), answer_prefix="", answers=[], answer_spans=[]
        )


class Tokens:
    """A token a character."""

    def count(self, text):
        return len(text)

    def sizes(self, texts):
        return [len(text) for text in texts]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(0, 3), st.integers(0, 400), st.data())
def test_it_finds_what_fits_and_next_does_not(sizes, extra, budget, data):
    minimum = data.draw(st.integers(0, len(sizes)))
    plan = Toy(sizes, extra, minimum)
    total = [0, *accumulate(size + extra for size in sizes)]
    fitted = fit(plan, Tokens(), budget)
    if total[minimum] > budget:
        assert (fitted.units, fitted.tokens) == (minimum, total[minimum])  # the smallest, which does not fit
        return
    assert minimum <= fitted.units <= len(sizes)
    assert fitted.tokens == total[fitted.units] == len(fitted.draft.prompt) <= budget
    assert fitted.units == len(sizes) or total[fitted.units + 1] > budget


def test_good_estimates_need_three_texts_and_bad_ones_some_more():
    good, bad = Toy([7] * 5000, 0, 1), Toy([1] * 5000, 20, 1)
    assert fit(good, Tokens(), 20000).units == 20000 // 7
    assert fit(bad, Tokens(), 20000).units == 20000 // 21
    assert len(good.drafted) == 3
    assert len(bad.drafted) < 30


def test_without_a_budget_it_is_the_smallest():
    plan = Toy([5, 5], 0, 2)
    assert fit(plan, Tokens(), None).tokens == shortest(plan, Tokens()) == 10


def test_a_text_is_sized_once(monkeypatch):
    asked = []
    tokens = TokenCounter(lambda texts, **_: asked.extend(texts) or {"input_ids": [[0] * len(text) for text in texts]})
    assert tokens.sizes(["ab", "abc", "ab"]) == [2, 3, 2]
    assert tokens.sizes(["abc", "a"]) == [3, 1]
    assert asked == ["ab", "abc", "a"]
    monkeypatch.setattr("longlens.tasks.fitting._CACHED", 1)
    assert tokens.sizes(["abc", "abcd"]) == [3, 4]  # what was kept is dropped, not what is asked for


def test_counts_are_the_tokenizers():
    assert TokenCounter(TOKENIZER).count("abc") == 4
    assert TokenCounter(TOKENIZER).sizes(["abc"]) == [3]
