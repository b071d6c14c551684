"""The sentences on top of a report: a difference is claimed where its interval excludes 0, and nowhere else."""

import numpy as np
import pytest

from longlens import compare
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.report.answer import answer
from longlens.report.charts import charts
from longlens.scoring.scores import MemoryScores
from tests.report.conftest import summarized
from tests.toys import manifest, scores, token_scores

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

PIECES = [f"w{number} " for number in range(40)]


def run(name, key, rest, documents, *, noise=0.0, tokenizer="tokenizer"):
    """Every other token is key, with `key` nats; the others have `rest`; both differ from document to document."""
    draw = np.random.default_rng(len(name))
    rows = []
    for number in range(documents):
        moved = noise * draw.normal(size=40)
        long = np.where(np.arange(40) % 2, key, rest) + moved
        rows.append(token_scores(PIECES, long, np.where(np.arange(40) % 2, long - 5, long), id=f"d{number}"))
    made = manifest(name)
    made["model"]["tokenizer_sha256"] = tokenizer
    return MemoryScores(rows, made)


def said(*runs, **options):
    summary = summarized(runs, **options)
    return [str(sentence) for sentence in answer(summary)], summary


def test_a_difference_that_is_significant_is_said_with_both_values():
    one, two = run("one", -1.5, -2, 8, noise=0.1), run("two", -0.5, -2.05, 8, noise=0.1)
    sentences, summary = said(one, two, evaluator_scores=run("judge", -1, -1, 8))
    assert summary.pairs[0].log_longppl.significant
    values = [f"{each.result.longppl:.2f}" for each in summary.runs[1::-1]]
    assert sentences[0].startswith(f"two predicts key tokens better than one (LongPPL {values[0]} against {values[1]})")
    assert sentences[0].endswith("; the difference is significant over 8 documents.")
    assert len(sentences) == 1


def test_plain_perplexity_that_ranks_them_the_other_way_round_is_said():
    one, two = run("one", -1.5, -2, 8, noise=0.1), run("two", -0.5, -4, 8, noise=0.1)
    sentences, summary = said(one, two, evaluator_scores=run("judge", -1, -1, 8))
    more = 100 * (summary.runs[1].result.ppl / summary.runs[0].result.ppl - 1)
    assert f", although its perplexity is {more:,.0f} % higher;" in sentences[0]


@pytest.mark.parametrize(("documents", "noise"), [(1, 0.1), (2, 1.5)])
def test_too_few_documents_are_no_conclusion(documents, noise):
    one, two = run("one", -1.1, -2, documents, noise=noise), run("two!", -1.0, -2, documents, noise=noise)
    sentences, summary = said(one, two, evaluator_scores=run("judge", -1, -1, documents))
    found = summary.pairs[0].log_longppl
    assert not found.significant
    count = "1 document" if documents == 1 else "2 documents"
    assert f"; {count}: too few to conclude" in sentences[0]
    assert "significant" not in sentences[0]
    assert sentences[0].startswith("On these texts, ")
    if found.documents_to_settle is not None:
        assert f"(about {found.documents_to_settle:,} would be needed if the difference stays)" in sentences[0]


def test_with_two_tokenizers_the_verdict_is_that_per_character():
    one, two = run("one", -1.5, -2, 8, noise=0.1), run("two", -0.5, -2, 8, noise=0.1, tokenizer="other")
    judge = run("judge", -1, -1, 8)
    sentences, _ = said(one, two, evaluator_scores=judge)
    (pair,) = compare([one, two], evaluator_scores=judge).pairs
    found = pair.key_bits_per_character
    low, high = sorted(abs(end) for end in found.interval)
    expected = f"two needs {abs(found.value):.3f} bits per character (95 % interval {low:.3f} to {high:.3f}) less."
    assert sentences[1].endswith(expected)


def test_a_model_that_selected_the_key_tokens_is_named():
    one, two = run("one", -1.5, -2, 8, noise=0.1), run("two", -0.5, -2, 8, noise=0.1)
    assert said(one, two, evaluator_scores=two)[0][-1] == "two selected the key tokens itself, which favors it."
    assert "itself" not in " ".join(said(one, two, evaluator_scores=run("judge", -1, -1, 8))[0])


def test_so_it_is_where_its_key_tokens_come_from_a_file(tmp_path):
    one, two = run("one", -1.5, -2, 8, noise=0.1), run("two", -0.5, -2, 8, noise=0.1)
    write_keys(tmp_path / "keys", select_key_tokens(two))
    assert said(one, two, keys=read_keys(tmp_path / "keys"))[0][-1].startswith("two selected the key tokens itself")


def test_one_model_is_not_compared_and_without_key_tokens_there_is_no_longppl():
    one = run("one", -1.5, -2, 3)
    sentences, summary = said(one)
    assert sentences[0].startswith(f"one: LongPPL {summary.runs[0].result.longppl:.2f} on 60 key tokens, PPL ")
    plain = scores(token_scores(["a", "b", "c"], [-1, -1, -2]), name="plain")
    other = scores(token_scores(["a", "b", "c"], [-1, -1, -1]), name="plainer")
    (alone,), summary = said(plain)
    assert alone == f"plain has no LongPPL here; its PPL is {summary.runs[0].result.ppl:.2f} over 1 document."
    (both,), _ = said(plain, other)
    assert both.startswith("There are no key tokens to compare. On all tokens, plainer is better than plain (PPL ")
    assert both.endswith("1 document: too few to conclude.")


def test_the_same_model_twice_is_equal():
    one, two = run("one", -1.5, -2, 3), run("two", -1.5, -2, 3)
    (equal,), _ = said(one, two, evaluator_scores=run("judge", -1, -1, 3))
    assert equal == "two and one predict key tokens equally well."


def test_names_are_parts_of_their_own():
    name = "{model} <b>"
    (sentence, *_) = answer(summarized([run(name, -1.5, -2, 3)]))
    assert [text for text, is_name in sentence.parts if is_name] == [name]


def test_the_bars_are_both_perplexities_with_their_intervals():
    one, two = run("one", -1.5, -2, 8, noise=0.1), run("two", -0.5, -2, 8, noise=0.1)
    summary = summarized([one, two], evaluator_scores=run("judge", -1, -1, 8))
    chart = charts(summary)[0]
    assert chart.name == "ppl-longppl"
    for series, each in zip(chart.series, summary.compared, strict=True):
        assert series.y == [each.result.ppl, each.result.longppl]
        ends = [each.result.intervals[name] for name in ("ppl", "longppl")]
        assert list(zip(series.low, series.high, strict=True)) == ends
