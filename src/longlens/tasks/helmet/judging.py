"""Prompts for the judge of HELMET's tasks, and parsing of its replies.

Upstream's judge is gpt-4o-2024-05-13; here the caller chooses the model. The prompts are those of longlens, or text
files of the user, such as upstream's. The prompts of longlens ask for the same things as scripts/eval_gpt4_longqa.py
and scripts/eval_gpt4_summ.py of princeton-nlp/HELMET at 4526dfb, on the same scales and under the same keys of a JSON
object, but with other wording and other examples. Scores with them are not HELMET's.
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

from longlens.tasks.base import JudgedTask
from longlens.tasks.data import DataFile

ANSWER = """You grade an answer to a question about a story. You do not have the story. You have answers that are known
to be right: compare with them.

Give two marks.

fluency, 0 or 1:
1 - readable and grammatical, and says its thing once. A word or a phrase is enough.
0 - garbled, broken off before it answers, or says the same over again (in other words too), however right it is.

correctness, 0 to 3:
0 - agrees with none of the right answers.
1 - agrees with one of them in part: of two things asked for, one is right and the other is wrong or missing.
2 - says what one of them says, and also something that has nothing to do with the question.
3 - says what one of them says, and all else in it is to the point. It may be longer, or in other words.

Examples, for the question "Where does Tomas hide the letter, and from whom?" and the right answers
['in the clock, from his aunt']:
"He puts it in the clock, where his aunt will not look." {"fluency": 1, "correctness": 3}
"In the clock, from the mayor." {"fluency": 1, "correctness": 1}
"The clock, from his aunt. The clock, from his aunt. The clock, from his aunt." {"fluency": 0, "correctness": 3}

Give your reasons first, in a few sentences. Then end with one JSON object such as {"fluency": 1, "correctness": 2}.

Question: {question}
Right answers: {correct_answers}
Answer: {parsed_output}
"""

FLUENCY = """You check how a text reads. Whether it is true does not matter here.

fluency, 0 or 1:
1 - connected and grammatical, and does not repeat itself. If only its last sentence breaks off, it is still 1.
0 - garbled or without connection, or says the same over again (in other words too), or is empty or a mere beginning.

Examples:
"The mill burns down. Ada leaves the valley and finds work at the harbour, where she meets her bro" {"fluency": 1}
"The mill burns down. A fire takes the mill. The mill is lost in a fire. Flames destroy the mill." {"fluency": 0}
"Summary: the mill mill of of of" {"fluency": 0}

Answer with one JSON object such as {"fluency": 1}.

Text:
<text>
{text}
</text>
"""


def _recall(of: str, counts: str, example: str) -> str:
    return f"""You check what a summary of {of} leaves out. You get key points by number, and then the summary.

A key point counts if {counts}. It does not count if the
summary leaves it out, only hints at it, or says otherwise. Go by the summary alone, not by what you may know from
elsewhere.

recall: how many key points count.

Example. Key points:
{example}

Take the key points one by one, with a short reason for each. Then end with one JSON object such as
{{"supported_key_points": [2, 4], "recall": 2}}, whose recall is the length of the list.

Key points:
{{keypoints}}

<summary>
{{summary}}
</summary>
"""


def _precision(of: str, details: str, more: str, example: str) -> str:
    return f"""You check a summary of {of} against one that an expert wrote. Take it sentence by sentence.

A sentence is supported if what it mainly says is in the expert's summary. Details that the expert leaves out, such as
{details}, do no harm. A sentence is not supported if a main thing that it
says is missing there, or if the expert says otherwise.{more}

sentence_count: how many sentences the summary has, one that breaks off at its end among them.
precision: how many of them are supported.

Example. Expert's summary: {example}

Take the sentences one by one, with a short reason for each. Then end with one JSON object such as
{{"precision": 2, "sentence_count": 3}}.

<expert_summary>
{{expert_summary}}
</expert_summary>

