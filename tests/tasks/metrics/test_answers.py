import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks.metrics import exact_match, normalize_answer, parse_output, substring_exact_match, token_f1

texts = st.text(alphabet="aThe cats.,-!\n東é", max_size=20)
VARIANTS = ("helmet", "longbench")


@given(texts)
def test_normalizing_twice_changes_no_word_but_new_articles(text):
    once = normalize_answer(text)
    assert once == " ".join(once.split())
    assert normalize_answer(once.upper()) == once


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_scores_lie_between_0_and_1_and_are_the_best_over_answers_in_any_order_and_grouping(prediction, answers):
    scores = (exact_match, substring_exact_match, token_f1, lambda p, a: token_f1(p, a, variant="longbench"))
    for score in scores:
        best = max(score(prediction, answer) for answer in answers)
        assert 0.0 <= best <= 1.0
        assert score(prediction, answers) == best
        assert score(prediction, answers[::-1]) == best
        assert score(prediction, [answers, answers[:1]]) == best


@given(texts, texts)
def test_equal_answers_score_in_full_and_an_exact_match_is_a_substring_too(first, second):
    if exact_match(first, second):
        assert substring_exact_match(first, second) == 1.0
        assert all(token_f1(first, second, variant=name) == float(normalize_answer(first) != "") for name in VARIANTS)


@given(texts, texts)
def test_f1_is_symmetric(first, second):
    assert all(token_f1(first, second, variant=v) == token_f1(second, first, variant=v) for v in VARIANTS)


def test_yes_and_no_are_all_or_nothing_for_helmet_alone():
    assert token_f1("yes", "yes it is") == 0.0
    assert token_f1("yes", "yes it is", variant="longbench") == 0.5


def test_words_are_counted_as_often_as_they_occur():
    assert token_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert token_f1("cat cat dog", "cat cat") == pytest.approx(4 / 5)


def test_an_output_is_parsed_from_its_prefix_to_the_line_end():
    assert parse_output("Sure. Answer: Paris\nAnswer: Rome") == "Paris"
    assert parse_output("answer: Answer: Paris") == "Paris"
    assert parse_output("Paris \nRome") == "Paris"
    assert parse_output("Key: k\nCorresponding value: v", "corresponding value:") == "v"


def test_what_cannot_be_compared_is_said():
    with pytest.raises(UserError, match=r"answers are \[\]: .* at least one"):
        exact_match("a", [])
    with pytest.raises(UserError, match=r"answers are \[\[\]\]"):
        token_f1("a", [[]])
    with pytest.raises(UserError, match="no variant 'squad': expected one of helmet, longbench"):
        token_f1("a", "b", variant="squad")
    with pytest.raises(UserError, match=r"prefix 'a\(' is not a regular expression .*re\.escape"):
        parse_output("a", "a(")
