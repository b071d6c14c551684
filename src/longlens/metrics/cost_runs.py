"""Which runs `longlens.metrics.cost` can compare, and what is to be known where more differs than a policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longlens.errors import UserError, shown
from longlens.runs.identity import two_models
from longlens.scoring.scores import Scores, TokenScores, feeding, identity_of

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def check_settings(full: Scores, policies: Sequence[Scores]) -> None:
    """Rejects runs that differ in more than a policy.

    Raises:
        UserError: The full run has a policy itself, or another one puts BOS elsewhere.
    """
    name, cache = full.manifest["model"]["name"], full.manifest["model"].get("cache")
    if cache is not None:
        raise UserError(
            f"the full run, {full.folder or name}, was scored under {cache}: name the uncompressed run first, which "
            "`cache=full` makes"
        )
    bos = full.manifest["settings"].get("bos")
    for scores in policies:
        other = scores.manifest["settings"].get("bos")
        if None not in (bos, other) and bos != other:
            raise UserError(
                f"{scores.folder or scores.name} was scored with `bos={other}` and {full.folder or name} with "
                f"`bos={bos}`, which changes scores by itself: score both with one"
            )


def fed_alike(policies: Sequence[Scores]) -> str | None:
    """How all the policies were fed, such as ``256`` or ``prefill+512``; None where none has a cache policy.

    Raises:
        UserError: They differ, so that chunks and not policies would be compared.
    """
    fed = {feeding(scores) for scores in policies} - {""}
    if len(fed) > 1:
        raise UserError(
            f"the runs used different chunks ({', '.join(sorted(fed))}), which changes scores by itself: score "
            "all policies with the same, such as `cache_chunk=256`"
        )
    return next(iter(fed), None)


def check_same(row: TokenScores, other: TokenScores | None, scores: Scores) -> None:
    """Rejects a run in which a document is missing, or is another one.

    Raises:
        UserError: It has no such document, or one of another text or other tokens.
    """
    name = scores.manifest["model"]["name"]
    if other is None:
        raise UserError(f"document {shown(row.id)} is not in {scores.folder or name}: score the same documents there")
    if other.text_sha256 != row.text_sha256:
        raise UserError(
            f"document {shown(row.id)} has a different text in {scores.folder or name}: score both with the same "
            "`max_length` and `truncate_with`"
        )
    if not np.array_equal(other.token_ids, row.token_ids):
        raise UserError(
            f"document {shown(row.id)} has different tokens in {scores.folder or name}: the cost compares variants of "
            "one model (cache policy, quantization); to compare two models use longlens compare"
        )


def warnings_of_runs(full: Scores, policies: Sequence[Scores], names: Sequence[str]) -> list[str]:
    """What is to be known of runs that are not of the same model and documents but for a policy."""
    notes, ids, of_full = [], set(full.ids), identity_of(full)
    if full.num_incomplete:
        notes.append(
            f"{full.num_incomplete} documents of {names[0]} lack the short context and are left out: run the same "
            "longlens score command again, it resumes"
        )
    for scores, name in zip(policies, names[1:], strict=True):
        more = len(set(scores.ids) - ids)
        if more:
            notes.append(f"{more} documents of {name} are not in {names[0]} and are left out")
        own = identity_of(scores)
        configs = [{} if one.config is None else one.config for one in (of_full, own)]
        sizes = [
            key for key in _SIZES if all(key in config for config in configs) and len({c[key] for c in configs}) > 1
        ]
        if sizes:
            notes.append(
                f"{name} is another model than {names[0]} ({sizes[0]} is {configs[1][sizes[0]]} and not "
                f"{configs[0][sizes[0]]}), so that its cost is not that of a compression"
            )
        elif own.cache is not None and two_models(full.manifest["model"], scores.manifest["model"]):
            notes.append(f"{name} has other weights than {names[0]}: not all of its cost is that of its cache policy")
    return notes


def warnings_of_tokens(num_whole: int, num_documents: int, num_impossible: int, chunk: int | None) -> list[str]:
    """What is to be known of documents and tokens that a policy says nothing of."""
    notes = []
    if num_whole:
        notes.append(
            f"nothing was compressed in {num_whole} of {num_documents} documents, which are not longer than the "
            f"{chunk:,} tokens that were fed at once: leave them out, or use a smaller chunk"
        )
    if num_impossible:
        notes.append(
            f"{num_impossible} tokens have probability 0 (a log-probability of -inf) in one of the runs and are left "
            "out"
        )
    return notes
