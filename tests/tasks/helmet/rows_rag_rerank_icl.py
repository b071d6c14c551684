"""Rows written for these tests in the schemas that HELMET's RAG, re-ranking and many-shot tasks read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

TOWNS = ("Arle", "Bruck", "Corvo", "Dunmar", "Eskil", "Farrow", "Gorse", "Hallam", "Ivel")
TRADES = ("baker", "miller", "smith", "cooper", "weaver", "tanner", "glazier")
DEPTHS = {6: (0.0, 0.2, 0.4, 0.6, 0.8, 0.95), 3: (0.0, 0.5, 0.95)}


def passage(town: str, number: int) -> dict:
    trade = TRADES[number % len(TRADES)]
    return {
        "id": f"{town}-{number}",
        "title": f"{town} {number}",
        "text": f"In the year {1700 + number} the {trade} of {town} paid {number + 2} coins.",
        "hasanswer": False,
    }


def question_rows(word: str, passages: int, depths: int, *, ids: bool = True, popular: bool = False) -> list[dict]:
    rows = []
    for number, town in enumerate(TOWNS):
        answers = [f"Mayor {word.title()} {number}", f"{word.title()} of {town}"]
        gold = {"title": f"Mayors of {town}", "text": f"{answers[0]} was the last mayor of {town}, not {answers[0]}5."}
        for depth in DEPTHS[depths]:
            place = round(depth * (passages - 1))
            ctxs = [passage(town, other) for other in range(passages - 1)]
            row = {
                "question": f"Who was the last {word} mayor of {town}?",
                "answers": answers,
                "ctxs": [*ctxs[:place], gold, *ctxs[place:]],
                "depth": depth,
            }
            if ids:
                row["id"] = number if popular else f"{word}-{number}"
            if popular:
                row["s_pop"] = (120, 999, 1000, 50_000)[number % 4]
            rows.append(row)
    return rows


def query_rows(passages: int) -> list[dict]:
    rows = []
    for number, town in enumerate(TOWNS):
        ctxs = [
            {
                "id": str(100 * number + other),
                "text": passage(town, other)["text"],
                "label": max(0, 3 - other // 2),
            }
            for other in range(passages)
        ]
        for turn in range(3):
            order = ctxs[turn::3] + [one for place, one in enumerate(ctxs) if place % 3 != turn]
            rows.append({"qid": f"q{number}", "query": f"who paid coins in {town.lower()}", "ctxs": order})
    return rows


def labeled_rows(labels: Iterable[int], each: int, fields: tuple[str, ...], said: str) -> list[dict]:
    return [
        {"text": f"{said} {TRADES[label % 7]} {label} do on day {day}?", **dict.fromkeys(fields, label)}
        for day in range(each)
        for label in labels
    ]


COARSE = labeled_rows(range(6), 9, ("coarse_label",), "What did the")
TREC = [row | {"fine_label": 7 * row["coarse_label"] + place // 6 % 2} for place, row in enumerate(COARSE)]
CLINIC = range(0, 151, 15)


def _jsonl(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: list[dict]) -> None:
    from pyarrow import Table, parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(Table.from_pylist(rows), path)


def write_rag_rerank_icl(folder: Path) -> None:
    """A data folder as HELMET's, and the folders of the many-shot data sets beside its own."""
    kilt, msmarco = folder / "kilt", folder / "msmarco"
    for passages in (20, 50):
        _jsonl(kilt / f"nq-dev-multikilt_1000_k{passages}_dep6.jsonl", question_rows("first", passages, 6, ids=False))
    _jsonl(kilt / "nq-train-multikilt_1000_k3_dep6.jsonl", question_rows("former", 3, 6, ids=False))
    _jsonl(kilt / "triviaqa-dev-multikilt_1000_k20_dep6.jsonl", question_rows("famous", 20, 6))
    _jsonl(kilt / "triviaqa-train-multikilt_1000_k3_dep6.jsonl", question_rows("old", 3, 6))
    _jsonl(kilt / "hotpotqa-dev-multikilt_1000_k20_dep3.jsonl", question_rows("tall", 20, 3))
    _jsonl(kilt / "hotpotqa-train-multikilt_1000_k3_dep3.jsonl", question_rows("young", 3, 3))
    _jsonl(kilt / "popqa_test_1000_k20_dep6.jsonl", question_rows("known", 20, 6, popular=True))
    _jsonl(kilt / "popqa_test_1000_k3_dep6.jsonl", question_rows("known", 3, 6, popular=True))
    for passages in (10, 14, 50):
        _jsonl(msmarco / f"test_reranking_data_k{passages}_dep3.jsonl", query_rows(passages))
    _jsonl(folder / "trec" / "train.jsonl", TREC)
    _jsonl(folder / "trec" / "test.jsonl", [row | {"text": "Now, " + row["text"]} for row in TREC[:30]])
    _parquet(folder / "banking77" / "train.parquet", labeled_rows(range(12), 5, ("label",), "Why does my"))
    _parquet(folder / "banking77" / "test.parquet", labeled_rows(range(12), 2, ("label",), "Where does the"))
    _jsonl(folder / "clinc_oos" / "train.jsonl", labeled_rows(CLINIC, 4, ("intent",), "Tell me what the"))
    _jsonl(folder / "clinc_oos" / "validation.jsonl", labeled_rows(CLINIC, 2, ("intent",), "Ask what the"))
    _jsonl(folder / "nlu_evaluation_data" / "train.jsonl", labeled_rows(range(0, 68, 9), 12, ("label",), "Wake the"))
