"""What is done with a prompt that is longer than it may be.

Benchmarks differ, and their numbers hold only under their own policy: LongBench cuts the middle out of the whole
prompt, HELMET cuts the end off the long text and keeps instructions and question, lm-evaluation-harness drops what
comes first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from longlens.errors import UserError
from longlens.tasks.fitting import Draft, TokenCounter

if TYPE_CHECKING:
    from longlens.tokenization import Ints

POLICIES = ("error", "skip", "middle", "left", "context-only")
"""``error``: rejected. ``skip``: left out, and not counted as wrong. ``middle``: the first and the last half of the
tokens stay (LongBench pred.py). ``left``: the last tokens stay (lm-evaluation-harness). ``context-only``: the long text
loses its end, all else stays (HELMET model_utils.py)."""


class Piece(NamedTuple):
    """Characters ``[start, end)`` of a prompt that are removed, and the text that replaces them."""

    start: int
    end: int
    instead: str


def check_policy(policy: str) -> str:
    """The policy, if it is one.

    Raises:
        UserError: It is none.
    """
    if policy not in POLICIES:
        raise UserError(f"`overlong` is {policy!r}; expected one of {', '.join(POLICIES)}")
    return policy


def truncate(draft: Draft, tokens: TokenCounter, budget: int, policy: str, omission: str = "") -> tuple[Draft, int]:
    """The draft without a piece of its prompt, so that it fits, and its tokens.

    With n the tokens of prompt and answer prefix, and spans those of the prompt's tokens, the piece is the smallest
    that makes n at most the budget: tokens ``[h, -h)`` for ``middle``, the first ones for ``left``, and the last ones
    of the context for ``context-only``. A cut can change how the text around it is tokenized; then a token more goes.

    Args:
        draft: Too long.
        tokens: Counts.
        budget: Tokens of prompt and answer prefix at most.
        policy: ``middle``, ``left`` or ``context-only``.
        omission: What ``context-only`` puts in the place of what it cuts off, unless the draft's metadata have one.

    Returns:
        The draft, whose metadata says under ``cut`` which policy took how many characters and tokens; and its tokens.

    Raises:
        UserError: The draft has no context to cut, or what must stay does not fit.
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
    """Where a character is after the cut; a removed one is at the cut."""
    if place <= piece.start:
        return place
    return place + shift if place >= piece.end else piece.start + len(piece.instead)
