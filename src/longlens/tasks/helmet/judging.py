"""What HELMET asks its judge, and what it reads from a reply.

Upstream's judge is gpt-4o-2024-05-13; which model it is here, the caller says. The prompts, in the folder beside this
file, are those of scripts/eval_gpt4_longqa.py and scripts/eval_gpt4_summ.py of princeton-nlp/HELMET at 4526dfb, MIT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any


def judge_prompt(name: str, **values: object) -> str:
    """A prompt of the folder, with its fields filled in."""
    path = resources.files("longlens.tasks.helmet") / "prompts" / f"{name}.txt"
    return path.read_text(encoding="utf-8").format(**values)


def last_object(reply: str, *, fenced: bool = False) -> Mapping[str, Any] | None:
    """The last ``{…}`` of a reply as JSON; None where there is none or it is no JSON.

    Oddity: ``{`` to the next ``}``, so that an object within another one ends it.

    Args:
        reply: What the judge wrote.
        fenced: Where that is no JSON, takes what stands between the first json fence and the last fence.

    Source: `parse_json` of the two scripts; that for summaries is the one with fences.
    """
    found = re.findall(r"\{.*?\}", reply, flags=re.DOTALL)
    if not found:
        return None
    value = _parsed(found[-1])
    if value is None and fenced:
        blocks = re.findall(r"```json(.+)```", reply, flags=re.DOTALL)
        value = _parsed(blocks[-1]) if blocks else None
    return value if isinstance(value, Mapping) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


def number(found: Mapping[str, Any] | None, key: str, most: float) -> float | None:
    """``found[key]``, where it is a number from 0 to ``most``; else None.

    HELMET takes any number, and fails where there is none; a judge that gives 5 points of 3, or finds more key points
    than there are, is as unreadable here.
    """
    value = None if found is None else found.get(key)
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= most else None
