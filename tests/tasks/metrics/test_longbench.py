import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks.metrics import (
    classification_score,
    code_similarity,
    count_score,
    extract_choice,
    last_integer,
    last_integer_with_commas,
    retrieval_score,
)

texts = st.text(alphabet="ab c13#`/\n.,", max_size=20)


@given(texts, texts)
def test_scores_lie_between_0_and_1_and_a_text_is_like_itself(prediction, answer):
    scores = [
        count_score(prediction, answer),
        retrieval_score(prediction, f"Paragraph 1{answer}"),
        code_similarity(prediction, answer),
        classification_score(prediction, answer, ["a", "ab", answer]),
    ]
    assert all(0.0 <= score <= 1.0 for score in scores)
    line = answer.translate(str.maketrans("", "", "#`/\n"))
    assert code_similarity(f"\n# why\n{line}\nrest", line) == 1.0


@pytest.mark.parametrize("before", ["", "\n\n", "# why\n", "x // why\n", "```python\n"])
def test_the_first_line_of_code_is_compared(before):
    assert code_similarity(f"{before}x = 1\ny = 2", "x = 1") == 1.0


def test_every_other_number_lowers_the_score():
    assert count_score("5, not 6 or 7", 5) == pytest.approx(1 / 3)
    assert retrieval_score("Paragraph 3 or Paragraph 4", "Paragraph 3") == 0.5


def test_an_answer_without_a_paragraph_is_said():
    with pytest.raises(UserError, match="answer 'third' contains no paragraph: expected 'Paragraph N'"):
        retrieval_score("3", "third")


def test_code_is_compared_as_difflib_does_and_not_by_edits():
    assert code_similarity("return self.foo(bar, baz)", "return foo.bar(self, baz)") == 0.68


def test_a_part_of_the_right_class_is_no_second_class_unless_it_follows_one():
    assert classification_score("animal cell", "animal cell", ["animal", "animal cell"]) == 1.0
    assert classification_score("animal cell", "animal cell", ["animal", "cell", "animal cell"]) == 0.5
    assert classification_score("mouse or cell", "mouse", ["mouse", "cell"]) == 0.5
    assert classification_score("cell", "mouse", ["mouse", "cell"]) == 0.0


@given(st.sampled_from("ABCD"), st.text(alphabet="xyz .", max_size=5))
def test_a_choice_in_brackets_goes_before_one_without(letter, text):
    assert extract_choice(f"{text}The correct answer is **({letter})**.") == letter
    assert extract_choice(f"The correct answer is B. The correct answer is ({letter})") == letter
    assert extract_choice(f"{text}({letter})") is None


@given(st.text(alphabet="x ,.<>", max_size=9), st.integers(0, 10**6), st.text(alphabet="x .<>)", max_size=9))
def test_the_last_number_is_read(before, number, after):
    assert last_integer(f"12 {before}{number}{after}") == number
    assert last_integer(before + after) is None


def test_commas_between_groups_of_three_digits():
    assert last_integer("<12,345>") == 345
    assert last_integer_with_commas("<12,345>") == 12345
    assert last_integer_with_commas("1,234,567") == 1234567
    assert last_integer_with_commas("12, 345") == 345
    assert last_integer_with_commas("1,2") == 2
    assert last_integer_with_commas("1234,567") == 567
    assert last_integer_with_commas("none") is None


def test_a_number_of_endless_digits_is_none():
    assert last_integer("9" * 5000) is None
