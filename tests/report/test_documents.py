import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.report import write_report
from longlens.report.documents import base64_of, choose_documents, page_documents, utf16_offsets
from longlens.scoring.scores import MemoryScores
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


def test_the_first_documents_that_fit_are_chosen_and_one_at_least():
    summary = summarized([corpus([100] * 10)])
    per_document = 100 * (64 / 3 + 4)
    assert choose_documents(summary, (), None, int(3.5 * per_document)) == ["d0", "d1", "d2"]
    assert choose_documents(summary, (), None, 1) == ["d0"]
    assert choose_documents(summary, (), None, 10**9) == [f"d{n}" for n in range(10)]
    two = summarized([corpus([100] * 10), corpus([100] * 10, "n")])
    assert len(choose_documents(two, (), None, int(3.5 * per_document))) == 1


def test_a_number_of_documents_and_named_ones_are_taken_as_they_are():
    summary = summarized([corpus([5] * 4)])
    assert choose_documents(summary, (), 3, 1) == ["d0", "d1", "d2"]
    assert choose_documents(summary, (), 99, 1) == ["d0", "d1", "d2", "d3"]
    assert choose_documents(summary, ["d3", "d1", "d3"], 1, 1) == ["d3", "d1"]
    with pytest.raises(KeyError, match="nosuch"):
        choose_documents(summary, ["d1", "nosuch"], None, 1)


@pytest.mark.parametrize("text", ["слово", "<&>'\"", "🙂🙂🙂🙂🙂"])
def test_a_page_stays_below_10_mb_in_every_script(text, tmp_path):
    summary = summarized([corpus([20_000] * 40, text=text)])
    shown = write_report(tmp_path / "r.html", summary)
    assert 1 < len(shown) < 40
    assert (tmp_path / "r.html").stat().st_size < 10e6


def test_the_documents_of_the_page_hold_the_scores_bit_by_bit(texts, models, evaluator):
    summary = summarized(models, evaluator_scores=evaluator)
    (page,) = json.loads(json.dumps(list(page_documents(summary, ["<two> & more"]))))
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


def test_short_scores_are_those_of_the_context_that_selects_the_key_tokens(texts):
    contexts = [SHORT, made.ShortContext(64, 16)]
    runs = [made.run(texts, "both", 1, contexts=contexts), made.run(texts, "evaluator", 2, contexts=contexts)]
    for context in contexts:
        summary = summarized(runs[:1], evaluator_scores=runs[1], context=context.context)
        (page,) = page_documents(summary, ["one"])
        for stored, source in zip(page["runs"], runs, strict=True):
            expected = source.get("one").at(context=context.context).short_logprobs
            assert decoded(stored["short"], "<f4").tobytes() == expected.tobytes()


def test_keys_of_a_file_are_runs_in_the_units_of_the_page(tmp_path, texts, models, evaluator):
    write_keys(tmp_path / "keys", select_key_tokens(evaluator))
    keys = read_keys(tmp_path / "keys")
    (page,) = page_documents(summarized(models, keys=keys), ["one"])
    offsets = np.array(naive.utf16_offsets(texts["one"]))
    assert decoded(page["keys"], "<i4").tolist() == offsets[keys.get("one").char_runs].ravel().tolist()


def test_a_document_without_text_has_no_tokens_and_one_text_is_enough():
    pieces, long = ["ab", "c"], [-1, -2]
    bare = scores(token_scores(pieces, long, store_text=False), name="bare")
    (page,) = page_documents(summarized([bare]), ["a"])
    assert page == {"id": "a", "text": None, "runs": [None], "keys": None}
    (page,) = page_documents(summarized([bare, MemoryScores([token_scores(pieces, long)], manifest("texts"))]), ["a"])
    assert page["text"] == "abc"
    assert all(run is not None for run in page["runs"])
