"""Decides with a transformers model of natural language inference whether a text entails a claim.

Two kinds of models are supported: sequence classification with a label ``entailment``, and sequence-to-sequence models
trained like google/t5_xxl_true_nli_mixture (Honovich et al., TRUE, arXiv 2204.04991), with which HELMET and ALCE score
citations.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from longlens.errors import LonglensWarning, UserError, library_errors
from longlens.models.checkpoint import Checkpoint, check_loading_info
from longlens.models.files import hash_files, load_tokenizer
from longlens.models.forward import device_of, dynamic_modules, generation_record, greedy, reset_rope, running
from longlens.models.resolve import check_folder, resolve
from longlens.settings.options import Loading
from longlens.tokenization import TextEncoder

HELMET_MODEL = "google/t5_xxl_true_nli_mixture"
"""HELMET's model (eval_alce.py, AUTOAIS_MODEL): 11 billion parameters."""
# eval_alce.py, _run_nli_autoais: the prompt, its generate(…, max_new_tokens=10), and the reply for entailment
PROMPT = "premise: {} hypothesis: {}"
MAX_NEW_TOKENS = 10
ENTAILED, NOT_ENTAILED = "1", "0"
LABEL = "entailment"


class EntailmentModel(ABC):
    """``entails(premise, claim)``: whether the claim follows from the premise.

    Args:
        model: A transformers model, in eval mode.
        tokenizer: Its tokenizer.
        name: Name of the model, for messages.
        weights_sha256: Hash that identifies its weights.
        max_tokens: Maximum number of tokens of premise and claim together with special tokens; a longer premise is
            truncated at its end. By default nothing is truncated, as in HELMET.

    Attributes:
        generation: As in `longlens.models.generate.TransformersGenerator`; None if the model generates nothing.

    Raises:
        UserError: ``max_tokens`` is below 1, or the model is of the wrong kind.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, weights_sha256: str, max_tokens: int | None = None
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"`max_tokens` is {max_tokens}; expected at least 1, or None for no truncation")
        self.model, self.tokenizer = model, tokenizer
        self.name, self.weights_sha256 = name, weights_sha256
        self._max_tokens = max_tokens
        self._positions, self._dynamic = _positions(model), dynamic_modules(model)
        self._encoder = TextEncoder(tokenizer)
        self.generation: Mapping[str, Any] | None = None

    def __call__(self, premise: str, claim: str) -> bool:
        """Runs the model once.

        Raises:
            UserError: The text is longer than the model supports and must not be truncated, the claim alone is too
                long, or memory is insufficient.
        """
        inputs = self._fitted(premise, claim).to(device_of(self.model))
        try:
            with (
                running(self.model),
                library_errors(
                    f"{self.name} cannot be run on {inputs['input_ids'].shape[1]:,} tokens",
                    "check the model's config.json and its weights",
                    passing=(torch.OutOfMemoryError,),
                ),
            ):
                reset_rope(self._dynamic)
                return self._decide(inputs)
        except torch.OutOfMemoryError as error:
            raise UserError(f"{self.name} ran out of memory: set `max_tokens`, or `dtype='bfloat16'`") from error

    @abstractmethod
    def _encode(self, premise: str, claim: str) -> Any:
        """Model inputs: tensors of one row."""

    @abstractmethod
    def _decide(self, inputs: Any) -> bool:
        """Whether the model's output means entailment."""

    def _fitted(self, premise: str, claim: str) -> Any:
        inputs = self._encode(premise, claim)
        limits = [limit for limit in (self._max_tokens, self._positions) if limit is not None]
        count = inputs["input_ids"].shape[1]
        if not limits or count <= min(limits):
            return inputs
        limit = min(limits)
        if self._max_tokens is None:
            raise UserError(
                f"{self.name} accepts {limit:,} tokens, but premise and claim have {count:,}: pass "
                f"`max_tokens={limit}` to truncate the premise at its end (HELMET does not), or use a model for "
                "longer texts"
            )
        ends = self._encoder.encode(premise).char_spans[:, 0]
        removed = count - limit
        while removed <= len(ends):
            inputs = self._encode(premise[: ends[len(ends) - removed]], claim)
            over = inputs["input_ids"].shape[1] - limit
            if over <= 0:
                return inputs
            removed += over  # a cut can change the tokenization of the text around it
        raise UserError(f"{self.name}: a claim does not fit into {limit:,} tokens: pass a larger `max_tokens`, or None")


