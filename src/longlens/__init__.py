"""longlens measures what long context does for a language model.

``import longlens`` does not import torch; functions that run a model import it when they are called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longlens.corpus import Document as Document
    from longlens.corpus import read_documents as read_documents
    from longlens.errors import LonglensWarning as LonglensWarning
    from longlens.errors import UserError as UserError
    from longlens.keytokens.exchange import read_keys as read_keys
    from longlens.keytokens.exchange import write_keys as write_keys
    from longlens.keytokens.selection import select_key_tokens as select_key_tokens
    from longlens.metrics.comparison import compare as compare
    from longlens.metrics.context_reach import reach as reach
    from longlens.metrics.cost import cost as cost
    from longlens.metrics.divergence import divergence as divergence
    from longlens.metrics.longppl import perplexity as perplexity
    from longlens.metrics.score_distributions import distributions as distributions
    from longlens.models import load_scorer as load_scorer
    from longlens.report.html import write_report as write_report
    from longlens.scoring.reader import open_scores as open_scores
    from longlens.scoring.run import score as score
    from longlens.study.correlate import correlate as correlate

_HOME = {
    "Document": "corpus",
    "LonglensWarning": "errors",
    "UserError": "errors",
    "compare": "metrics.comparison",
    "correlate": "study.correlate",
    "cost": "metrics.cost",
    "divergence": "metrics.divergence",
    "distributions": "metrics.score_distributions",
    "load_scorer": "models",
    "open_scores": "scoring.reader",
    "perplexity": "metrics.longppl",
    "reach": "metrics.context_reach",
    "read_documents": "corpus",
    "read_keys": "keytokens.exchange",
    "score": "scoring.run",
    "select_key_tokens": "keytokens.selection",
    "write_keys": "keytokens.exchange",
    "write_report": "report.html",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


if "transformers.modeling_rope_utils" in sys.modules:
    # Then torch is imported already, and plain transformers can report which library loads EABF and CLEX folders.
    import_module("longlens.rope.model")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'longlens' has no attribute {name!r}")
    return getattr(import_module(f"longlens.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
