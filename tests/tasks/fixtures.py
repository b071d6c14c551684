"""Rows and texts written for these tests, in the schemas of the real data, and all tasks set up on them."""

from __future__ import annotations

import json
from pathlib import Path

from longlens.tasks import get_task, list_tasks, task_settings
from tests.tasks import published
from tests.tasks.helmet.rows_cite_longqa_summ import write_cite_longqa_summ
from tests.tasks.helmet.rows_rag_rerank_icl import write_rag_rerank_icl
from tests.tasks.longbench import rows as longbench
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
LENGTH = 6000  # of which every task with lengths has several units under a byte tokenizer

PLACES = ("harbour", "mill", "library", "orchard", "station", "bakery", "tower")
DOINGS = ("counts the lamps", "sweeps the yard", "reads old letters", "waits for rain", "mends a clock")
HAYSTACK = "\n".join(
    f"On day {day} the keeper of the {PLACES[day % 7]} {DOINGS[day % 5]}. Nobody in town asks why, e.g. on Mondays."
    for day in range(1, 120)
)


def _article(number: int) -> dict:
    contexts = [f"Town {number}.{part} has {part + 3} bridges. Its mayor is Ada {number}{part}." for part in range(3)]
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "question": f"Who is the mayor of town {number}.{part}?",
                    "is_impossible": False,
                    "answers": [
                        {"text": f"Ada {number}{part}", "answer_start": context.index("Ada")},
                        {"text": f"Ada {number}{part}", "answer_start": context.index("Ada")},
                    ],
                },
                {"question": "Who is its king?", "is_impossible": True, "answers": []},
            ],
        }
        for part, context in enumerate(contexts)
    ]
    return {"title": f"Towns {number}", "paragraphs": paragraphs}


SQUAD = {"version": "v2.0", "data": [_article(number) for number in range(4)]}
HOTPOTQA = [
    {
        "question": f"Is river {number} longer than the river that begins at peak {number}?",
        "answer": "yes" if number == 0 else f"{number}00 miles",
        "supporting_facts": [[f"River {number}", 1]],
        "context": [
            [f"River {number}", ["It flows south. ", f"It is {number}00 miles long, not 1{number}00 miles."]],
            [f"Peak {number}", [f"A mountain {number}00 miles from the sea."]],
            [f"Lake {number}", ["It is deep."]],
        ],
    }
    for number in range(6)
]
CONVERSATIONS = [
    {
        "topic": f"The history of {place}s",
        "conversation": f"USER: I would like to discuss the topic of the history of {place}s. \n ASSISTANT: Gladly. "
        + f"The first {place} was small. " * 12
        + "\n ",
    }
    for place in (*PLACES, "market", "well", "theatre")
]


def write(folder: Path) -> Path:
    """A folder with a haystack and with the data of all tasks that read some."""
    (folder / "prose.txt").write_text(HAYSTACK, encoding="utf-8")
    (folder / "squad.json").write_text(json.dumps(SQUAD), encoding="utf-8")
    (folder / "hotpotqa.json").write_text(json.dumps(HOTPOTQA), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in CONVERSATIONS)
    (folder / "conversations.jsonl").write_text(lines, encoding="utf-8")
    longbench.write(folder)
    write_rag_rerank_icl(folder)
    write_cite_longqa_summ(folder)
    published.write(folder)
    return folder


def settings(name: str, folder: Path) -> dict:
    """What a task has to be told, so that its samples are the same on every machine."""
    given = {"haystack": folder / "prose.txt", "data_dir": folder}
    return {setting: value for setting, value in given.items() if setting in task_settings(name)}


def task(name: str, folder: Path):
    return get_task(name, **settings(name, folder))


FILLED = [name for name in list_tasks() if get_task(name).fills]
WITH_LENGTH = [name for name in FILLED if name != "longeval_lines_1350"]
