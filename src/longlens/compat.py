"""The function of the published package ``longppl`` 0.3.0, computed by longlens. Does not import torch.

``from longppl.longppl import compute_longppl`` becomes ``from longlens.compat import compute_longppl``; arguments,
settings and result keys are the same. What differs, and why, is in docs/compat.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from longlens.corpus import Document
from longlens.errors import UserError
from longlens.files import replacing
from longlens.keytokens.alignment import tokens_in_runs
from longlens.keytokens.exchange import parse_published_runs
from longlens.keytokens.selection import select_key_tokens
from longlens.scoring.run import score
from longlens.scoring.scores import TokenScores
from longlens.scoring.truncation import CharacterLimit
from longlens.settings.options import check_thresholds
from longlens.windows import check_window_settings

if TYPE_CHECKING:
    from longlens.scoring.transformers import TransformersScorer

StrPath = str | os.PathLike[str]


class PublishedResult(TypedDict):
    """What `compute_longppl` returns; a value that does not exist is None.

    Keys:
        longppl: LongPPL, a NumPy float64 (which is a float).
        n_key_token: Number of key tokens of the evaluated model that have a score; None, as in the package, if there
            are none.
        ppl: Perplexity over the text's n - 1 scored tokens.
        n_token: n, the number of tokens of the text.
    """

    longppl: float | None
    n_key_token: int | None
    ppl: float | None
    n_token: int


def compute_longppl(
    text: str,
    model: Any,
    evaluator_model: Any,
    tokenizer: Any = None,
    evaluator_tokenizer: Any = None,
    save_path: StrPath | None = None,
    trunc_len: int = 4096,
    sliding_window: int = 1024,
    alpha: float = 2,
    beta: float = -2,
) -> PublishedResult:
    """LongPPL of one text, with the signature, settings and result keys of ``longppl`` 0.3.0.

    With K = ``trunc_len``, d = ``sliding_window``, ``x = tokenizer(text, add_special_tokens=False)`` of n tokens and
    ``y = evaluator_tokenizer(text)``, whose special tokens are part of y and counted in K::

        long[i]  = log P(y[i] | y[:i])                                  evaluator, natural logarithms
        short[i] = log P(y[i] | y[j d : i])    j = (i - K) // d, i >= K
        runs     = characters of { y[i] : i >= K, long[i] - short[i] > alpha, long[i] > beta }, adjacent ones merged
        loss[i]  = -log P(x[i] | x[:i])        i >= 1                   evaluated model, without BOS
        ppl      = exp(mean(loss[1:]))
        longppl  = exp(mean(loss[i] for i >= 1 where the characters of x[i] lie inside one of runs))

    Same as the package: these formulas, spans from the tokenizer's own ``offset_mapping``, `ppl` over n - 1 losses with
    an `n_token` of n, None for `longppl` and `n_key_token` without key tokens, no truncation of the text, and the
    format of `save_path`.

    Different from the package:

    - Log-probabilities are computed in fp32 for every model dtype; the package uses the model's dtype.
    - Token 0 has no loss and is never key; in the package it has the last token's loss (index -1).
    - A token without characters is never key; in the package it is key if its position lies inside a run or at either
    end of one.
    - Overlapping runs (a character split into several tokens) are merged; in the package a token over both is not key.
    - A last window of one token is scored; in the package ``(len(y) - K) % d == 1`` raises TypeError, as does d = 1.
    - Names and paths are loaded, as the package documents; there they raise AttributeError.
    - Tokenizers without offsets get exact spans; in the package spans drift with every character of several tokens, or
      the missing offsets raise KeyError (transformers 5).
    - Dynamic NTK is reset for every window; in the package windows keep the frequencies of the whole text.
    - `save_path` is parsed and must fit the text; the package runs ``eval`` on its content.
    - Nothing is printed, and `ppl` of a text of one token is None instead of NaN.

    Args:
        text: The text, scored without truncation.
        model: The evaluated model: a transformers model, or its Hub id, directory, ``.gguf`` file or embedded name.
        evaluator_model: The evaluator, in the same forms; None reads the key tokens from `save_path`.
        tokenizer: Tokenizer of `model` if that is an object; otherwise None, because it is loaded with the model.
        evaluator_tokenizer: Tokenizer of `evaluator_model`, in the same way.
        save_path: File of the evaluator's key tokens: written atomically with an evaluator (an existing file is
            replaced), read without.
        trunc_len: K, tokens of the short context.
        sliding_window: d, tokens that share a short context.
        alpha: Threshold of the long-short difference, nats.
        beta: Threshold of the long-context likelihood, nats.

    Raises:
        UserError: A model object is passed without a tokenizer, a model name with one, neither evaluator nor
            `save_path`, invalid settings, or a `save_path` that cannot be written or read, or belongs to another text.

    Source: paper, section 3.1 and appendix A.1; package ``longppl`` 0.3.0, ``longppl.py``.
    """
    check_window_settings(trunc_len, sliding_window)
    check_thresholds(alpha, beta)
    _check_pair(model, tokenizer, "model", "tokenizer")
    if evaluator_model is None:
        runs = _read_runs(save_path, text)
        return _result(_score(text, _make_scorer(model, tokenizer), trunc_len), runs)
    _check_pair(evaluator_model, evaluator_tokenizer, "evaluator_model", "evaluator_tokenizer")
    _check_folder(save_path)
    evaluator = _make_scorer(evaluator_model, evaluator_tokenizer)
    scores = score(
        [Document(id="text", text=text)],
        evaluator,
        context=trunc_len,
        stride=sliding_window,
        bos="published",
        limit=_no_limit(text, trunc_len),
        extrapolate=True,
    )
    runs = select_key_tokens(scores, alpha=alpha, beta=beta)[0].char_runs
    if save_path is not None:
        _write_runs(Path(save_path), runs)
    is_same = model == evaluator_model if _is_name(model) else model is evaluator_model
    if is_same and tokenizer is evaluator_tokenizer:
        # Without special tokens before the text, evaluator and model have the same long context.
        return _result(_score(text, evaluator, trunc_len) if evaluator.info.own_prefix else scores[0], runs)
    del evaluator  # so that a model loaded by name is freed before the next one is loaded
    return _result(_score(text, _make_scorer(model, tokenizer), trunc_len), runs)


def _score(text: str, scorer: TransformersScorer, trunc_len: int) -> TokenScores:
    """The evaluated model's scores: no BOS, no short context."""
    limit = _no_limit(text, trunc_len)
    document = Document(id="text", text=text)
    return score([document], scorer, context=None, bos="published", limit=limit, extrapolate=True)[0]