class EntailmentClassifier(EntailmentModel):
    """Sequence classification: the claim follows if the label ``entailment`` (ignoring case) is the most likely."""

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        labels: dict[int, str] = {index: str(label) for index, label in model.config.id2label.items()}
        wanted = [index for index, label in labels.items() if label.lower() == LABEL]
        if len(wanted) != 1 or len(labels) < 2:
            raise UserError(
                f"{self.name} has the labels {', '.join(labels.values())}; expected one label {LABEL!r} among others, "
                "as in NLI models: use such a model, or set the labels in its config.json"
            )
        self._wanted = wanted[0]

    def _encode(self, premise: str, claim: str) -> Any:
        return self.tokenizer(premise, claim, return_tensors="pt", verbose=False)

    def _decide(self, inputs: Any) -> bool:
        return int(self.model(**inputs).logits[0].argmax()) == self._wanted


class EntailmentWriter(EntailmentModel):
    """Sequence-to-sequence: the claim follows if the model generates ``1`` after premise and hypothesis."""

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.generation = generation_record(model, max_new_tokens=MAX_NEW_TOKENS)

    def _encode(self, premise: str, claim: str) -> Any:
        return self.tokenizer(PROMPT.format(premise, claim), return_tensors="pt", verbose=False)

    def _decide(self, inputs: Any) -> bool:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with greedy(self.model, max_new_tokens=MAX_NEW_TOKENS) as config:
            written = self.model.generate(ids, attention_mask=mask, generation_config=config)[0]
        reply: str = self.tokenizer.decode(written, skip_special_tokens=True)
        if reply not in (ENTAILED, NOT_ENTAILED):
            warnings.warn(
                f"{self.name} generates something other than {ENTAILED} and {NOT_ENTAILED}, which counts as not "
                f"entailed, as in HELMET: check that it was trained like {HELMET_MODEL}",
                LonglensWarning,
                stacklevel=3,
            )
        return reply == ENTAILED


def load_entails(name: str, *, max_tokens: int | None = None, **loading: Any) -> EntailmentModel:
    """Loads a model of natural language inference for `longlens.tasks.base.CitedTask`.

    Args:
        name: Hub id or local directory; HELMET's is `HELMET_MODEL`, in bfloat16 about 22 GB.
        max_tokens: Truncates a longer premise at its end; None truncates nothing, as in HELMET.
        **loading: dtype, device, device_map, attention, trust_remote_code, allow_pickle, see
            `longlens.settings.options.Loading`.

    Raises:
        UserError: The model does not exist, is of neither kind, has no label ``entailment``, or cannot be loaded with
            these settings.
    """
    import transformers

    source = resolve(name)
    if source.gguf is not None:
        raise UserError(f"{name} is a .gguf file: pass the directory or Hub id of an NLI model")
    check_folder(source)
    settings = Loading(**loading)
    checkpoint = Checkpoint(source, settings)
    kind, auto = _kind(name, checkpoint.config)
    tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    model, loading_info = checkpoint.load(getattr(transformers, auto).from_pretrained)
    check_loading_info(name, model, loading_info, "use a model that is trained for entailment")
    return kind(model, tokenizer, name=name, weights_sha256=hash_files(source), max_tokens=max_tokens)


_KINDS: dict[str, tuple[type[EntailmentModel], str]] = {
    "ForSequenceClassification": (EntailmentClassifier, "AutoModelForSequenceClassification"),
    "ForConditionalGeneration": (EntailmentWriter, "AutoModelForSeq2SeqLM"),
}


def _kind(name: str, config: Any) -> tuple[type[EntailmentModel], str]:
    architectures = config.architectures or ()
    for ending, kind in _KINDS.items():
        if any(architecture.endswith(ending) for architecture in architectures):
            return kind
    raise UserError(
        f"{name} is {' or '.join(architectures) or 'of an unknown architecture'}; expected a model for sequence "
        f"classification with a label {LABEL!r}, or one such as {HELMET_MODEL}"
    )


def _positions(model: Any) -> int | None:
    """Number of positions of the model; None if it is not bounded, as in T5."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
        if limit is not None and is_table and module.padding_idx is not None:
            return limit - int(module.padding_idx) - 1  # RoBERTa and similar models count positions from there
    return limit
