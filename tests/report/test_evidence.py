"""Key tokens with their words, where these stood before, and the kinds of text: against loops over tokens."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.keytokens import select_key_tokens
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.report.charts import charts
from longlens.report.evidence import DISTANCES, GROUPS
from longlens.report.words import KINDS, mentions, tokens_since, words_of, words_of_tokens
from longlens.scoring.scores import MemoryScores
from tests.report import conftest as made
from tests.report.conftest import SHORT, four_runs, prose, summarized

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

TEXTS = {"one": prose(150, 1), "two": prose(90, 2), "three": prose(120, 5)}


@pytest.fixture(scope="module")
def scored():
    models, evaluator = four_runs(TEXTS)
    return models, evaluator, summarized(models, evaluator_scores=evaluator)


def kinds(text):
    words = words_of(text)
    return {text[start:end]: KINDS[kind] for (start, end), kind in zip(words.spans, words.kinds, strict=True)}


def test_kinds_of_words():
    found = kinds("The man met Anna Karenina, in 1878 or 0xFF. Then foo_bar() and camelCase of x2 _ and\nParis 1_000 É")
    assert found == {
        **dict.fromkeys(["The", "man", "met", "in", "or", "Then", "and", "of", "Paris"], "other words"),
        **dict.fromkeys(["Anna", "Karenina", "É"], "names"),
        **dict.fromkeys(["1878", "0xFF", "1_000"], "numbers"),
        **dict.fromkeys(["foo_bar", "camelCase", "x2", "_"], "identifiers"),
    }


@given(st.text(st.sampled_from("ab _1.\n🙂"), max_size=40), st.integers(1, 4), st.integers(0, 99))
def test_the_last_mention_is_that_of_a_loop(text, longest, seed):
    spans = made.tokenized(text, longest, seed)
    words = words_of(text)
    of_token = words_of_tokens(spans, words)
    since = tokens_since(spans, of_token, words)
    all_words = [(s, e) for s, e in words.spans.tolist()]
    for i, (start, end) in enumerate(spans):
        own = [n for n, (s, e) in enumerate(all_words) if max(s, start) < min(e, end)]
        assert of_token[i] == (own[0] if own else -1)
        if not own:
            assert since[i] == -1
            continue
        s, e = all_words[own[0]]
        before = [n for n in range(own[0]) if text[slice(*all_words[n])] == text[s:e]]
        assert mentions(words, own[0], 3) == before[:-4:-1]
        if not before:
            assert since[i] == 0
        else:
            at = all_words[before[-1]][0]
            first = next(j for j, (a, b) in enumerate(spans) if b > at)
            assert since[i] == i - first


def test_the_listed_tokens_are_the_key_tokens_with_the_largest_lsd(scored, monkeypatch):
    models, evaluator, summary = scored
    expected = []
    for keys in select_key_tokens(evaluator):
        row = evaluator.get(keys.id)
        expected += [(float(row.lsd[i]), keys.id, int(i)) for i in keys.token_indices]
    evidence = summary.evidence
    assert evidence.num_tokens == len(expected) == len(evidence.points)
    expected.sort(key=lambda each: -each[0])
    assert [token.lsd for token in evidence.tokens] == [lsd for lsd, _, _ in expected]
    assert {(token.document, token.index) for token in evidence.tokens} == {(id, i) for _, id, i in expected}
    monkeypatch.setattr("longlens.report.evidence.MAX_TOKENS", 7)
    few = summarized(models, evaluator_scores=evaluator).evidence
    assert [token.lsd for token in few.tokens] == [lsd for lsd, _, _ in expected[:7]]
    assert few.num_tokens == len(expected)


def test_a_token_has_its_words_and_its_probability_under_every_run(scored):
    models, evaluator, summary = scored
    runs = [*models, evaluator]
    seen = 0
    for token in summary.evidence.tokens:
        row = evaluator.get(token.document)
        start, end = row.char_spans[token.index].tolist()
        text = row.text
        assert (token.before, token.text, token.after) == (
            text[max(0, start - 32) : start],
            text[start:end],
            text[end : end + 32],
        )
        assert token.short == row.short[SHORT][token.index]
        for scores, value in zip(runs, token.long, strict=True):
            other = scores.get(token.document)
            inside = [i for i, (s, e) in enumerate(other.char_spans.tolist()) if start <= s and e <= end]
            covers = inside and other.char_spans[inside[0], 0] == start and other.char_spans[inside[-1], 1] == end
            if value is not None:
                assert covers
                assert value == pytest.approx(other.long_logprobs[inside].astype(float).sum(), abs=1e-6)
                seen += scores is not evaluator
    assert seen > 5


def test_gains_are_means_of_lsd_over_the_tokens_of_a_kind(scored):
    models, evaluator, summary = scored
    for place, scores in ((2, models[2]), (3, evaluator)):
        values = {group: [] for group in GROUPS}
        for row in scores:
            words = words_of(row.text)
            again = reoccurred_ngram_mask(row.text, row.char_spans)
            of_token = words_of_tokens(row.char_spans, words)
            for i, lsd in enumerate(row.lsd.tolist()):
                if math.isnan(lsd):
                    continue
                values["no word" if of_token[i] < 0 else KINDS[words.kinds[of_token[i]]]].append(lsd)
                values["re-occurring 3-grams" if again[i] else "new text"].append(lsd)
        for group, gain in zip(GROUPS, summary.evidence.gains[place], strict=True):
            assert gain.num_tokens == len(values[group])
            assert gain.value == (pytest.approx(np.mean(values[group]), rel=1e-9) if values[group] else None)
            assert gain.interval is None or gain.interval[0] < gain.value < gain.interval[1]
        assert list(summary.evidence.document_gains[place]) == list(TEXTS)
    assert set(summary.evidence.gains) == {2, 3}


def test_the_distances_count_key_tokens_and_the_others_that_could_have_been_key(scored):
    _, evaluator, summary = scored
    counts = np.zeros((2, len(DISTANCES) + 2), dtype=int)
    for keys in select_key_tokens(evaluator):
        row = evaluator.get(keys.id)
        words = words_of(row.text)
        since = tokens_since(row.char_spans, words_of_tokens(row.char_spans, words), words)
        for i in range(len(since)):
            key = i in keys.token_indices
            if since[i] < 0 or (not key and math.isnan(row.short[SHORT][i])):
                continue
            counts[0 if key else 1, 0 if since[i] == 0 else 1 + sum(since[i] > edge for edge in DISTANCES)] += 1
    assert summary.evidence.since.tolist() == counts.tolist()
    (chart,) = (chart for chart in charts(summary) if chart.name == "since-mention")
    assert [sum(series.y) for series in chart.series] == pytest.approx([100, 100])


def test_the_scatter_says_how_many_tokens_a_model_wins(scored):
    _, _, summary = scored
    both, wins = summary.evidence.wins[1]
    pairs = [(t.long[0], t.long[1]) for t in summary.evidence.points if None not in (t.long[0], t.long[1])]
    assert (both, wins) == (len(pairs), sum(b > a for a, b in pairs))
    (chart,) = (chart for chart in charts(summary) if chart.name == "key-tokens-1")
    assert list(zip(chart.series[0].x, chart.series[0].y, strict=True)) == pairs
    assert f"{wins:,} of {both:,}" in chart.caption


def test_without_texts_and_without_short_scores_there_is_less(texts):
    bare = made.run(texts, "bare", 1, contexts=[SHORT], store_text=False)
    evidence = summarized([bare]).evidence
    assert evidence.num_tokens == sum(keys.num_key_tokens for keys in select_key_tokens(bare))
    assert all(token.text == "" and token.since is None for token in evidence.tokens)
    assert evidence.gains == {}
    assert not evidence.since.any()
    plain = summarized([made.run(texts, "plain", 1)]).evidence
    assert (plain.num_tokens, plain.gains, plain.document_gains) == (0, {}, {})


def test_gains_by_a_field_of_the_rows(monkeypatch):
    monkeypatch.setattr("longlens.report.evidence.MAX_VALUES", 2)
    texts = {str(number): prose(60 + 10 * number, number) for number in range(9)}
    fields = [{"source": "code"}] * 3 + [{"source": "books"}] * 3 + [{"source": 7}, {}, {"source": "<b>rare</b>"}]
    metadata = dict(zip(texts, fields, strict=True))
    runs = [made.run(texts, name, seed, contexts=[SHORT]) for name, seed in (("base", 1), ("other", 2))]
    runs = [MemoryScores([replace(row, metadata=metadata[row.id]) for row in run], run.manifest) for run in runs]
    summary = summarized(runs, by="source")
    for place, run in enumerate(runs):
        values = {}
        for row in run:
            value = metadata[row.id].get("source")
            group = value if value in ("code", "books") else "(other values)"
            values.setdefault(group, []).extend(lsd for lsd in row.lsd.tolist() if not math.isnan(lsd))
        found = summary.evidence.field_gains[place]
        assert sorted(found) == sorted(values)
        for group, gain in found.items():
            assert (gain.num_tokens, gain.value) == (
                len(values[group]),
                pytest.approx(np.mean(values[group]), rel=1e-9),
            )
    (chart,) = (chart for chart in charts(summary) if chart.name == "gain-field")
    assert chart.x.categories[-1] == "(other values)"
    assert [len(series.y) for series in chart.series] == [3, 3]
    with pytest.raises(UserError, match="`by` is 'sorce', and no document has such a field; expected one of 'source'"):
        summarized(runs, by="sorce")
    with pytest.raises(UserError, match="the run has none: score rows with fields"):
        summarized([made.run(texts, "bare", 1, contexts=[SHORT])], by="source")
    assert all(chart.name != "gain-field" for chart in charts(summarized(runs)))
