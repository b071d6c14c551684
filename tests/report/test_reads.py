"""The report is made in one pass: what it reads, and how much of it is in memory."""

from collections import Counter
from weakref import WeakSet

import pytest

from longlens import Document, open_scores, score, select_key_tokens
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.report import summarize_runs, write_report
from longlens.scoring.reader import StoredScores
from longlens.settings.options import KeyRule
from tests.scoring.test_run import FakeScorer

pytestmark = pytest.mark.filterwarnings("ignore::longlens.LonglensWarning")

IDS = [f"d{number}" for number in range(12)]
CONTEXTS, STRIDES = [8, 16, 32], [4, 8, 16]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models and an evaluator at three K, and a model without short contexts."""
    folder = tmp_path_factory.mktemp("runs")
    documents = [Document(id=id, text=f"{id} says: {number * number} " * 8) for number, id in enumerate(IDS)]
    for name in ("one", "two", "evaluator"):
        score(documents, FakeScorer(weights=name), context=CONTEXTS, stride=STRIDES, out=folder / name)
    score(documents, FakeScorer(weights="long"), context=None, out=folder / "long")
    return folder


@pytest.fixture
def reads(monkeypatch):
    """How often each document of each run was read."""
    counted, get = Counter(), StoredScores.get

    def counting(self, id):
        counted[self.folder.name, id] += 1
        return get(self, id)

    monkeypatch.setattr(StoredScores, "get", counting)
    return counted


def once(*names):
    return {(name, id): 1 for name in names for id in IDS}


@pytest.mark.parametrize("answers", [None, {"d3": [(0, 9)]}])
@pytest.mark.parametrize("context", [None, 8])
def test_every_stored_document_is_read_once(folder, reads, context, answers):
    runs = [open_scores(folder / name) for name in ("one", "two", "long")]
    evaluator = open_scores(folder / "evaluator")
    summary = summarize_runs(runs, evaluator_scores=evaluator, rule=KeyRule(context=context), answers=answers)
    assert [run.reach is None for run in summary.runs] == [False, False, True, False]
    assert all(run.thresholds is not None for run in summary.compared)
    assert reads == once("one", "two", "long", "evaluator")


def test_so_it_is_where_a_compared_model_or_a_file_selects_the_key_tokens(folder, reads, tmp_path):
    runs = [open_scores(folder / name) for name in ("one", "two")]
    write_keys(tmp_path / "keys", select_key_tokens(runs[1]))
    reads.clear()
    summarize_runs(runs)
    assert reads == once("one", "two")
    reads.clear()
    summarize_runs(runs, keys=read_keys(tmp_path / "keys"))
    assert reads == once("one", "two")


@pytest.mark.parametrize("chosen", [{}, {"documents": ["d7", "d2"]}, {"num_documents": 3}])
def test_the_texts_of_the_page_come_from_the_same_pass(folder, reads, tmp_path, chosen):
    runs = [open_scores(folder / name) for name in ("one", "evaluator")]
    summary = write_report(tmp_path / "r.html", runs[:1], evaluator_scores=runs[1], **chosen)
    assert summary.documents == chosen.get("documents", IDS[: chosen.get("num_documents")])
    assert reads == once("one", "evaluator")


def test_two_documents_at_most_are_in_memory(folder, tmp_path, monkeypatch):
    alive, most, get = WeakSet(), [0], StoredScores.get

    def watching(self, id):
        row = get(self, id)
        alive.add(_Watched(row))
        most[0] = max(most[0], len(alive))
        return row

    class _Watched:
        """Lives as long as a row does, which compares by its arrays and has no hash."""

        def __init__(self, row):
            object.__setattr__(row, "_watched", self)

    monkeypatch.setattr(StoredScores, "get", watching)
    runs = [open_scores(folder / name) for name in ("one", "two", "evaluator")]
    write_report(tmp_path / "r.html", runs[:2], evaluator_scores=runs[2])
    assert 0 < most[0] <= 2 * 3


def test_the_order_in_which_a_run_was_scored_does_not_matter(folder, tmp_path):
    documents = [Document(id=id, text=f"{id} says: {number * number} " * 8) for number, id in enumerate(IDS)]
    again = score(documents[::-1], FakeScorer(weights="two"), context=CONTEXTS, stride=STRIDES, out=tmp_path / "two")
    one, two, evaluator = (open_scores(folder / name) for name in ("one", "two", "evaluator"))
    straight, turned = (summarize_runs([one, other], evaluator_scores=evaluator).to_json() for other in (two, again))
    for results in (straight["results"], turned["results"]):
        assert results[1]["num_documents"] == len(IDS)
    assert straight["pairs"][0]["log_longppl"] == turned["pairs"][0]["log_longppl"]
    assert straight["reach"] == turned["reach"]
