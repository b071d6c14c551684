"""Rows in the schemas of InfiniteBench, SCROLLS, ZeroSCROLLS, L-Eval, BAMBOO and LooGLE, written for these tests."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from longlens.tasks import leval

TEXT = "Ada keeps the mill of Elm. It has 7 bridges. Ben waits at the station {n}.\n"
OPTIONS = ["the mill", "the well", "the tower", "the yard"]
KEYS = {f"k{n}": f"v-{n}" for n in range(4)}


def infinitebench(n: int) -> dict[str, dict]:
    row = {"id": n, "context": TEXT.format(n=n) * 3, "input": "What is it?", "answer": ["71432"], "options": []}
    return {
        "passkey": row | {"input": "What is the pass key?"},
        "number_string": row | {"input": "What is the sequence of digits?", "answer": "2277446600"},
        "kv_retrieval": row | {"context": json.dumps(KEYS), "input": 'Key: "k2"', "answer": "v-2"},
        "longbook_qa_chn": row | {"input": "谁在车站？", "answer": ["本"]},
        "longdialogue_qa_eng": row | {"context": "$$MASK$$: Hello.\nBEN: Ada!", "answer": ["ADA", "MISS ADA"]},
        "math_find": row
        | {"context": "[3, 1, 2]", "input": "The second largest number of the list is: ", "answer": [2]},
        "math_calc": row | {"context": "1 + 2 - 1", "input": "", "answer": [1, 3, 2]},
        "code_run": row | {"input": "Please give me func_3(-7).", "answer": [-6]},
        "code_debug": row | {"input": "", "answer": ["the well", "B"], "options": OPTIONS},
    }


def scrolls(n: int) -> dict[str, list[dict]]:
    text, key = TEXT.format(n=n), f"s{n}"
    listed = "\n".join(f" ({letter}) {option}" for letter, option in zip("ABCD", OPTIONS, strict=True))

    def rows(text, *outputs):
        return [{"id": key, "pid": f"{key}_{part}", "input": text, "output": one} for part, one in enumerate(outputs)]

    return {
        "gov_report": rows(text, "Ada keeps a mill."),
        "summ_screen_fd": rows(text, "Ben waits."),
        "qmsum": rows(f"What is said?\n\n{text}", "There is a mill."),
        "narrative_qa": rows(f"Who waits?\n\n{text}", "Ben", "Ben of Elm"),
        "qasper": rows(f"How many bridges?\n\n{text}", "7", "seven"),
        "quality": rows(f"What does Ada keep?\n\n{listed}\n\n\n{text}", "the  mill"),
        "contract_nli": rows(f"Ada keeps it.\n\n{text}", "Entailment"),
    }


def zero_scrolls(n: int) -> dict[str, list[dict]]:
    def row(query, ends, *outputs):
        begun = "You are given a report.\n\nReport:\n"
        text = TEXT.format(n=n) * 3
        whole = f"{begun}{text}\n\n{query}{ends}"
        places = {
            "document_start_index": len(begun),
            "document_end_index": len(begun + text),
            "query_start_index": len(whole) - len(query + ends),
            "query_end_index": len(whole) - len(ends),
            "truncation_seperator": "... [The rest of the report is omitted]",
        }
        return [{"id": f"z{n}", "pid": f"z{n}_0", "input": whole, "output": output} | places for output in outputs]

    return {
        **{name: row("", "Summary:\n", "Ada keeps a mill.") for name in ("gov_report", "summ_screen_fd")},
        **{name: row("Query:\nWho?\n\n", "Answer:\n", "Ben waits.", "He waits.") for name in ("qmsum", "squality")},
        **{name: row("Question:\nWho?\n\n", "Answer:\n", "Zoë") for name in ("qasper", "narrative_qa", "musique")},
        "quality": row("Question:\nWhat?\n(A) mill\n(B) well\n\n", "Answer:\n", "(A) mill"),
        "space_digest": row("How many are positive?\n\n", "Percentage of Positive Reviews:\n", "60%"),
        "book_sum_sort": row("In what order?\n\n", "Summary IDs in Correct Order:\n", "2, 1, 3"),
    }


def l_eval(name: str, n: int) -> dict:
    kind = {"f1": "f1", "rouge": "rouge"}.get(leval.SETS[name].metric, "exam")
    output = {"gsm100": "18", "codeU": "[1, 2]", "sci_fi": "True [fact: False]", "quality": "(B) the well"}
    answer = output.get(name, "B" if name in leval.OPTIONS else "Ben of Elm waits")
    return {
        "instructions": ["What is it?", f"Which {{one}} is {n}?"],
        "outputs": [answer, answer],
        "input": TEXT.format(n=n) * 3,
        "source": "x",
        "evaluation": kind,
    }


def bamboo(n: int) -> dict[str, dict]:
    text = TEXT.format(n=n)
    choice = {
        "question": "What?",
        "evidence": "",
        "options": [f"{x}. y" for x in "ABCD"],
        "answer": "B",
        "content": text,
    }
    hypothesis = {"title": "x", "content": text, "hypothesis": "Ada keeps it.", "answer": n % 2 == 0}
    return {
        "altqa": {"content": f"Answer with a number\n\n{text}", "answer": "1964"},
        "meetingqa": choice,
        "paperqa": choice | {"evidence": "a\tb"},
        "meetingpred": {"content": f'"{text}" said by', "answer": "Ada AM"},
        "showspred": {"content": f'"{text}" said by', "answer": "Ben"},
        "senhallu": hypothesis,
        "abshallu": hypothesis,
        "reportsumsort": {"content": text, "answer": [4, 3, 2, 1, 0], "summaries": [f"Event {i}" for i in range(5)]},
        "showssort": {"content": [f"Part {i}" for i in range(5)], "answer": [2, 0, 1, 3, 4]},
    }


def loogle(n: int) -> dict[str, dict]:
    text = TEXT.format(n=n) * 3
    pairs = [{"Q": "Who waits?", "A": "Ben.", "S": "x"}, {"Q": f"Where {n}?", "A": "At the station.", "S": "y"}]
    gaps = {"Q": "<mask-0> keeps it", "A": {"<mask-0>": "Ada Elm", "<mask-1>": "Ben"}, "S": "x"}
    return {  # the first two as they were published first, the others as they are now
        "shortdep_qa": {"input": text, "title": "x", "qa_pairs": str(pairs), "output": "none"},
        "shortdep_cloze": {"input": text, "title": "x", "qa_pairs": str([gaps]), "output": "none"},
        "longdep_qa": {"context": text, "question": "Who waits?", "answer": "Ben.", "evidence": ["x"]},
        "summarization": {"context": text, "question": None, "answer": "Ada keeps a mill."},
    }


def _lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path) -> None:
    files = {f"{name}.jsonl": [infinitebench(n)[name] for n in range(3)] for name in infinitebench(0)}
    files |= {f"{name}.jsonl": [l_eval(name, n) for n in range(2)] for name in leval.SETS}
    files |= {
        f"{name}_{size}.jsonl": [bamboo(n)[name] for n in range(2)] for name in bamboo(0) for size in ("4k", "16k")
    }
    files |= {f"{name}.jsonl": [loogle(n)[name] for n in range(2)] for name in loogle(0)}
    for name in zero_scrolls(0):
        files[f"tau/zero_scrolls/{name}/validation.jsonl"] = [row for n in range(2) for row in zero_scrolls(n)[name]]
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(_lines(rows).replace("a\\tb", "a\tb"), encoding="utf-8")  # as BAMBOO has it
    (folder / "tau/scrolls").mkdir()
    for name in scrolls(0):
        with zipfile.ZipFile(folder / f"tau/scrolls/{name}.zip", "w") as archive:
            made = zipfile.ZipInfo(f"{name}/validation.jsonl")  # of 1980, so that its hash is the same
            archive.writestr(made, _lines(row for n in range(2) for row in scrolls(n)[name]))
