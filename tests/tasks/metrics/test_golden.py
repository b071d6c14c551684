"""What the benchmarks' own code says about small inputs: tests/golden/answer_metrics.json holds its outputs."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from longlens.tasks import metrics
from longlens.tasks.metrics.helmet import split_sentences

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "answer_metrics.json").read_text(encoding="utf-8"))
DOCUMENTS = GOLDEN.pop("citation_documents")


def entails(premise, claim):
    """As the stored scores were made: every word of the claim is in the premise."""
    return set(re.findall(r"\w+", claim.lower())) <= set(re.findall(r"\w+", premise.lower()))


def citation_scores(output, question):
    scores = metrics.citation_scores(output, DOCUMENTS, entails, question)
    return [scores["citation_recall"], scores["citation_precision"]]


FUNCTIONS = {
    "token_f1 longbench": partial(metrics.token_f1, variant="longbench"),
    "rouge_l longbench": partial(metrics.rouge_l, variant="longbench"),
    "citation_scores": citation_scores,
    "split_sentences": split_sentences,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_benchmarks_own_code_says_the_same(name):
    function = FUNCTIONS.get(name) or getattr(metrics, name)
    differences = [(given, wanted, got) for given, wanted in GOLDEN[name] if (got := function(*given)) != wanted]
    assert differences == []


def test_every_function_of_a_benchmark_is_held_against_its_code():
    mended = {name for name in dir(metrics) if name.endswith(("_words", "_with_commas"))}
    public = {name for name, value in vars(metrics).items() if callable(value)}
    assert public - mended == {name.split()[0] for name in GOLDEN} - {"split_sentences"}
