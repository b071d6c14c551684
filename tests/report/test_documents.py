import base64
import json
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.report import write_report
from longlens.report.documents import PageDocuments, base64_of, utf16_offsets
from longlens.scoring.scores import MemoryScores
from longlens.settings.options import KeyRule
from tests.reference import report as naive
from tests.report import conftest as made
from tests.report.conftest import SHORT, summarized
from tests.toys import manifest, scores, token_scores

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

UNICODE = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a\0🙂\u200d\ufeff\U0010ffff"))


def decoded(stored, dtype):
    return np.frombuffer(base64.b64decode(stored), dtype=dtype)


@given(UNICODE)
def test_utf16_offsets_are_those_of_the_encoded_text(text):
    offsets = utf16_offsets(text)
    assert offsets.tolist() == naive.utf16_offsets(text)
    assert offsets.dtype == np.int64


@pytest.mark.parametrize("dtype", ["<i4", "<f4", "<f8"])
def test_base64_is_little_endian_and_keeps_nan_and_infinities(dtype):
    values = [1, -2, 3] if dtype == "<i4" else [1.5, -np.inf, np.nan, 1 / 3]
    expected = np.array(values, dtype=dtype)
    assert decoded(base64_of(np.array(values)[::1], dtype), dtype).tobytes() == expected.tobytes()
    assert decoded(base64_of(np.array([*values, *values])[::2], dtype), dtype).size == len(values)


def corpus(sizes, name="m", text="abcd"):
    return scores(*(token_scores([text] * size, [-1.0] * size, id=f"d{n}") for n, size in enumerate(sizes)), name=name)


def shown(folder, runs, *chosen, **options):
    """Ids of the documents of a page, and what the page has of them."""
    with closing(PageDocuments(folder / "r.html", *chosen)) as page:
        return summarized(runs, page=page, **options).documents, [json.loads(piece) for piece in page]


def test_the_first_documents_that_fit_are_chosen_and_one_at_least(tmp_path):
    one, two = corpus([100] * 10), corpus([100] * 10, "n")
    per_document = 100 * (64 / 3 + 10 + 4)
    assert shown(tmp_path, [one], (), None, int(3.5 * per_document))[0] == ["d0", "d1", "d2"]
    assert shown(tmp_path, [one], (), None, 1)[0] == ["d0"]
    assert shown(tmp_path, [one], (), None, 10**9)[0] == [f"d{n}" for n in range(10)]
    assert len(shown(tmp_path, [one, two], (), None, int(3 * per_document))[0]) == 1


def test_a_number_of_documents_and_named_ones_are_taken_as_they_are(tmp_path):
    runs = [corpus([5] * 4)]
    assert shown(tmp_path, runs, (), 3, 1)[0] == ["d0", "d1", "d2"]
    assert shown(tmp_path, runs, (), 99, 1)[0] == ["d0", "d1", "d2", "d3"]
    ids, documents = shown(tmp_path, runs, ["d3", "d1", "d3"], 1, 1)
    assert ids == [document["id"] for document in documents] == ["d3", "d1"]


def test_more_than_fits_in_memory_waits_in_a_file_that_is_gone_afterwards(tmp_path, monkeypatch):
    expected = shown(tmp_path, [corpus([5] * 4)])
    monkeypatch.setattr("longlens.report.documents.MAX_BYTES", 10)
    assert shown(tmp_path, [corpus([5] * 4)], (), 4) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["слово", "<&>'\"", "🙂🙂🙂🙂🙂"])
def test_a_page_stays_below_10_mb_in_every_script(text, tmp_path):
    summary = write_report(tmp_path / "r.html", [corpus([20_000] * 40, text=text)])
    assert 1 < len(summary.documents) < 40
    assert (tmp_path / "r.html").stat().st_size < 10e6


def test_the_documents_of_the_page_hold_the_scores_bit_by_bit(tmp_path, texts, models, evaluator):
    _, (page,) = shown(tmp_path, models, ["<two> & more"], evaluator_scores=evaluator)
    text = texts["<two> & more"]
    assert (page["id"], page["text"], page["keys"]) == ("<two> & more", text, None)
    offsets = np.array(naive.utf16_offsets(text))
    for stored, source in zip(page["runs"], [*models, evaluator], strict=True):
        row = source.get("<two> & more")
        assert decoded(stored["start"], "<i4").tolist() == offsets[row.char_spans[:, 0]].tolist()
        assert decoded(stored["end"], "<i4").tolist() == offsets[row.char_spans[:, 1]].tolist()
        assert decoded(stored["long"], "<f4").tobytes() == row.long_logprobs.tobytes()
        assert (stored["short"] is None) == (not row.short)
        if row.short:
            assert decoded(stored["short"], "<f4").tobytes() == row.short_logprobs.tobytes()


def test_short_scores_are_those_of_the_context_that_selects_the_key_tokens(tmp_path, texts):
    contexts = [SHORT, made.ShortContext(64, 16)]
    runs = [made.run(texts, "both", 1, contexts=contexts), made.run(texts, "evaluator", 2, contexts=contexts)]
    for context in contexts:
        _, (page,) = shown(tmp_path, runs[:1], ["one"], evaluator_scores=runs[1], rule=KeyRule(context=context.context))
        for stored, source in zip(page["runs"], runs, strict=True):
            expected = source.get("one").at(context=context.context).short_logprobs
            assert decoded(stored["short"], "<f4").tobytes() == expected.tobytes()


def test_keys_of_a_file_are_runs_in_the_units_of_the_page(tmp_path, texts, models, evaluator):
    write_keys(tmp_path / "keys", select_key_tokens(evaluator))
    keys = read_keys(tmp_path / "keys")
    _, (page,) = shown(tmp_path, models, ["one"], keys=keys)
    offsets = np.array(naive.utf16_offsets(texts["one"]))
    assert decoded(page["keys"], "<i4").tolist() == offsets[keys.get("one").char_runs].ravel().tolist()


def test_a_document_without_text_has_no_tokens_and_one_text_is_enough(tmp_path):
    pieces, long = ["ab", "c"], [-1, -2]
    bare = scores(token_scores(pieces, long, store_text=False), name="bare")
    _, (page,) = shown(tmp_path, [bare])
    assert page == {"id": "a", "text": None, "runs": [None], "keys": None, "where": None}
    _, (page,) = shown(tmp_path, [bare, MemoryScores([token_scores(pieces, long)], manifest("texts"))])
    assert page["text"] == "abc"
    assert all(run is not None for run in page["runs"])
