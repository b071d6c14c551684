"""Converts samples to exact model inputs: applies the chat template, handles BOS, and truncates long prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from longlens.bench.engine import ModelRequest, PromptLimit, check_border, prompt_tokens
from longlens.chat_template import render
from longlens.errors import UserError
from longlens.runs.identity import canonical_sha256
from longlens.tasks.base import Sample, Task
from longlens.tasks.fitting import Draft, TokenCounter
from longlens.tasks.truncation import check_policy, truncate
from longlens.tokenization import own_bos

TEMPLATES = ("auto", "none", "chat", "chat-prefix", "prefill")
"""How a sample becomes a text. ``none``: prompt and answer prefix, unchanged. ``chat``: the prompt is a user
message. ``chat-prefix``: the user message also contains the answer prefix, at its end. ``prefill``: the prompt is a
user message, and the reply starts with the answer prefix. ``auto``: the benchmark's own choice for chat models if the
tokenizer has a chat template, else ``none``."""
MODES = ("generate", "teacher-forced", "choice")
"""``generate``: the model generates an answer. ``teacher-forced``: would greedy decoding generate the right answer?
``choice``: is the right answer more likely than the wrong answers?"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The prompt of a sample.

    Attributes:
        sample: The sample, after truncation if its text was too long.
        text: The exact text; for a chat engine, the messages as JSON.
        num_tokens: Number of tokens of the text.
        requests: One request, or one per choice, the right answer first.
        skipped: Whether the sample is skipped because it is too long; then there are no requests.
        is_messages: Whether the text is messages as JSON.
    """

    sample: Sample
    text: str = ""
    num_tokens: int = 0
    requests: tuple[ModelRequest, ...] = ()
    skipped: bool = False
    is_messages: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the exact text and all continuations."""
        return canonical_sha256([self.text, *(request.continuation or "" for request in self.requests)])


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSettings:
    """How samples are presented to a model. With the engine, these settings identify a run.

    Attributes:
        mode: One of `MODES`.
        template: One of `TEMPLATES`.
        template_arguments: Additional arguments of the tokenizer's chat template, such as ``enable_thinking``.
        overlong: Truncation policy, one of `longlens.tasks.truncation.POLICIES`; each task's own by default.
        think_tokens: Additional tokens for reasoning before the answer.
    """

    mode: str = "generate"
    template: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    overlong: str | None = None
    think_tokens: int = 0

    def __post_init__(self) -> None:
        """Validates the values."""
        for name, value, known in (("mode", self.mode, MODES), ("template", self.template, TEMPLATES)):
            if value not in known:
                raise UserError(f"`{name}` is {value!r}; expected one of {', '.join(known)}")
        if self.think_tokens < 0:
            raise UserError(f"`think_tokens` is {self.think_tokens}; expected 0 or more")
        if self.overlong is not None:
            check_policy(self.overlong)


