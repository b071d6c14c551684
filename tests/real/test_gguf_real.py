"""The models that packages ship as .gguf files: read from the file, and from what is kept of it."""

import hashlib

import pytest

import longlens
from longlens.models import load_tokenizer
from longlens.models.checkpoint import identify

pytestmark = pytest.mark.real
TEXT = "def f(x):\n" + " " * 36 + "return 'naïve 漢字 🙂'  # don't\n\n\n\t12345 <bos>\r\n"


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_what_is_kept_is_the_model_of_the_file(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for _ in range(2):
        scorer = longlens.load_scorer(name, dtype="float32")
        weights = hashlib.sha256()
        for key, value in sorted(scorer.model.state_dict().items()):
            weights.update(key.encode() + value.numpy().tobytes())
        tokenizer = load_tokenizer(name)
        found.append(
            {
                "weights": weights.hexdigest(),
                "identity": scorer.info.identity,
                "before loading": identify(name, tokenizer=tokenizer),
                "tokens": scorer.encode(longlens.Document(id="a", text=TEXT)).token_ids.tolist(),
                "special": (tokenizer.all_special_tokens, tokenizer.chat_template, scorer.info.own_prefix),
                "generation": scorer.model.generation_config.to_diff_dict(),
            }
        )
        assert [part.name for part in tmp_path.rglob("model")] == ["model"]
    assert found[0] == found[1]