<summary>
{{summary}}
</summary>
"""


_BOOK_RECALL = """1. Ada inherits a mill from her uncle.
2. The mill burns down in its first winter, and Ada sells the land to a neighbour.
3. Ada finds out that her brother set the fire, and forgives him.
Summary: "Ada comes into her uncle's mill, but loses it in a fire before spring. She leaves the valley."
1 is there. Most of 2 is there. 3 is not. {"supported_key_points": [1, 2], "recall": 2}"""
_CASE_RECALL = """1. Tenants of a city sued its housing office over lead in the water.
2. They asked the court to order new pipes.
3. The parties settled in May 2011.
Summary: "Tenants sued the housing office of their city because there was lead in their water. In May 2011 the parties
settled, which a judge approved."
1 and 3 are there. 2 is not: it does not say what they asked for. {"supported_key_points": [1, 3], "recall": 2}"""
_BOOK_PRECISION = """"Ada inherits her uncle's mill, which burns down in the first winter. Years later she learns that
her brother did it, and forgives him."
Summary: "In the spring of 1911 Ada Lund inherits a mill. It is sold to pay a debt. The story is about forgiveness."
1 is supported, whatever the year. 2 is not, the mill burns down. 3 is not, it comments on the story.
{"precision": 1, "sentence_count": 3}"""
_CASE_PRECISION = """"Tenants sued the city's housing office over lead in the water. They asked for new pipes. The
parties settled in 2011, and the office replaced the pipes."
Summary: "Four tenants, among them Bo Rask, sued the housing office because of lead. A jury found for the office. The"
1 is supported, though the expert has no names. 2 is not, they settled. 3 breaks off and says nothing.
{"precision": 1, "sentence_count": 3}"""

PROMPTS: dict[str, str] = {
    "narrativeqa": ANSWER,
    "infbench_sum_fluency": FLUENCY,
    "infbench_sum_recall": _recall(
        "a novel", "the summary says it; of one that says several things, most are enough", _BOOK_RECALL
    ),
    "infbench_sum_precision": _precision(
        "a novel",
        "dates, names or places",
        " Nor is it if it discusses the story or comments on it where the expert does not.",
        _BOOK_PRECISION,
    ),
    "multi_lexsum_fluency": FLUENCY,
    "multi_lexsum_recall": _recall("a lawsuit", "the summary says all of it, in whatever words", _CASE_RECALL),
    "multi_lexsum_precision": _precision(
        "a lawsuit", "dates, names, or what laws and earlier cases are called", "", _CASE_PRECISION
    ),
}
"""The prompts, by the names of the user's files."""
HELMETS = {
    "narrativeqa": "16c6c5b297eed9b1",
    "multi_lexsum_fluency": "fcd01f4cbaf51eb4",
    "infbench_sum_fluency": "4f16a04370580800",
    "multi_lexsum_recall": "8f1adede53ee504e",
    "infbench_sum_recall": "3d5e396ec57b08c2",
    "multi_lexsum_precision": "b0ebf44b8896336b",
    "infbench_sum_precision": "ae2f4b0c519496a5",
}
"""Beginnings of the SHA-256 of upstream's prompts (scripts/eval_gpt4_longqa.py, scripts/eval_gpt4_summ.py, 4526dfb)."""
_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def fields_of(template: str) -> set[str]:
    """Names of the ``{fields}`` of a template."""
    return {part[1] for part in _PART.finditer(template) if part[1]}


def fill(template: str, values: Mapping[str, object]) -> str:
    """``template.format(**values)`` that is safe for untrusted templates: a field is only a name.

    ``{name}`` is replaced, ``{{`` and ``}}`` become braces, and any other brace is kept.
    """
    return _PART.sub(lambda part: str(values[part[1]]) if part[1] else part[0][0], template)


@dataclass(frozen=True, kw_only=True)
class HelmetJudged(JudgedTask):
    """A task whose judge uses the prompts of longlens or those of the user.

    Attributes:
        prompts_dir: A directory with the user's prompts, each as ``NAME.txt`` with the same fields as that of longlens,
            which is the default.
        prompts: Names of the prompts.
    """

    name: str
    prompts_dir: str | os.PathLike[str] | None = None

    prompts: ClassVar[tuple[str, ...]]
    needs_judge = True

    def fill_prompt(self, name: str, **values: object) -> str:
        """A prompt with its fields filled in.

        Raises:
            UserError: The file of the prompt does not exist, or has other fields.
        """
        return fill(self._texts[name], values)

    @property
    def prompts_by(self) -> str:
        """``own`` with the beginning of a hash, ``helmet``, or the SHA-256 of other prompts."""
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
            source="the scripts of github.com/princeton-nlp/HELMET (script: docs/tasks_helmet.md)",
            schema=f"a text with the fields {named}",
        )
        text, described = file.read(self.name, self.prompts_dir)
        found = fields_of(text)
        if found != wanted:
            raise file.wrong(described["file"], f"it has the fields {', '.join(sorted(found)) or 'none'}")
        return text


def _digest(*texts: str) -> str:
    """SHA-256 of texts, with or without a newline at the end."""
    return hashlib.sha256("\0".join(text.rstrip() for text in texts).encode()).hexdigest()


def last_object(reply: str, *, fenced: bool = False) -> Mapping[str, Any] | None:
    """The last ``{…}`` of a reply as JSON; None if there is none or it is not JSON.

    Oddity: the match ends at the next ``}``, so that it ends at the end of a nested object.

    Args:
        reply: The judge's output.
        fenced: If that is not JSON, use the text between the first json fence and the last fence.

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
    """``found[key]``, if it is a number from 0 to ``most``; else None.

    HELMET accepts any number, and fails if there is none. Here a judge's reply with 5 of 3 points, or with more key
    points than exist, is also unreadable.
    """
    value = None if found is None else found.get(key)
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= most else None