def _no_limit(text: str, trunc_len: int) -> CharacterLimit:
    # At least K + 1: the short context has to be below the limit, even if the text is shorter than both.
    return CharacterLimit(max_characters=max(len(text), trunc_len) + 1)


def _result(row: TokenScores, runs: npt.NDArray[np.int64]) -> PublishedResult:
    losses = -row.long_logprobs.astype(np.float64)
    key = tokens_in_runs(row.char_spans, runs)
    key[:1] = False  # nothing precedes token 0
    number = int(np.count_nonzero(key))
    return {
        "longppl": np.exp(losses[key].mean()) if number else None,
        "n_key_token": number or None,
        "ppl": np.exp(losses[1:].mean()) if len(losses) > 1 else None,
        "n_token": len(losses),
    }


def _is_name(model: Any) -> bool:
    return isinstance(model, str | os.PathLike)


def _check_pair(model: Any, tokenizer: Any, of_model: str, of_tokenizer: str) -> None:
    if _is_name(model) and tokenizer is not None:
        raise UserError(
            f"{of_tokenizer} was passed together with {of_model}={os.fspath(model)!r}, which is loaded with its own: "
            f"leave {of_tokenizer} out, or pass the model as an object"
        )
    if not _is_name(model) and tokenizer is None:
        raise UserError(
            f"{of_model} is a {type(model).__name__} without a tokenizer: pass its tokenizer as {of_tokenizer}, or "
            f"the name or path of the model as {of_model}"
        )


def _make_scorer(model: Any, tokenizer: Any) -> TransformersScorer:
    """A scorer with the tokenizer's own offsets, or exact spans where it has none."""
    from longlens.models import load_transformers
    from longlens.scoring.transformers import TransformersScorer

    if _is_name(model):
        loaded = load_transformers(os.fspath(model))
        model, tokenizer = loaded.model, loaded.tokenizer
    spans = "tokenizer" if getattr(tokenizer, "is_fast", False) else "exact"
    # Nothing is stored, so the weights are not hashed, which would take minutes for a large model.
    return TransformersScorer(model, tokenizer, spans=spans, weights_sha256="not computed")


def _check_folder(save_path: StrPath | None) -> None:
    if save_path is not None and not Path(save_path).parent.is_dir():
        raise UserError(f"{Path(save_path).parent} is not a folder: create it, then write {Path(save_path).name} there")


def _write_runs(path: Path, runs: npt.NDArray[np.int64]) -> None:
    with replacing(path) as file:
        file.write(";".join(f"[{start}, {end}]" for start, end in runs.tolist()))


def _read_runs(save_path: StrPath | None, text: str) -> npt.NDArray[np.int64]:
    if save_path is None:
        raise UserError("neither an `evaluator_model` nor a `save_path` with key tokens was passed: pass one of them")
    path = Path(save_path)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): pass this `save_path` with an `evaluator_model` first"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, so it cannot contain key tokens: {error.reason}") from error
    return parse_published_runs(path, content, len(text))