class PromptBuilder:
    """Builds the exact text of samples.

    Args:
        settings: How samples are presented to the model.
        limit: Tokenizer, and maximum tokens of prompt and answer.
        is_chat: Whether the engine accepts messages.

    Raises:
        UserError: The model or backend does not support these settings.
    """

    def __init__(self, settings: PromptSettings, limit: PromptLimit, *, is_chat: bool = False) -> None:
        self.settings, self.is_chat = settings, is_chat
        self.tokenizer, self.max_length = limit
        mode, template = settings.mode, settings.template
        self._has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if template not in ("auto", "none") and not (is_chat or self._has_template):
            raise UserError(f"`template` is {template!r}, and this tokenizer has no chat template: use `template=none`")
        if is_chat and template in ("none", "prefill"):
            raise UserError(f"`template` is {template!r}, and this backend accepts only messages: use chat-prefix")
        if is_chat and mode != "generate":
            raise UserError(f"`mode={mode}` needs log-probabilities, which chat completions do not return")

    def template_of(self, task: Task) -> str:
        """Returns the template of a task's prompts."""
        if self.settings.template != "auto":
            return self.settings.template
        if self.is_chat:
            return "chat" if task.template == "chat" else "chat-prefix"
        return task.template if self._has_template else "none"

    def reserve(self, task: Task) -> int:
        """Returns the number of tokens that the template adds to a prompt."""
        if self.is_chat or self.template_of(task) == "none":
            return 0
        plain = Sample(id="", prompt="a", answer_prefix="", answers=[], answer_spans=[], length=0)
        around = len(prompt_tokens(self.tokenizer, self.text(plain, self.template_of(task))))
        return around - len(prompt_tokens(self.tokenizer, "a"))

    def text(self, sample: Sample, template: str) -> str:
        """Returns the exact text of a sample, without the BOS that the tokenizer itself adds."""
        prefix, bos = sample.answer_prefix, "" if self.is_chat else own_bos(self.tokenizer)
        if template == "none":
            return (sample.prompt + prefix).removeprefix(bos)
        messages = [{"role": "user", "content": sample.prompt + (prefix if template == "chat-prefix" else "")}]
        if self.is_chat:
            return json.dumps(messages, ensure_ascii=False)
        arguments = self.settings.template_arguments
        opened = render(self.tokenizer, messages, add_generation_prompt=True, arguments=arguments).text
        return opened.removeprefix(bos) + (prefix if template == "prefill" else "")

    def build(self, task: Task, sample: Sample, *, own_tokens: bool = False) -> Prompt:
        """Builds the prompt of a sample, truncated if the policy allows it.

        Args:
            task: Task of the sample.
            sample: The sample.
            own_tokens: Whether this tokenizer counted the length of the sample.

        Raises:
            UserError: The prompt is too long and the policy is ``error``, or the task does not support the mode.
        """
        template = self.template_of(task)
        policy = task.overlong if self.settings.overlong is None else self.settings.overlong
        answer_tokens = task.max_new_tokens + self.settings.think_tokens
        text = self.text(sample, template)
        if own_tokens and text == sample.prompt + sample.answer_prefix:
            counted = sample.length - task.max_new_tokens
        else:
            counted = len(prompt_tokens(self.tokenizer, text))
        is_skipped = False
        if counted + answer_tokens > self.max_length:
            if policy == "error":
                raise UserError(
                    f"{sample.id} has {counted:,} tokens plus {answer_tokens:,} for the answer, but the model "
                    f"supports {self.max_length:,}: request shorter samples, or set `overlong`"
                )
            whole, budget, is_skipped = sample, self.max_length - answer_tokens, policy == "skip"
            around = max(0, counted - len(prompt_tokens(self.tokenizer, sample.prompt + sample.answer_prefix)))
            while counted > budget and not is_skipped:
                sample = self._cut(whole, budget - around, policy, task.omission)
                text = self.text(sample, template)
                counted = len(prompt_tokens(self.tokenizer, text))
                around += 1  # the template's text next to the truncation point may be tokenized differently
        requests = () if is_skipped else self._requests(task, sample, text, counted)
        return Prompt(
            sample=sample,
            text=text,
            num_tokens=counted,
            requests=requests,
            skipped=is_skipped,
            is_messages=self.is_chat,
        )

    def _cut(self, sample: Sample, budget: int, policy: str, omission: str) -> Sample:
        names = ("prompt", "answer_prefix", "answers", "answer_spans", "context_span", "metadata")
        draft = Draft(**{name: getattr(sample, name) for name in names})
        cut, _ = truncate(draft, TokenCounter(self.tokenizer), budget, policy, omission)
        return replace(
            sample,
            prompt=cut.prompt,
            answer_spans=list(cut.answer_spans),
            context_span=cut.context_span,
            metadata=dict(cut.metadata),
        )

    def _requests(self, task: Task, sample: Sample, prompt: str, counted: int) -> tuple[ModelRequest, ...]:
        mode, think_tokens = self.settings.mode, self.settings.think_tokens
        if mode == "generate":
            # A stop sequence may occur in the reasoning; then the answer is truncated at it afterwards.
            stop = () if think_tokens else task.stop
            return (ModelRequest(sample.id, prompt, None, task.max_new_tokens + think_tokens, stop, counted),)
        target = task.target(sample)
        if target is not None and self.template_of(task) in ("chat", "chat-prefix"):
            target = target.lstrip()  # a chat reply starts with the target, without a preceding space
        if not target:
            raise UserError(f"{task.name} has no single right answer to score: use `mode=generate`")
        wrong: Sequence[str] = ()
        if mode == "choice":
            wrong = sample.metadata.get("distractors", ())
            if not wrong or sample.answers[0] not in target:
                raise UserError(f"{task.name} has no wrong answers to choose from: use `mode=generate`")
        texts = [target, *(target.replace(sample.answers[0], text) for text in wrong)]
        before = prompt_tokens(self.tokenizer, prompt)
        sizes = [check_border(self.tokenizer, sample.id, prompt, before, text) for text in texts]
        return tuple(
            ModelRequest(f"{sample.id}#{number}", prompt, text, num_tokens=size)
            for number, (text, size) in enumerate(zip(texts, sizes, strict=True))
        )
