"""Rows written for these tests in the schemas that HELMET's cited answers, long questions and summaries read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

TOWNS = ("Arle", "Bruck", "Corvo", "Dunmar", "Eskil", "Farrow", "Gorse")
CRAFTS = ("weaver", "smith", "potter", "miller", "glazier")


def filler(town: str, number: int) -> dict:
    return {
        "id": str(number),
        "title": f"{town} {number}",
        "text": f"In {1500 + number} the {CRAFTS[number % 5]} of {town} left (see: {{notes}}).",
        "score": 1 / number,
    }


def asqa_row(town: str) -> dict:
    facts = [f"Ada Lund of {town}", f"Bo Rask of {town}", f"Bo R. of {town}", f"17{len(town)}4 in {town}"]
    docs = [
        {"title": f"Mill of {town}", "text": f"It was run by {facts[0]}, and not by her son."},
        {"title": f"Inn (of {town}): a list", "text": f"The inn was kept by {facts[1]}, called {facts[2]} here.  "},
        {"title": "Fires", "text": f"Both burned down {facts[3]}.\nNobody was hurt."},
    ]
    return {
        "sample_id": town,
        "question": f"Who ran mill and inn of {town}, and when did they burn down?",
        "qa_pairs": [
            {"question": "Who ran the mill?", "short_answers": [facts[0]], "context": "", "wikipage": None},
            {"question": "Who ran the inn?", "short_answers": facts[1:3], "context": "", "wikipage": None},
            {"question": "When did they burn down?", "short_answers": [facts[3]], "context": "", "wikipage": None},
        ],
        "annotations": [{"long_answer": f"{facts[0]} ran it."}],
        "answer": f"{facts[0]} ran the mill.",
        "docs": docs + [filler(town, number) for number in range(1, 90)],
    }


def qampari_row(town: str) -> dict:
    boats = [[f"{name} of {town}"] for name in ("Swift", "Heron", "Lark", "Otter", "Gull", "Tern")]
    boats[1].append(f"Old Heron of {town}")
    docs = [
        {"title": "Boats", "text": "They are " + ", ".join(names[0] for names in boats) + "."},
        {"title": f"Heron of {town}", "text": f"Once called Old Heron of {town}, by all."},
    ]
    return {
        "id": f"boats {town}",
        "question": f"Which boats were built in {town}?",
        "answers": boats,
        "docs": docs + [filler(town, number) for number in range(1, 90)],
    }


def demonstrations(kind: str) -> dict:
    rows = [
        {
            "question": f"What does the {craft} of demonstration {number} make?",
            "answer": f"A pot [{number}], a pan [2][3].",
            "docs": [{"title": f"{craft} {part}", "text": f"Says {{{part}}}."} for part in range(5)],
        }
        for number, craft in enumerate(CRAFTS, start=1)
    ]
    return {"instruction": f"not read: {kind}", "demo_prompt": "", "doc_prompt": "", "demos": rows}


def story(town: str, sentences: int) -> str:
    said = [f"On day {day} {CRAFTS[day % 5]} {day % 7} of {town} found {{{day}}} coins." for day in range(sentences)]
    return " ".join(said)


def narrativeqa_row(town: str, number: int) -> dict:
    return {
        "document": {"id": f"d{number}", "kind": "gutenberg", "text": story(town, 20 + 60 * number)},
        "question": {"text": f"Who found the coins of {town}? ", "tokens": []},
        "answers": [{"text": f"The weaver of {town}", "tokens": []}, {"text": "a weaver", "tokens": []}],
    }


def infbench_row(town: str, number: int, answer: str, **more: object) -> dict:
    text = story(town, 20 + 60 * number)
    return {"id": number, "context": text, "input": f"Who of {town}?", "answer": [answer], "options": [], **more}


def choice_row(town: str, number: int) -> dict:
    options = [f"The {craft} of {town}" for craft in CRAFTS[:4]]
    return infbench_row(town, number, options[number % 4], options=options)


def case_row(town: str, number: int) -> dict:
    return {
        "id": f"CASE-{number}",
        "sources": [f"Complaint. {story(town, 10 + 30 * number)}", f"Order. {story(town, 30 * number)}"],
        "summary/short": None if number == 2 else f"The {CRAFTS[number % 5]} sued {town}. The court agreed.",
        "summary/long": f"In the long run the {CRAFTS[number % 5]} of {town} sued, and the court agreed to it all.",
        "summary/tiny": None,
    }


def _lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def contents() -> dict[str, str]:
    towns = list(enumerate(TOWNS))
    tales = [infbench_row(town, n, f" {town} is a town. It has a {CRAFTS[n % 5]}.\n", input="") for n, town in towns]
    points = [{"id": n, "keypoints": [f"{town} is a town", f"it has a {CRAFTS[n % 5]}"]} for n, town in towns]
    cases = [{"id": f"CASE-{n}", "summary/short_keypoints": ["a suit", "a court", "{town}"]} for n, _ in towns]
    return {
        "asqa_eval_gtr_top2000.json": json.dumps([asqa_row(town) for town in TOWNS]),
        "qampari_eval_gtr_top2000.json": json.dumps([qampari_row(town) for town in TOWNS]),
        "asqa_revised.json": json.dumps(demonstrations("asqa")),
        "qampari_revised.json": json.dumps(demonstrations("qampari")),
        "narrativeqa_test.jsonl": _lines(narrativeqa_row(town, n) for n, town in towns),
        "narrativeqa_train.jsonl": _lines(narrativeqa_row(f"Old {town}", n) for n, town in towns),
        "longbook_qa_eng.jsonl": _lines(infbench_row(town, n, f"the weaver of {town}") for n, town in towns),
        "longbook_choice_eng.jsonl": _lines(choice_row(town, n) for n, town in towns),
        "longbook_sum_eng.jsonl": _lines(tales),
        "longbook_sum_eng_keypoints.jsonl": _lines(points),
        "multi_lexsum_validation.jsonl": _lines(case_row(town, n) for n, town in towns),
        "multi_lexsum_train.jsonl": _lines(case_row(f"Old {town}", n) for n, town in towns),
        "multi_lexsum_val.jsonl": _lines(cases),
    }


def write_cite_longqa_summ(folder: Path) -> None:
    for name, content in contents().items():
        (folder / name).write_text(content, encoding="utf-8")
