"""Rows in LongBench's schemas, written for these tests."""

from __future__ import annotations

import json
from pathlib import Path

from longlens.tasks.longbench import SETS

TOWNS = ("Alder", "Birch", "Cedar", "Dogwood", "Elm")
PASSAGES = "\n".join(
    f"Passage {number}:\n{town}\nThe mayor of {town} is Ada {town[::-1].title()}. It has {number + 2} {{old}} bridges."
    for number, town in enumerate(TOWNS, start=1)
)
ZH = "会议记录：张三说，图书馆明年三月开放。李四说，港口有十二座桥。王五说，面包店在车站旁边。\n"
TREC_CLASSES = ["Food", "Event", "Animal", "Animal group", "City", "Date"]
LSHT_CLASSES = ["体育", "经济", "科学技术"]
DIALOGUE = "Dialogue: Ada: Are you at the mill?\r\nBen: No, at the station.\r\nAda: I will come."
CODE = "class Mill:\n    def __init__(self, wheels):\n        self.wheels = wheels\n\n    def count(self):\n"
PARAGRAPHS = "\n\n".join(f"Paragraph {number}: {town} has a mill." for number, town in enumerate(TOWNS, start=1))

# input, context, answers and classes of the first row; the others have their number in the context.
FIRST: dict[str, tuple[str, str, list[str], list[str] | None]] = {
    "narrativeqa": ("Who is the mayor of Elm?", PASSAGES, ["Ada Mle", "Mayor Ada Mle"], None),
    "qasper": ("How many bridges has Elm?", PASSAGES, ["7", "unanswerable"], None),
    "multifieldqa_en": ("How many bridges has Cedar?", PASSAGES, ["5"], None),
    "multifieldqa_zh": ("港口有几座桥？", ZH, ["十二座桥"], None),
    "hotpotqa": ("Who is the mayor of the town with 4 bridges? ", PASSAGES, ["Ada Hcrib"], None),
    "2wikimqa": ("Has Alder fewer bridges than Elm?", PASSAGES, ["yes"], None),
    "musique": ("Who rules Dogwood?", PASSAGES, ["Ada Doowgod", "Ada"], None),
    "dureader": ("图书馆什么时候开放？", ZH, ["明年三月", "三月"], None),
    "gov_report": ("", PASSAGES + "\n\n", ["Five towns have mayors and bridges."], None),
    "qmsum": ("Sum up what was said.", PASSAGES, ["All towns have bridges. All have mayors."], None),
    "multi_news": ("", PASSAGES, ["Towns have mayors."], None),
    "vcsum": ("", ZH, ["图书馆、港口和面包店的情况。"], None),
    "trec": ("Question: What is a group of wrens ?\nType:", "Question: What is a fig ?\nType: Food\n" * 3,
             ["Animal group"], TREC_CLASSES),
    "triviaqa": ("Passage:\nElm has 7 bridges.\nQuestion:\nWhich town has 7 bridges?\nAnswer:\n",
                 "Passage:\nAlder has 3 bridges.\nQuestion:\nHow many?\nAnswer:\n3\n", ["Elm"], None),
    "samsum": (DIALOGUE + "\nSummary: ", DIALOGUE + "\nSummary: Ada will join Ben.\n", ["Ada comes to Ben."], None),
    "lsht": ("新闻内容：\n新的火箭上天。\n类别：", "新闻内容：\n球队赢了。\n类别：体育\n" * 3,
             ["科学技术"], LSHT_CLASSES),
    "passage_count": ("", PARAGRAPHS + "\n\n" + PARAGRAPHS, ["5"], None),
    "passage_retrieval_en": ("A town by the name of Cedar.", PARAGRAPHS, ["Paragraph 3"], None),
    "passage_retrieval_zh": ("关于港口的段落。", "段落1：图书馆。\n\n段落2：港口。\n\n段落3：车站。", ["段落2"], None),
    "lcc": ("", CODE, ["        return len(self.wheels)"], None),
    "repobench-p": (CODE, "# path: town.py\nTOWNS = 5\n\n", ["        return len(self.wheels)"], None),
}  # fmt: skip
LENGTHS = (1200, 3999, 4000, 7999, 8000, 12000)
V2 = [
    {
        "_id": f"v2-{number}",
        "domain": "Single-Document QA",
        "sub_domain": "Towns",
        "difficulty": difficulty,
        "length": length,
        "question": f" Which town has {number + 3} bridges?\n",
        **dict(zip(("choice_A", "choice_B", "choice_C", "choice_D"), TOWNS, strict=False)),
        "answer": "ABCD"[number],
        "context": f"\n{PASSAGES} Let $Q$ be a set, $C_A$ a number.\n",
    }
    for number, (difficulty, length) in enumerate(
        (("easy", "short"), ("hard", "short"), ("hard", "medium"), ("easy", "short"))
    )
]


def rows_of(name: str) -> list[dict]:
    """Six rows of a set: as many as there are lengths."""
    asked, context, answers, classes = FIRST[name]
    return [
        {
            "input": asked,
            "context": f"Day {number}. {context}" if number else context,
            "answers": answers,
            "length": length,
            "dataset": name,
            "language": SETS[name].language,
            "all_classes": classes,
            "_id": f"{name}-{number}",
        }
        for number, length in enumerate(LENGTHS)
    ]


def write(folder: Path) -> None:
    """Writes v1 and LongBench-E as data.zip unpacks, and v2."""
    (folder / "data").mkdir(exist_ok=True)
    for name, facts in SETS.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(name))
        for stem in (name, *([f"{name}_e"] if facts.samples_e else [])):
            (folder / "data" / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "longbench_v2.json").write_text(json.dumps(V2), encoding="utf-8")
