"""Models that are named score documents: what is said and refused in Python, before any weights are loaded."""

import logging
from dataclasses import replace

import pytest

import longlens
from longlens.corpus import Document
from longlens.errors import LonglensWarning, UserError
from longlens.evaluation import evaluate_longppl, open_sources, score_documents
from longlens.settings.options import KeyRule, Loading, Reading, Truncation

DOCUMENTS = [Document(id=str(i), text=f"text {i} with some words in it. " * 6) for i in range(2)]
WINDOWS = {"context": 32, "stride": 16}


@pytest.fixture
def no_weights(monkeypatch):
    """Nothing loads a model."""
    monkeypatch.setattr("longlens.models.UnloadedModel.load", lambda self: pytest.fail("weights are loaded"))


def test_scores_are_those_of_the_loaded_model(models, tmp_path, caplog):
    caplog.set_level(logging.INFO, "longlens")
    name = str(models / "llama")
    rows = [{"id": document.id, "text": document.text} for document in DOCUMENTS]
    found = score_documents(rows, name, tmp_path / "run", truncation=Truncation(max_length=99), **WINDOWS)
    expected = longlens.score(DOCUMENTS, longlens.load_scorer(name), max_length=99, **WINDOWS)
    assert [row.long_logprobs.tolist() for row in found] == [row.long_logprobs.tolist() for row in expected]
    assert caplog.messages[:2] == [
        f"{name}: LlamaForCausalLM from local folder, float32 on cpu",
        f"{name}: documents are truncated to 99 tokens (model maximum: 4,096)",
    ]


@pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")
def test_longppl_in_one_call(models, tmp_path):
    name, evaluator, out = str(models / "llama"), str(models / "other"), tmp_path / "run"
    rule = KeyRule(alpha=0.0, lcl=False)
    found = evaluate_longppl(DOCUMENTS, name, out, evaluator=evaluator, rule=rule, **WINDOWS)
    scores = {side: longlens.open_scores(out / side) for side in ("model", "evaluator")}
    expected = longlens.perplexity(scores["model"], evaluator_scores=scores["evaluator"], alpha=0.0, use_lcl=False)
    assert found == replace(expected, documents=found.documents)
    assert found.num_key_tokens > 0
    assert scores["evaluator"].short_contexts == [(32, 16)]
    assert scores["model"].short_contexts == []
    # By keys of a file the evaluator is not run.
    longlens.write_keys(tmp_path / "k.jsonl", longlens.select_key_tokens(scores["evaluator"], alpha=0, use_lcl=False))
    by_keys = evaluate_longppl(DOCUMENTS, name, tmp_path / "other", keys=tmp_path / "k.jsonl")
    assert by_keys.longppl == found.longppl
    assert not (tmp_path / "other" / "evaluator").exists()


@pytest.mark.usefixtures("no_weights")
def test_refusals_name_parameters(models, tmp_path):
    name = str(models / "llama")
    for settings, message in [
        ({}, "LongPPL needs key tokens: pass either `evaluator` or `keys`"),
        ({"evaluator": "self", "keys": "k.jsonl"}, "LongPPL needs key tokens"),
        ({"evaluator": name, "context": 0}, "`context` is 0"),
        ({"evaluator": name, "context": 4095}, "`context=4095` is not less than the maximum length, 4095 tokens"),
        ({"evaluator": name, "truncation": Truncation(max_length=9999)}, "`max_length` is 9999"),
        ({"evaluator": name, "bos": "x"}, "bos`? is 'x'; expected 'window' or 'published'"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate_longppl(DOCUMENTS, name, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_weights")
def test_what_makes_a_result_uninformative_is_warned_of(models, tmp_path):
    name = str(models / "llama")
    with (
        pytest.warns(LonglensWarning, match="no document has more than 180 tokens of .*: use a smaller `context`"),
        pytest.warns(LonglensWarning, match="the model is its own evaluator"),
        pytest.raises(pytest.fail.Exception, match="weights are loaded"),
    ):
        evaluate_longppl(DOCUMENTS, name, tmp_path / "run", evaluator="self", context=512)


def test_tokenized_sources_are_decoded(models, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "input_ids": [72, 105]}\n')
    name = str(models / "llama")
    sources = open_sources([rows], Reading(tokenized_with=name))
    assert [document.text for document in sources] == [document.text for document in sources]
    assert not sources.are_files
    with pytest.raises(UserError, match="no such model"):
        open_sources([rows], Reading(tokenized_with="./nosuch"))
    with pytest.raises(UserError, match="`dtype` is 'x'"):
        score_documents(DOCUMENTS, name, tmp_path / "run", loading=Loading(dtype="x"), **WINDOWS)
