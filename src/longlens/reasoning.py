"""Extracts the answer that follows a model's reasoning, by the marks that model families write around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longlens.errors import UserError, shown_value

Marks = tuple[str, str]
MARKS: tuple[Marks, ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
"""Begin and end marks of reasoning, matched without regard to case."""
# Harmony (gpt-oss): channels analysis, commentary and final; without special tokens only their names remain.
_CHANNEL = "<|channel|>"
_FINAL = re.compile(r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_FINAL_END = re.compile(r"<\|(?:return|end|call|start)\|>")
_BARE = re.compile(r"\s*(?:analysis|commentary)")
_BARE_BEGIN = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z])")
_BARE_FINAL = "assistantfinal"


def parse_marks(text: str) -> Marks:
    """Parses ``"<plan>,</plan>"`` into a pair of marks.

    Raises:
        UserError: The text is not two different marks separated by a comma.
    """
    begin, _, end = (part.strip() for part in text.partition(","))
    if not begin or not end or begin == end or "," in end:
        raise UserError(f"`think_marks` is {shown_value(text)}; expected BEGIN,END, such as '<plan>,</plan>'")
    return begin, end


def final_answer(output: str, *, marks: Marks | None = None, must_end: bool = False) -> str:
    """Returns the text after the reasoning; empty if reasoning began and did not end.

    An end without a begin counts, since chat templates may open the reasoning themselves.

    Args:
        output: What a model wrote.
        marks: One more pair, in addition to `MARKS`.
        must_end: Whether an output without an end mark is treated as reasoning throughout.
    """
    if _CHANNEL in output:
        found = list(_FINAL.finditer(output))
        return _FINAL_END.split(output[found[-1].end() :], maxsplit=1)[0] if found else ""
    pairs: Sequence[Marks] = MARKS if marks is None else (*MARKS, marks)
    begins, ends = (re.compile("|".join(map(re.escape, names)), re.IGNORECASE) for names in zip(*pairs, strict=True))
    if _BARE.match(output) and _BARE_FINAL in output:
        answer, has_ended = output.rpartition(_BARE_FINAL)[2], True
    else:
        last = max((found.end() for found in ends.finditer(output)), default=None)
        has_ended = last is not None
        answer = output if last is None else output[last:].lstrip()
    if begins.search(answer) or (not has_ended and (must_end or _BARE_BEGIN.match(output))):
        return ""
    return answer
