"""Which tokens are scored from which window: integer arithmetic only, used by scoring and by the LongCE loss.

With K = 4, d = 2 and n = 9 tokens (the short context of the paper's eq. 8 as its published code runs it)::

    token       0  1  2  3  4  5  6  7  8
    window 0    c  c  c  c  S  S                 context 4 and 5 tokens
    window 1          c  c  c  c  S  S
    window 2                c  c  c  c  S        ragged: one token is left

c: input that is not scored, S: scored. Tokens 0 to 3 have no short-context score.
"""

from __future__ import annotations

from typing import NamedTuple

from longlens.errors import UserError


class Window(NamedTuple):
    """Tokens ``[start, stop)`` are the model's input; ``[first, stop)`` of them are scored."""

    start: int
    first: int
    stop: int


def check_window_settings(context: int, stride: int) -> None:
    """Rejects settings from which no window can be made.

    Raises:
        UserError: ``context < 1`` or ``stride < 1``.
    """
    if context < 1:
        raise UserError(f"`context` is {context}; the short context K must be at least 1 token, such as `context=4096`")
    if stride < 1:
        raise UserError(f"`stride` is {stride}; d must be at least 1 token, such as `stride=1024`")


def plan_windows(num_tokens: int, context: int, stride: int) -> list[Window]:
    """Windows in which every token at position K or later is scored once, with K to K + d - 1 tokens before it.

    Equivalent code, for j = 0, 1, ... while K + j d < n::

        Window(start=j * d, first=K + j * d, stop=min(K + (j + 1) * d, n))

    Args:
        num_tokens: n, tokens of the document.
        context: K, tokens of context that every scored token has at least.
        stride: d, the number of tokens scored per window.

    Raises:
        UserError: ``context < 1`` or ``stride < 1``.

    Source: paper, Appendix A.1, eq. 8.
    """
    check_window_settings(context, stride)
    return [
        Window(start=first - context, first=first, stop=min(first + stride, num_tokens))
        for first in range(context, num_tokens, stride)
    ]


def window_sizes(num_tokens: int, context: int, stride: int) -> dict[tuple[int, int], int]:
    """Number of windows of `plan_windows` by (number of tokens, number of scored tokens).

    Equivalent code::

        Counter((w.stop - w.start, w.stop - w.first) for w in plan_windows(num_tokens, context, stride))

    Args:
        num_tokens: n.
        context: K.
        stride: d.

    Raises:
        UserError: ``context < 1`` or ``stride < 1``.
    """
    check_window_settings(context, stride)
    full, rest = divmod(max(0, num_tokens - context), stride)
    found = {(context + stride, stride): full, (context + rest, rest): 1}
    return {size: number for size, number in found.items() if number and size[1]}


def chunk_sizes(num_tokens: int, context: int, stride: int) -> dict[tuple[int, int], int]:
    """Number of chunks of `plan_chunks` without shift, by (number of tokens, number of scored tokens)."""
    check_window_settings(context, stride)
    full, rest = divmod(num_tokens, context + stride)
    found = {(context + stride, stride): full, (rest, rest - context): 1}
    return {size: number for size, number in found.items() if number and size[1] > 0}


def plan_chunks(num_tokens: int, context: int, stride: int, shift: int) -> list[Window]:
    """Chunks of K + d tokens that do not overlap, in each of which the tokens at position K or later are scored.

    Equivalent code, for the boundaries b = shift + j (K + d) for all integers j::

        Window(start=max(b, 0), first=max(b, 0) + K, stop=min(b + K + d, n))    # where first < stop

    So a scored token has K to K + d - 1 tokens of context, as in `plan_windows`, and over ``ceil((K + d)/d)``
    shifts that are d apart every token at position K or later is scored at least once.

    Args:
        num_tokens: n, tokens of the document.
        context: K, tokens.
        stride: d, tokens.
        shift: Position where a chunk begins; any integer.

    Raises:
        UserError: ``context < 1`` or ``stride < 1``.
    """
    check_window_settings(context, stride)
    chunk = context + stride
    begins = range(shift % chunk - chunk, num_tokens, chunk)
    ends = [(max(begin, 0), min(begin + chunk, num_tokens)) for begin in begins]
    return [Window(start, start + context, stop) for start, stop in ends if start + context < stop]
