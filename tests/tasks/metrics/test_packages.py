"""The packages behind the metrics: brought in when needed, never from the network, and named when they are missing."""

import subprocess
import sys

import pytest

from longlens.errors import UserError
from longlens.tasks.metrics import helmet, ndcg_at_k, rouge, rouge_l


def test_importing_the_metrics_brings_in_none_of_them():
    heavy = ["nltk", "punkt", "rouge_score", "pytrec_eval", "scipy", "numpy", "torch"]
    code = f"import sys, longlens.tasks.metrics; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_sentences_need_no_downloaded_files(monkeypatch):
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [])
    helmet._sentence_tokenizer.cache_clear()
    text = "Dr. Smith lives in the U.S. now. He is fine."
    assert helmet.split_sentences(text) == ["Dr. Smith lives in the U.S. now.", "He is fine."]


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pytrec_eval", lambda: ndcg_at_k({"a": 1}, {"a": 1})),
        ("rouge_score.rouge_scorer", lambda: rouge_l("a", "b")),
        ("nltk.tokenize.punkt", lambda: helmet.split_sentences("a")),
        ("punkt", lambda: helmet.split_sentences("a")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, use):
    rouge._scorer.cache_clear()
    helmet._sentence_tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package '{module}'.*pip install 'longlens\[tasks\]'"):
        use()
