"""Held-out documents of a run, and their key tokens, which do not change during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from longlens.corpus import Document, read_documents, text_sha256
from longlens.errors import UserError, shown_value
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.scoring.run import score
from longlens.scoring.truncation import TokenLimit
from longlens.settings.options import Loading, Reading
from longlens.tokenization import TextEncoder
from longlens.train.recipe import Recipe
from longlens.train.settings import Evaluation

Told = Callable[[str], None]


class HeldOut(NamedTuple):
    """Documents of an evaluation during training, with their key tokens."""

    documents: list[Document]
    keys: Any
    max_length: int
    rows: Any


def prepare_evaluation(recipe: Recipe, tokenizer: Any, length: int, out: Path, told: Told) -> HeldOut:
    """Reads the held-out documents, cuts them, and has an evaluator select their key tokens, once.

    Args:
        recipe: With an evaluation.
        tokenizer: Of the model that is trained.
        length: Tokens of a row.
        out: Folder for the evaluator's scores and ``keys.jsonl``.
        told: Told of what is done.

    Raises:
        UserError: Documents or keys that cannot be read, keys of other texts, or no key token at all.
    """
    import datasets

    evaluation, encoder = recipe.evaluation, TextEncoder(tokenizer)
    assert evaluation is not None
    reading = Reading(
        text_field=evaluation.text_field or "text", split=evaluation.split or "test", samples=evaluation.samples
    )
    documents = list(read_documents(evaluation.documents, reading))
    bos = [] if encoder.bos_token_id is None else [encoder.bos_token_id]
    if evaluation.evaluator is not None:
        # A model may take no more than a row, and BOS comes before the document.
        most = evaluation.max_length or length - len(bos)
        limit = TokenLimit(
            max_tokens=most, counted_by=recipe.model, encode=encoder.encode, bos_token_id=encoder.bos_token_id
        )
        documents = [replace(document, text=limit(document.text).text) for document in documents]
        path = out / "keys.jsonl"
        is_new = not path.is_file()
        if is_new:
            _select_keys(recipe, evaluation, documents, out, told)
        keys = read_keys(path)
        if not is_new:
            _check_evaluator(keys, recipe, evaluation.evaluator.model, path)
    else:
        keys = read_keys(str(evaluation.keys))
    _check_keys_of(keys, documents)
    encoded = [encoder.encode(document.text).token_ids.tolist() for document in documents]
    encoded = [ids[1:] if bos and ids[:1] == bos else ids for ids in encoded]  # it may be in the text already
    return HeldOut(
        documents=documents,
        keys=keys,
        max_length=max([2, *(len(ids) for ids in encoded)]),
        rows=datasets.Dataset.from_dict({"input_ids": [bos + ids for ids in encoded]}),
    )


def _select_keys(recipe: Recipe, evaluation: Evaluation, documents: Sequence[Document], out: Path, told: Told) -> None:
    from longlens.models import load_scorer

    chosen = evaluation.evaluator
    assert chosen is not None
    told(f"{chosen.model} selects the key tokens of {len(documents):,} held-out documents")
    load = recipe.load
    scorer = load_scorer(chosen.model, trust_remote_code=load.trust_remote_code, allow_pickle=load.allow_pickle)
    scores = score(documents, scorer, context=chosen.context, stride=chosen.stride, out=out / "scores", shard=(0, 1))
    write_keys(out / "keys.jsonl", select_key_tokens(scores, alpha=chosen.alpha, beta=chosen.beta))


def _check_evaluator(keys: Any, recipe: Recipe, name: str, path: Path) -> None:
    """Keys of before 0.2 name no evaluator's identity, and a model of the hub need not be here any more."""
    from longlens.models import identify

    there, here = keys.settings["evaluator_sha256"], None
    if there is not None:
        here = identify(name, Loading(trust_remote_code=recipe.load.trust_remote_code))
    if here is not None and here.sha256 != there:
        raise UserError(
            f"{path} was selected by another model than {name} is now: give that model again, or another folder (-o)"
        )


def _check_keys_of(keys: Any, documents: Sequence[Document]) -> None:
    ids = set(keys.ids)
    number = 0
    for document in documents:
        if document.id not in ids:
            raise UserError(
                f"the held-out document {shown_value(document.id)} has no key tokens in the keys: give the documents "
                "that the evaluator scored, with the same ids"
            )
        found = keys.get(document.id)
        if found.text_sha256 != text_sha256(document.text):
            raise UserError(
                f"the keys of {shown_value(document.id)} are of another text: give the documents as the evaluator "
                "scored them (an evaluator that takes fewer tokens than evaluation.max_length cuts them: make that "
                "smaller)"
            )
        number += len(found.char_runs)
    if not number:
        raise UserError(
            f"none of the {len(documents)} held-out documents has a key token, so that there is no LongPPL: give "
            "longer documents, a smaller evaluator.context, or smaller alpha and beta"
        )
