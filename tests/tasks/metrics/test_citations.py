import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks.metrics import citation_scores, remove_citations

DOCUMENTS = [{"title": f"T{n}", "text": f"fact{n}."} for n in range(1, 5)]


def holds(*facts):
    """Entails when the premise has all the facts; remembers what it was asked."""

    def entails(premise, claim):
        entails.asked.append((premise, claim))
        return all(f"{fact}." in premise for fact in facts)

    entails.asked = []
    return entails


def recall_and_precision(output, entails, question=None):
    scores = citation_scores(output, DOCUMENTS, entails, question)
    return scores["citation_recall"], scores["citation_precision"]


def test_a_supported_sentence_needs_only_the_citations_that_support_it():
    assert recall_and_precision("It is so [1][2].", holds("fact1", "fact2")) == (100, 100)
    assert recall_and_precision("It is so [1][2].", holds("fact1")) == (100, 50)
    assert recall_and_precision("It is so [1].", holds("fact1")) == (100, 100)
    assert recall_and_precision("It is so [2].", holds("fact1")) == (0, 0)


def test_sentences_without_citations_count_for_recall_alone():
    assert recall_and_precision("It is so [1]. It really is.", holds("fact1")) == (50, 100)
    assert recall_and_precision("1. It is so [1]. Ok.", holds("fact1")) == (100, 100)  # short ones are no sentences


def test_a_citation_out_of_range_spoils_its_sentence_and_is_not_counted():
    assert recall_and_precision("It is so [1][5]. It is so [1].", holds("fact1")) == (50, 100)
    assert recall_and_precision(f"It is so [1][{'9' * 5000}].", holds()) == (0, 0)
    assert citation_scores("It is so [0].", [], holds())["citation_recall"] == 0


def test_the_first_three_citations_are_looked_at():
    entails = holds("fact4")
    assert recall_and_precision("It\n\nis so [1][2][3][4].", entails) == (0, 0)
    assert entails.asked == [("Title: T1\nfact1.\nTitle: T2\nfact2.\nTitle: T3\nfact3.", "It is so.")]


def test_one_citation_takes_one_call_and_several_one_or_two_each_beside():
    one, several = holds(), holds("fact1")
    recall_and_precision("It is so [1].", one)
    recall_and_precision("It is so [1][2].", several)
    assert [len(one.asked), len(several.asked)] == [1, 1 + 1 + 2]


def test_the_items_of_a_list_are_claims_with_the_question():
    entails = holds()
    citation_scores("red [1], blue,\ngreen [2].", DOCUMENTS, entails, "Which colors?")
    assert [claim for _, claim in entails.asked] == ["Which colors? red", "Which colors? green"]
    assert recall_and_precision("red [1], blue", holds("fact1"), "Which?") == (50, 100)


def test_an_output_without_a_sentence_tells_so():
    assert citation_scores("", DOCUMENTS, holds()) == {
        "citation_recall": 0,
        "citation_precision": 0,
        "num_claims": 0,
    }


@given(st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=4), st.integers(0, 2**10))
def test_scores_are_percentages_and_all_is_right_where_everything_entails(citations, seed):
    output = " ".join(f"It is so {''.join(f'[{n}]' for n in numbers)}." for numbers in citations)
    scores = citation_scores(output, DOCUMENTS, lambda premise, claim: len(premise) * 31 % (seed + 2) > seed / 2)
    assert 0 <= scores["citation_precision"] <= 100
    assert 0 <= scores["citation_recall"] <= 100
    wide = [{"title": "t", "text": "x"}] * 6
    cited = sum(bool(numbers) for numbers in citations)
    everything = citation_scores(output, wide, lambda premise, claim: True)
    assert everything["citation_recall"] == pytest.approx(100 * cited / max(len(citations), 1))
    assert everything["citation_precision"] == (100 if cited else 0)


def test_citations_are_removed_with_the_blank_before():
    assert remove_citations("It is so [1][2]. Really [3].") == "It is so. Really."
    assert remove_citations("so [3 | 4]") == "so 4"


def test_a_document_without_text_is_said():
    with pytest.raises(UserError, match="document 2 has title: expected title and text"):
        citation_scores("a", [DOCUMENTS[0], {"title": "x"}], holds())
    with pytest.raises(UserError, match="document 1 has text: expected title and text"):
        citation_scores("a", [{"text": "x"}], holds())
