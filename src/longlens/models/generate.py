"""Generates answers to prompts with a causal language model of transformers: greedy, one prompt at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from longlens.chat_template import template_tokens
from longlens.errors import UserError
from longlens.models.files import model_max_length
from longlens.models.forward import Forward, generation_record, greedy, running
from longlens.runs.identity import canonical_sha256
from longlens.settings.options import Loading
from longlens.tokenization import own_bos

MAX_NEW_TOKENS = 256


class Completion(NamedTuple):
    """Generated text, and whether it ended with an end token instead of at the token limit."""

    text: str
    is_complete: bool


class TransformersGenerator:
    """A `longlens.data.qa.Generator`.

    Decoding is greedy regardless of the model's own generation_config. A prompt is sent as a user message if the
    tokenizer has a chat template, else as a text to continue.

    Args:
        model: A causal language model; in eval mode while it runs.
        tokenizer: Its tokenizer.
        name: Name of the model in the rows.
        identity_sha256: Hash of the model's identity.
        max_new_tokens: Maximum number of generated tokens.

    Attributes:
        generation: The generation settings in force, and those of the model's directory that are ignored.

    Raises:
        UserError: The limit is below 1, or the model has no end token.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, identity_sha256: str, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"`max_new_tokens` is {max_new_tokens}; expected at least 1, such as {MAX_NEW_TOKENS}")
        self.model, self.tokenizer = model, tokenizer
        self.name, self.identity_sha256 = name, identity_sha256
        self._max_new_tokens = max_new_tokens
        self._forward = Forward(model)
        self._ends = _end_tokens(model, tokenizer)
        if not self._ends:
            raise UserError(
                f"{name} has no token that ends a text (EOS): use a model that has one, such as a chat model"
            )
        self._max_length = model_max_length(model.config)
        self._settings = {
            "max_new_tokens": max_new_tokens,
            "eos_token_id": sorted(self._ends),
            "pad_token_id": min(self._ends),
        }
        self.generation: Mapping[str, Any] = generation_record(model, **self._settings)

    def generate(self, prompts: Sequence[str]) -> list[Completion]:
        """Generates an answer to each prompt, without special tokens.

        Raises:
            UserError: A prompt is too long for the model, or memory is insufficient.
        """
        try:
            with running(self.model):
                return [self._answer(prompt) for prompt in prompts]
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.name} ran out of memory: use fewer `passage_tokens`, or `dtype='bfloat16'`"
            ) from error

    def _answer(self, prompt: str) -> Completion:
        ids = self._encode(prompt)
        if self._max_length is not None and len(ids) + self._max_new_tokens > self._max_length:
            raise UserError(
                f"{self.name} supports {self._max_length:,} tokens, but a prompt has {len(ids):,} plus "
                f"{self._max_new_tokens:,} to generate: use fewer `passage_tokens`"
            )
        with greedy(self.model, **self._settings) as config:
            (written,) = self._forward.generate([ids], config)
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        return Completion(text, bool(written) and written[-1] in self._ends)

    def _encode(self, prompt: str) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            return template_tokens(self.tokenizer, messages, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(prompt.removeprefix(own_bos(self.tokenizer)))["input_ids"]
        return ids


def load_generator(name: str, *, max_new_tokens: int = MAX_NEW_TOKENS, **loading: Any) -> TransformersGenerator:
    """Loads a model for generation.

    Args:
        name: Hub id, directory, ``.gguf`` file or embedded model.
        max_new_tokens: Maximum number of generated tokens.
        **loading: Fields of `longlens.settings.options.Loading`: dtype, device, device_map, attention,
            trust_remote_code, allow_pickle.

    Raises:
        UserError: The model does not exist, is not a causal language model, or cannot be loaded with these settings.
    """
    from longlens.models.load import load_transformers

    scorer = load_transformers(name, Loading(**loading))
    return TransformersGenerator(
        scorer.model,
        scorer.tokenizer,
        name=name,
        identity_sha256=canonical_sha256(scorer.info.identity.to_json()),
        max_new_tokens=max_new_tokens,
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text: those of the tokenizer and of the generation_config (chat models have several)."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}
