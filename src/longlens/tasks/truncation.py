"""Truncates or rejects prompts that are too long.

Benchmarks differ, and their numbers are comparable only under their own policy: LongBench removes the middle of the
whole prompt, HELMET removes the end of the long text and keeps instructions and question, and lm-evaluation-harness
removes the beginning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from longlens.errors import UserError
from longlens.tasks.fitting import Draft, TokenCounter

if TYPE_CHECKING:
    from longlens.tokenization import Ints

POLICIES = ("error", "skip", "middle", "left", "context-only")
"""``error``: reject the sample. ``skip``: omit it, without counting it as wrong. ``middle``: keep the first and last
half of the tokens (LongBench pred.py). ``left``: keep the last tokens (lm-evaluation-harness). ``context-only``: remove
the end of the long text and keep the rest (HELMET model_utils.py)."""


class Piece(NamedTuple):
    """Characters ``[start, end)`` of a prompt to remove, and the text that replaces them."""

    start: int
    end: int
    instead: str


def check_policy(policy: str) -> str:
    """Returns the policy after checking that it exists.

    Raises:
        UserError: It is not one of `POLICIES`.
    """
    if policy not in POLICIES:
        raise UserError(f"`overlong` is {policy!r}; expected one of {', '.join(POLICIES)}")
    return policy


def truncate(draft: Draft, tokens: TokenCounter, budget: int, policy: str, omission: str = "") -> tuple[Draft, int]:
    """Removes a piece of a draft's prompt so that the draft fits.

    With n the tokens of prompt and answer prefix, and spans those of the prompt's tokens, the piece is the smallest
    that makes n at most the budget: tokens ``[h, -h)`` for ``middle``, the first ones for ``left``, and the last ones
    of the context for ``context-only``. Removing a piece can change the tokenization of the text around it; in this
    case further tokens are removed.

    Args:
        draft: The draft, which is too long.
        tokens: Token counter.
        budget: Maximum tokens of prompt and answer prefix.
        policy: ``middle``, ``left`` or ``context-only``.
        omission: Text with which ``context-only`` replaces the removed piece, unless the draft's metadata contains one.

    Returns:
        The truncated draft, whose metadata records under ``cut`` the policy and the number of characters and tokens
        removed; and its number of tokens.

    Raises:
        UserError: The draft has no context to truncate, or the part that must be kept does not fit.
    """
    omission = str(draft.metadata.get("omission", omission))
    whole = tokens.count(draft.prompt + draft.answer_prefix)
    spans = tokens.spans(draft.prompt)
    removed = whole - budget
    while True:
        piece = _piece(draft, spans, removed, policy, omission)
        if piece is None:
            raise UserError(
                f"a prompt of {whole:,} tokens cannot be truncated to {budget:,} with `overlong={policy}`: the rest "
                "of the prompt is longer than that: use a larger `length`, or `overlong=skip`"
            )
        cut = _without(draft, piece)
        counted = tokens.count(cut.prompt + cut.answer_prefix)
        if counted <= budget:
            note = {"policy": policy, "characters": piece.end - piece.start, "tokens": whole - counted}
            return replace(cut, metadata={**draft.metadata, "cut": note}), counted
        removed += max(1, counted - budget)


def _piece(draft: Draft, spans: Ints, removed: int, policy: str, omission: str) -> Piece | None:
    if policy == "context-only":
        if draft.context_span is None:
            raise UserError(
                "`overlong=context-only` needs a task whose prompt has a separate long text: use `overlong=middle`"
            )
        inside = ((spans[:, 0] >= draft.context_span[0]) & (spans[:, 1] <= draft.context_span[1])).nonzero()[0]
        if len(inside) < removed:
            return None
        return Piece(int(spans[inside[-removed], 0]), draft.context_span[1], omission)
    kept = len(spans) - removed
    if kept < 2:
        return None
    if policy == "left":
        return Piece(0, int(spans[removed, 0]), "")
    # pred.py, get_pred: "half = int(max_length/2)", then tokens [:half] and [-half:]
    half = kept // 2
    return Piece(int(spans[half, 0]), int(spans[len(spans) - half, 0]), "")


def _without(draft: Draft, piece: Piece) -> Draft:
    shift = len(piece.instead) - (piece.end - piece.start)

    def moved(span: tuple[int, int]) -> tuple[int, int] | None:
        if span[1] <= piece.start:
            return span
        return (span[0] + shift, span[1] + shift) if span[0] >= piece.end else None

    context = draft.context_span
    if context is not None:
        ends = [_place(place, piece, shift) for place in context]
        context = (ends[0], ends[1])
    return replace(
        draft,
        prompt=draft.prompt[: piece.start] + piece.instead + draft.prompt[piece.end :],
        answer_spans=[span for old in draft.answer_spans if (span := moved(old)) is not None],
        context_span=context,
    )


def _place(place: int, piece: Piece, shift: int) -> int:
    """The new position of a character; a removed character is mapped to the cut."""
    if place <= piece.start:
        return place
    return place + shift if place >= piece.end else piece.start + len(piece.instead)
