"""Shared code of HELMET's tasks: nominal lengths, the end of a prompt, answer spans, and parsing of replies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from longlens.errors import UserError
from longlens.tasks import metrics

# generate_configs.py, lengths_mapping: {"4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "128k": …}
NOMINAL = (4096, 8192, 16384, 32768, 65536, 131072)


def by_length(*sizes: int) -> dict[int, int]:
    """One size for each nominal length."""
    return dict(zip(NOMINAL, sizes, strict=True))


def nominal_length(task: str, length: int | None, sizes: Mapping[int, int], what: str) -> int:
    """The largest nominal length that is at most ``length``.

    Args:
        task: Name of the task, for messages.
        length: Tokens, or None.
        sizes: Size by nominal length.
        what: The task's setting that sets a size instead.

    Raises:
        UserError: No length is set, or it is below the smallest nominal length.
    """
    fitting = [nominal for nominal in sizes if length is not None and nominal <= length]
    if not fitting:
        raise UserError(
            f"{task}: `length={length}`; expected at least {min(sizes)}, the smallest length for which HELMET has data "
            f"({what} by length: {', '.join(f'{size} for {nominal}' for nominal, size in sizes.items())}); or pass "
            f"`{what}`"
        )
    return max(fitting)


def split_prefix(prompt: str, prefix: str) -> tuple[str, str]:
    """Splits off the answer prefix and moves whitespace at the end of the prompt into it."""
    bare = prompt.rstrip()
    return bare, prompt[len(bare) :] + prefix


def find_answers(text: str, answers: Sequence[str]) -> list[tuple[int, int]]:
    """``[start, end)`` of each occurrence of an answer as words; of overlapping spans the first and longest one."""
    spans = {
        match.span()
        for answer in answers
        if answer.strip()
        for match in re.finditer(re.escape(answer), text)
        if not _inside_word(text, *match.span())
    }
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not chosen or start >= chosen[-1][1]:
            chosen.append((start, end))
    return chosen


def _inside_word(text: str, start: int, end: int) -> bool:
    return any(0 < place < len(text) and (text[place - 1] + text[place]).isalnum() for place in (start, end))


def readings(reply: str, prefix: str) -> list[str]:
    """The texts that HELMET scores, of which the best score counts.

    These are the reply, the rest of the line after the first ``prefix`` in it (else its first line), and its first
    line. For a model that continues the prompt, HELMET prepends the prefix to the reply, so that its first line is
    read. For a chat model it does not, so that the line after the model's own prefix is read. Here both are read. The
    whole reply is scored without a prepended prefix, so that an answer like ``E``, a part of ``Answer:``, is not found
    in every reply.

    Source: HELMET ``data.py``, `default_post_process`, and ``eval.py``, `run_test`.
    """
    return list(
        dict.fromkeys([reply, metrics.parse_output(reply, prefix), metrics.parse_output(prefix + reply, prefix)])
    )


def best_scores(reply: str, answers: Sequence[str], *names: str, prefix: str = "Answer:") -> dict[str, float]:
    """HELMET's scores of a reply, 0 to 1, each the best over `readings` and answers.

    Args:
        reply: The model's output.
        answers: The right answers.
        *names: Names, from ``exact_match``, ``substring_exact_match``, ``f1`` and ``rougeL_f1``.
        prefix: Text after which the answer begins.

    Source: HELMET ``utils.py``, `calculate_metrics`.
    """

    def rouge(text: str, answers: Sequence[str]) -> float:
        return max(metrics.rouge_l(text, answer) for answer in answers)

    measures: dict[str, Callable[[str, Sequence[str]], float]] = {
        "exact_match": metrics.exact_match,
        "substring_exact_match": metrics.substring_exact_match,
        "f1": metrics.token_f1,
        "rougeL_f1": rouge,
    }
    texts = readings(reply, prefix)
    return {name: max(measures[name](text, answers) for text in texts) for name in names}
