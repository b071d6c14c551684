"""What a run is set up with: the model of its recipe, and held-out documents with key tokens that do not change."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from longlens.corpus import Document, read_documents, text_sha256
from longlens.errors import UserError, require, shown_value
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.scoring.run import score
from longlens.scoring.truncation import TokenLimit
from longlens.settings.options import Loading, Reading
from longlens.tokenization import TextEncoder
from longlens.train.recipe import Recipe
from longlens.train.settings import Evaluation

_LOGGER = logging.getLogger(__name__)


def plan_config(recipe: Recipe) -> Any:
    """The config that the model is loaded with, None for its own; weights are not needed.

    Raises:
        UserError: No such model, one that the method does not extend, or one without a sliding window to turn off.
    """
    from longlens import models
    from longlens.rope.model import build_rotary, extend_config

    source = models.resolve(recipe.model)
    models.check_folder(source)
    config = models.load_config(source, trust_remote_code=recipe.load.trust_remote_code)
    plain, extend, after = config, recipe.method("extend"), recipe.method("after")
    if recipe.load.full_attention:
        config = disable_sliding_window(config)
    if extend is not None:
        config, _ = build_rotary(config, extend)
    if after is not None:
        extend_config(config, after)
    return None if config is plain else config


def disable_sliding_window(config: Any) -> Any:
    """A new config in which all layers attend to everything.

    Raises:
        UserError: It has no sliding window, or in some layers alone, which belongs to how the model was made.
    """
    new = copy.deepcopy(config)
    text = new.get_text_config(decoder=True)
    is_off = not getattr(text, "sliding_window", None) or getattr(text, "use_sliding_window", True) is False
    if is_off:
        raise UserError(f"load.full_attention: {text.model_type} has no sliding window to turn off: leave it out")
    types = getattr(text, "layer_types", None) or []
    if len(set(types)) > 1:
        raise UserError(
            f"load.full_attention: {text.model_type} has a sliding window in some layers alone, beside layers that "
            "attend to everything: it is made for long context as it is, leave it out"
        )
    text.sliding_window = None
    if hasattr(text, "use_sliding_window"):
        text.use_sliding_window = False
    if types:
        text.layer_types = ["full_attention"] * len(types)
    return new


def load_for_training(recipe: Recipe, config: Any) -> Any:
    """The model, with adapters where the recipe has them.

    Args:
        recipe: Says which, and how.
        config: Of `plan_config`.

    Raises:
        UserError: It cannot be loaded, or lacks weights.
    """
    from longlens import models

    load = recipe.load
    loading = Loading(
        dtype=load.dtype,
        device="cpu",  # the trainer moves it
        attention=load.attention,
        trust_remote_code=load.trust_remote_code,
        allow_pickle=load.allow_pickle,
    )
    model, loading_info = models.load_weights(models.resolve(recipe.model), loading, config=config)
    models.check_loading_info(
        recipe.model, model, loading_info, "give a causal language model with its vocabulary head"
    )
    return model if recipe.lora is None else _add_adapters(model, recipe)


def _add_adapters(model: Any, recipe: Recipe) -> Any:
    peft: Any = require("peft", extra="train", purpose="lora")
    lora = recipe.lora
    assert lora is not None
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        modules_to_save=list(lora.modules_to_save) or None,
    )
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:  # peft: no module has such a name
        raise UserError(f"lora: {' '.join(str(error).split())[:300]}: check target_modules") from error
    if recipe.training.gradient_checkpointing:
        # Else nothing that the first checkpointed layer gets has a gradient.
        adapted.enable_input_require_grads()
    return adapted


class HeldOutDocuments(NamedTuple):
    """Documents of an evaluation during training, with their key tokens."""

    documents: list[Document]
    keys: Any
    max_length: int
    rows: Any


def prepare_evaluation(recipe: Recipe, tokenizer: Any, length: int, out: Path) -> HeldOutDocuments:
    """Reads the held-out documents, cuts them, and has an evaluator select their key tokens, once.

    Args:
        recipe: With an evaluation.
        tokenizer: Of the model that is trained.
        length: Tokens of a row.
        out: Folder for the evaluator's scores and ``keys.jsonl``.

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
            _select_keys(recipe, evaluation, documents, out)
        keys = read_keys(path)
        if not is_new:
            _check_evaluator(keys, recipe, evaluation.evaluator.model, path)
    else:
        keys = read_keys(str(evaluation.keys))
    _check_keys_of(keys, documents)
    encoded = [encoder.encode(document.text).token_ids.tolist() for document in documents]
    encoded = [ids[1:] if bos and ids[:1] == bos else ids for ids in encoded]  # it may be in the text already
    return HeldOutDocuments(
        documents=documents,
        keys=keys,
        max_length=max([2, *(len(ids) for ids in encoded)]),
        rows=datasets.Dataset.from_dict({"input_ids": [bos + ids for ids in encoded]}),
    )


def _select_keys(recipe: Recipe, evaluation: Evaluation, documents: Sequence[Document], out: Path) -> None:
    from longlens.models import load_scorer

    chosen = evaluation.evaluator
    assert chosen is not None
    _LOGGER.info(f"{chosen.model} selects the key tokens of {len(documents):,} held-out documents")
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
