import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import LonglensWarning, UserError
from longlens.tasks.metrics import rouge_l
from tests.tasks.metrics.reference import common_length

words = st.lists(st.sampled_from(["cat", "dog", "sky", "red", "a"]), max_size=6)


@given(words, words)
def test_rouge_score_is_the_longest_common_subsequence(given, wanted):
    common = common_length(given, wanted)
    f = 2 * common / (len(given) + len(wanted)) if common else 0.0
    assert rouge_l(" ".join(given), " ".join(wanted)) == pytest.approx(f)
    assert rouge_l(" ".join(given).upper(), ", ".join(wanted)) == pytest.approx(f)


@given(words, words, words)
def test_longbench_is_bounded_and_a_text_is_all_but_like_itself(given, wanted, more):
    text = f"{' '.join(given)}. {' '.join(more)}"
    assert 0.0 <= rouge_l(text, " ".join(wanted), variant="longbench") < 1.0
    assert rouge_l(text, text, variant="longbench") == pytest.approx(1, abs=1e-8)


@given(st.lists(st.sampled_from("abcdef"), max_size=6, unique=True), st.permutations("abcdef"))
def test_longbench_of_different_words_in_one_sentence_is_the_common_subsequence(given, wanted):
    common = common_length(given, wanted)
    f = 2 * common / (max(len(given), 1) + len(wanted))
    assert rouge_l(" ".join(given), " ".join(wanted), variant="longbench") == pytest.approx(f, abs=1e-7)


def test_the_two_are_not_the_same():
    assert rouge_l("the cat sat", "the cat sat on the mat") == pytest.approx(2 / 3)
    assert rouge_l("the cat sat", "the cat sat on the mat", variant="longbench") == pytest.approx(0.75)


def numbered(count):
    return " ".join(f"w{n}" for n in range(count))


# Where LongBench's own eval.py, run on one sample, went from a score to 0, on CPython 3.11 with its default limit.
@pytest.mark.parametrize(
    ("prediction", "first_zero"),
    [
        pytest.param(None, 991, id="equal texts"),
        pytest.param("w0 v0 v1 v2 v3 v4", 986, id="six words"),
    ],
)
def test_longbench_counts_0_from_where_its_code_fails(prediction, first_zero):
    last, first = numbered(first_zero - 1), numbered(first_zero)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rouge_l(prediction or last, last, variant="longbench") > 0
    with pytest.warns(LonglensWarning, match="of a pair of sentences is 0 because they are too long"):
        assert rouge_l(prediction or first, first, variant="longbench") == 0.0
    stopped = first.replace("w9 ", "w9. ")
    assert rouge_l(prediction or stopped, stopped, variant="longbench") > 0


def test_an_unknown_variant_is_said():
    with pytest.raises(UserError, match="no variant 'lsum': expected one of rouge_score, longbench"):
        rouge_l("a", "b", variant="lsum")
