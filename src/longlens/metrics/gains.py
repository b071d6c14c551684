"""What context reach reads: the gains of every document at every K, on all tokens and on key tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.alignment import merge_spans, tokens_in_runs
from longlens.metrics.corpus import Influence, influence_of, is_evaluator
from longlens.metrics.uncertainty import Doubles
from longlens.scoring.scores import Scores, ShortContext, TokenScores

MIN_CONTEXTS = 3


class DocumentGains(NamedTuple):
    """Of one document, over its tokens in S: the gains at K_1, …, K_m and the whole context, ``(m + 1,)`` nats."""

    gains: Doubles
    num_tokens: int
    num_characters: int


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What is read of one model: the sums of each document, sorted by id; `key` is None without keys."""

    name: str
    manifest: Mapping[str, Any]
    shorts: Sequence[ShortContext]
    texts: Mapping[str, str]
    all: Sequence[DocumentGains]
    key: Sequence[DocumentGains] | None
    near: tuple[int, int]
    num_short: int
    num_incomplete: int
    num_left_out: int


def rising_contexts(scores: Scores) -> list[ShortContext]:
    """K_1 < K_2 < … < K_m, each with its smallest d."""
    strides: dict[int, int] = {}
    for short in sorted(scores.short_contexts):
        strides.setdefault(short.context, short.stride)
    name = scores.manifest["model"]["name"]
    if len(strides) < MIN_CONTEXTS:
        have = ", ".join(f"K={context}" for context in strides) or "no short context"
        raise UserError(
            f"{name} was scored at {have}, and a reach needs {MIN_CONTEXTS} different K: "
            "longlens score DOCS --model M --context 64,128,256 --stride 32,64,128 -o SCORES"
        )
    for context, stride in strides.items():
        if 2 * stride > context:
            raise UserError(
                f"{name} was scored at K={context} with d={stride}, so that its tokens have {context} to "
                f"{context + stride - 1} tokens of context; a reach needs d <= K/2: score with --context {context} "
                f"--stride {max(1, context // 2)}"
            )
    return [ShortContext(context, stride) for context, stride in strides.items()]


def read_gains(scores: Scores, shorts: Sequence[ShortContext], influence: Influence) -> Gains:
    """One pass over the scores, one document in memory at a time."""
    name = str(scores.manifest["model"]["name"])
    documents: dict[str, tuple[str, DocumentGains, DocumentGains | None]] = {}
    near = total = num_short = num_left_out = 0
    num_incomplete = scores.num_incomplete
    for row in scores:
        if any(short not in row.short for short in shorts):
            num_incomplete += 1
            continue
        found, _, _ = influence_of(row, name, influence)
        logprobs = np.stack([*(row.short[short] for short in shorts), row.long_logprobs]).astype(np.float64)
        late = np.arange(logprobs.shape[1]) >= shorts[-1].context
        usable = late & np.isfinite(logprobs).all(axis=0)
        num_short += not late.any()
        num_left_out += int(np.count_nonzero(late & ~usable))
        key = None
        if found is not None:
            near += found.num_near_threshold or 0
            total += found.num_key_tokens or 0
            key = _document_gains(row, logprobs, usable & tokens_in_runs(row.char_spans, found.char_runs))
        documents[row.id] = row.text_sha256, _document_gains(row, logprobs, usable), key
    ids = sorted(documents)  # so that what a seed draws does not depend on the order of scoring
    return Gains(
        name=name,
        manifest=scores.manifest,
        shorts=shorts,
        texts={id: documents[id][0] for id in ids},
        all=[documents[id][1] for id in ids],
        key=None if influence.keys is None else [key for id in ids if (key := documents[id][2]) is not None],
        near=(near, total),
        num_short=num_short,
        num_incomplete=num_incomplete,
        num_left_out=num_left_out,
    )


def _document_gains(row: TokenScores, logprobs: Doubles, chosen: npt.NDArray[np.bool_]) -> DocumentGains:
    return DocumentGains(
        gains=(logprobs[:, chosen] - logprobs[0, chosen]).sum(axis=1),
        num_tokens=int(np.count_nonzero(chosen)),
        num_characters=int(np.diff(merge_spans(row.char_spans[chosen])).sum()),
    )


def read_reference_gains(scores: Scores, model: Gains, influence: Influence) -> Gains:
    """The reference, on the documents and at the K of the model; without keys where they are its own."""
    shorts = rising_contexts(scores)
    name = scores.manifest["model"]["name"]
    wanted, have = (",".join(str(short.context) for short in of) for of in (model.shorts, shorts))
    if have != wanted:
        raise UserError(
            f"the reference {name} was scored at K={have} and {model.name} at K={wanted}: score both with the same "
            f"contexts, such as --context {wanted}"
        )
    own = is_evaluator(scores, influence.evaluator, influence.keys)
    reference = read_gains(scores, shorts, replace(influence, keys=None) if own else influence)
    for id in sorted(model.texts.keys() | reference.texts.keys()):
        pair = model.texts.get(id), reference.texts.get(id)
        if pair[0] != pair[1]:
            unlike = "different texts in the scores of" if None not in pair else "not in both of the scores of"
            raise UserError(
                f"document {id!r} is {unlike} {model.name} and of the reference {name}: score the same documents with "
                "both, with the same --max-length and --truncate-with"
            )
    return reference
