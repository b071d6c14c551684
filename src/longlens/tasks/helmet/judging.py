"""What HELMET's tasks ask their judge, and what they read from a reply.

Upstream's judge is gpt-4o-2024-05-13; which model it is here, the caller says. Its prompts are ours
(`longlens.tasks.helmet.judge_prompts`), or text files of the user, such as upstream's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from longlens.tasks.data import DataFile
from longlens.tasks.helmet.judge_prompts import PROMPTS
from longlens.tasks.judged import JudgedTask

HELMETS = {
    "narrativeqa": "16c6c5b297eed9b1",
    "multi_lexsum_fluency": "fcd01f4cbaf51eb4",
    "infbench_sum_fluency": "4f16a04370580800",
    "multi_lexsum_recall": "8f1adede53ee504e",
    "infbench_sum_recall": "3d5e396ec57b08c2",
    "multi_lexsum_precision": "b0ebf44b8896336b",
    "infbench_sum_precision": "ae2f4b0c519496a5",
}
"""How the sha256 of upstream's prompts begin, scripts/eval_gpt4_longqa.py and scripts/eval_gpt4_summ.py at 4526dfb."""
_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def fields_of(template: str) -> set[str]:
    """Names of its ``{fields}``."""
    return {part[1] for part in _PART.finditer(template) if part[1]}


def filled(template: str, values: Mapping[str, object]) -> str:
    """``template.format(**values)``, for text of anyone: a field is a name and nothing more.

    ``{name}`` is put in, ``{{`` and ``}}`` are braces, and any other brace stands for itself.
    """
    return _PART.sub(lambda part: str(values[part[1]]) if part[1] else part[0][0], template)


@dataclass(frozen=True, kw_only=True)
class HelmetJudged(JudgedTask):
    """A task whose judge gets our prompts or those of the user.

    Attributes:
        name: Of the task.
        prompts_dir: A folder with the user's, each as ``NAME.txt`` with the fields that ours has; ours unless given.
        prompts: Their names.
    """

    name: str
    prompts_dir: str | os.PathLike[str] | None = None

    prompts: ClassVar[tuple[str, ...]]
    needs_judge = True

    def asked(self, name: str, **values: object) -> str:
        """A prompt with its fields filled in.

        Raises:
            UserError: There is no such file, or it has other fields.
        """
        return filled(self._texts[name], values)

    @property
    def prompts_by(self) -> str:
        """``own`` with the begin of a hash, ``helmet``, or the sha256 of other ones."""
        if self.prompts_dir is None:
            return f"own {_digest(*self._texts.values())[:12]}"
        if all(_digest(text).startswith(HELMETS[name]) for name, text in self._texts.items()):
            return "helmet"
        return _digest(*self._texts.values())

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {name: self._text(name) for name in self.prompts}

    def _text(self, name: str) -> str:
        if self.prompts_dir is None:
            return PROMPTS[name]
        wanted = fields_of(PROMPTS[name])
        named = " and ".join(f"{{{field}}}" for field in sorted(wanted))
        file = DataFile(
            names=(f"{name}.txt",),
            source="the scripts of github.com/princeton-nlp/HELMET (docs/tasks_helmet.md has the lines that write it)",
            schema=f"a text with the fields {named}",
        )
        text, described = file.read(self.name, self.prompts_dir)
        found = fields_of(text)
        if found != wanted:
            raise file.wrong(described["file"], f"it has the fields {', '.join(sorted(found)) or 'none'}")
        return text


def _digest(*texts: str) -> str:
    """sha256 of texts, whose last line may end or not."""
    return hashlib.sha256("\0".join(text.rstrip() for text in texts).encode()).hexdigest()


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
    except (ValueError, RecursionError):  # thousands of digits are a ValueError
        return None


def number(found: Mapping[str, Any] | None, key: str, most: float) -> float | None:
    """``found[key]``, where it is a number from 0 to ``most``; else None.

    HELMET takes any number, and fails where there is none; a judge that gives 5 points of 3, or finds more key points
    than there are, is as unreadable here.
    """
    value = None if found is None else found.get(key)
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= most else None
