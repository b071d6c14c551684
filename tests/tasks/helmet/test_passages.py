"""RAG and re-ranking: prompts, files for lengths, which rows are asked, and how replies are scored."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks import get_task
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.base import find_answers, split_prefix
from longlens.tasks.helmet.passages import QUESTIONS, demonstrations, open_passages, sample_order
from tests.tasks.fixtures import LENGTH, TOKENIZER, task
from tests.tasks.metrics.reference import ndcg

RAG = ["helmet_nq", "helmet_triviaqa", "helmet_hotpotqa", "helmet_popqa"]
DEMONSTRATIONS = {
    "helmet_nq": "kilt/nq-train-multikilt_1000_k3_dep6.jsonl",
    "helmet_triviaqa": "kilt/triviaqa-train-multikilt_1000_k3_dep6.jsonl",
    "helmet_hotpotqa": "kilt/hotpotqa-train-multikilt_1000_k3_dep3.jsonl",
    "helmet_popqa": "kilt/popqa_test_1000_k3_dep6.jsonl",
    "helmet_msmarco": "msmarco/test_reranking_data_k10_dep3.jsonl",
}
RAG_TEMPLATE = (
    "Use the given documents to write a concise and short answer to the question. Write your answer in the following "
    "format:\nAnswer: [answer]\n\n{demos}{context}\n\nQuestion: {question}\nAnswer:"
)
RERANK_TEMPLATE = (
    "You are provided with a list of documents, each indicated by their ID. Rank each document based on their "
    "relevance to the question in descending order from most relelvant to least relevant texts. Include all documents "
    "in the rankings. Write your answer using the unique IDs, with the following format:\nRanking: ID3 > ID1 > ID2\n\n"
    "{demos}{context}\n\nQuery: {question}\nRanking:"
)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def build(name, folder, samples=3, **arguments):
    return task(name, folder).build(**({"length": LENGTH, "samples": samples, "tokenizer": TOKENIZER} | arguments))


def key_of(row):
    return str(next(row[key] for key in ("qid", "id", "question") if key in row))


def naive_demonstrations(rows, asked):
    """data.py, load_qa and load_msmarco_rerank, with another shuffle: shuffled by the key's hash, each key once."""
    order = [place for place, row in enumerate(rows) if key_of(row) != asked]
    random.Random(int(hashlib.sha256(asked.encode("utf-8")).hexdigest(), 16) % 2**31).shuffle(order)
    chosen, keys = [], set()
    for row in (rows[place] for place in order):
        if key_of(row) not in keys:
            keys.add(key_of(row))
            chosen.append(row)
    return chosen[:2]


def rag_context(row):
    return "\n\n".join("Document (Title: {title}): {text}".format(**one) for one in row["ctxs"])


def rerank_context(row):
    template = (
        "[ID: {id}] Document (Title: {title}): {text}" if "title" in row["ctxs"][0] else "[ID: {id}] Document: {text}"
    )
    return "\n\n".join(template.format(**one) for one in row["ctxs"])


def ranking_of(row):
    return " > ".join(one["id"] for one in sorted(row["ctxs"], key=lambda one: one["label"], reverse=True))


@pytest.mark.parametrize("name", RAG)
def test_a_rag_prompt_is_helmets_template_filled_with_a_row(name, folder):
    shown = rows_of(folder / DEMONSTRATIONS[name])
    if name == "helmet_popqa":
        shown = [row for row in shown if math.log10(row["s_pop"]) < 3]
    for sample in build(name, folder, samples=7):
        rows = rows_of(folder / "kilt" / sample.metadata["data"]["file"])
        row = next(
            row
            for row in rows
            if (key_of(row), row["depth"]) == (sample.metadata["question"], sample.metadata["depth"])
        )
        demos = "\n\n".join(
            f"{rag_context(one)}\n\nQuestion: {one['question']}\nAnswer: {one['answers'][0]}"
            for one in naive_demonstrations(shown, key_of(row))
        )
        wanted = RAG_TEMPLATE.format(demos=demos + "\n\n", context=rag_context(row), question=row["question"])
        assert sample.prompt + sample.answer_prefix == wanted
        assert sample.prompt[slice(*sample.context_span)] == rag_context(row)
        assert sample.answers == row["answers"]
        gold = sample.context_span[0] + rag_context(row).index(row["answers"][0])
        assert sample.answer_spans == [(gold, gold + len(row["answers"][0]))]  # not in "Mayor First 75"
        assert sample.metadata["passages"] == 20


def test_a_rerank_prompt_is_helmets_template_filled_with_a_row(folder):
    shown = rows_of(folder / DEMONSTRATIONS["helmet_msmarco"])
    rows = rows_of(folder / "msmarco" / "test_reranking_data_k14_dep3.jsonl")
    seen = set()
    for sample in build("helmet_msmarco", folder, samples=27):
        (row,) = (row for row in rows if rerank_context(row) == sample.prompt[slice(*sample.context_span)])
        demos = "".join(
            f"{rerank_context(one)}\n\nQuery: {one['query']}\nRanking: {ranking_of(one)}\n\n"
            for one in naive_demonstrations(shown, row["qid"])
        )
        wanted = RERANK_TEMPLATE.format(demos=demos, context=rerank_context(row), question=row["query"])
        assert sample.prompt + sample.answer_prefix == wanted
        assert sample.answers == [ranking_of(row)]
        assert sample.metadata["relevance"] == {one["id"]: one["label"] for one in row["ctxs"]}
        seen.add((row["qid"], rerank_context(row)))
    assert len(seen) == 27  # every row once


def test_titles_of_passages_are_shown_where_there_are_some(folder, tmp_path):
    for passages in (10, 14):
        name = f"test_reranking_data_k{passages}_dep3.jsonl"
        rows = rows_of(folder / "msmarco" / name)
        for row in rows:
            row["ctxs"] = [one | {"title": f"T{one['id']}"} for one in row["ctxs"]]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sample,) = build("helmet_msmarco", tmp_path, samples=1)
    first = next(iter(sample.metadata["relevance"]))
    assert sample.prompt[sample.context_span[0] :].startswith(f"[ID: {first}] Document (Title: T{first}): In the year")


@pytest.mark.parametrize("name", [*RAG, "helmet_msmarco"])
def test_demonstrations_are_other_questions_and_the_same_at_any_seed(name, folder):
    shown = {}
    for seed in (1, 2):
        for sample in build(name, folder, samples=9 if name != "helmet_popqa" else 5, seed=seed):
            asked, questions = sample.metadata["question"], sample.metadata["demonstrations"]["questions"]
            assert len(set(questions)) == 2
            assert asked not in questions
            assert shown.setdefault(asked, questions) == questions
    assert len({tuple(questions) for questions in shown.values()}) > 2


def test_no_demonstrations_need_no_file(folder, tmp_path):
    name = "nq-dev-multikilt_1000_k20_dep6.jsonl"
    shutil.copy(folder / "kilt" / name, tmp_path)
    (sample,) = get_task("helmet_nq", data_dir=tmp_path, shots=0).build(length=5000, samples=1, tokenizer=TOKENIZER)
    assert sample.prompt.startswith(RAG_TEMPLATE.partition("{")[0] + "Document (Title: ")
    assert "demonstrations" not in sample.metadata
    with pytest.raises(UserError, match=r"helmet_nq: no kilt/nq-train-multikilt_1000_k3_dep6\.jsonl or nq-train"):
        get_task("helmet_nq", data_dir=tmp_path).build(length=5000, samples=1, tokenizer=TOKENIZER)


def test_popqa_asks_and_shows_little_known_entities_alone(folder):
    unknown = {str(number) for number in range(9) if (120, 999, 1000, 50_000)[number % 4] < 1000}
    samples = build("helmet_popqa", folder, samples=6 * len(unknown))
    assert {sample.metadata["question"] for sample in samples} == unknown
    assert {one for sample in samples for one in sample.metadata["demonstrations"]["questions"]} <= unknown
    with pytest.raises(UserError, match=f"has {6 * len(unknown)} rows: request no more samples"):
        build("helmet_popqa", folder, samples=6 * len(unknown) + 1)


@pytest.mark.parametrize(
    ("name", "length", "passages"),
    [
        ("helmet_nq", 4096, 20),
        ("helmet_nq", 8191, 20),
        ("helmet_nq", 8192, 50),
        ("helmet_msmarco", 8191, 14),
        ("helmet_msmarco", 16000, 50),
    ],
)
def test_the_file_is_that_of_the_largest_length_that_fits(name, length, passages, folder):
    (sample,) = build(name, folder, samples=1, length=length)
    nominal = 4096 if length < 8192 else 8192
    assert (sample.metadata["passages"], sample.metadata["nominal_length"]) == (passages, nominal)
    assert f"_k{passages}_dep" in sample.metadata["data"]["file"]


def test_the_same_questions_are_asked_at_all_lengths(folder):
    short, long = (build("helmet_nq", folder, samples=12, length=length) for length in (5000, 9000))
    said = [[(s.metadata["question"], s.metadata["depth"]) for s in samples] for samples in (short, long)]
    assert said[0] == said[1]


def test_passages_may_be_given(folder):
    (sample,) = get_task("helmet_nq", data_dir=folder, passages=50).build(samples=1, tokenizer=TOKENIZER)
    assert (sample.metadata["passages"], sample.metadata["nominal_length"]) == (50, None)
    with pytest.raises(UserError, match=r"helmet_nq: no kilt/nq-dev-multikilt_1000_k7_dep6\.jsonl or nq-dev-"):
        get_task("helmet_nq", data_dir=folder, passages=7).build(samples=1, tokenizer=TOKENIZER)
    for wrong in ({"passages": 0}, {"shots": -1}):
        with pytest.raises(UserError, match="expected at least"):
            get_task("helmet_popqa", **wrong)


@pytest.mark.parametrize("length", [None, 4095])
def test_there_is_no_data_for_less_than_4096_tokens(length, folder):
    for name, sizes in (("helmet_nq", "20 for 4096, 50 for 8192"), ("helmet_msmarco", "14 for 4096, 50 for 8192")):
        with pytest.raises(UserError, match=rf"{name}: `length={length}`; expected at least 4096.*{sizes}"):
            build(name, folder, length=length)


def test_a_context_that_is_too_long_loses_its_end(folder):
    whole = get_task("helmet_nq", data_dir=folder, passages=50).build(samples=1, tokenizer=TOKENIZER)[0]
    (cut,) = get_task("helmet_nq", data_dir=folder, passages=50).build(
        samples=1, length=whole.length - 200, tokenizer=TOKENIZER
    )
    start, end = whole.context_span
    assert cut.prompt == whole.prompt[: end - 200] + whole.prompt[end:]
    assert cut.context_span == (start, end - 200)
    assert cut.metadata["cut"] == {"policy": "context-only", "characters": 200, "tokens": 200}
    assert cut.length == whole.length - 200


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 250), min_size=1, max_size=900), st.integers(0, 9))
def test_all_rows_are_taken_once_by_hundreds_of_questions(numbers, seed):
    keys = [str(number) for number in numbers]
    order = sample_order(keys, random.Random(seed))
    assert sorted(order) == list(range(len(keys)))
    asked = [keys[row] for row in order]
    questions = list(dict.fromkeys(asked))
    first = questions[:QUESTIONS]
    assert asked[: len(first)] == first
    in_first = sum(keys.count(question) for question in first)
    assert set(asked[:in_first]) == set(first)


def test_the_first_samples_are_of_all_depths_and_of_all_questions():
    keys = [f"q{number}" for number in range(250) for _ in range(6)]
    order = sample_order(keys, random.Random(4))
    depths = [row % 6 for row in order[:100]]
    assert [depths.count(depth) for depth in range(6)] == [17, 17, 17, 17, 16, 16]
    assert len({keys[row] for row in order[:100]}) == 100
    assert {keys[row] for row in order[:600]} == {keys[row] for row in order[:100]}
    assert sample_order(keys, random.Random(5)) != order


def test_too_few_demonstrations_are_an_error():
    assert demonstrations(["a", "b", "a"], "a", 1, "t") == [1]
    with pytest.raises(
        UserError, match="t: `shots=2`, but the demonstrations are of 1 other questions: pass `shots=1`"
    ):
        demonstrations(["a", "b", "b"], "a", 2, "t")


def test_white_space_at_a_prompts_end_goes_to_the_prefix():
    assert split_prefix("Why? \n", "\nAnswer:") == ("Why?", " \n\nAnswer:")


def test_answers_are_found_as_words_and_the_longest_first():
    text = "New York, not Newark or York2; York. new york"
    assert [text[slice(*span)] for span in find_answers(text, ["York", "New York", ""])] == ["New York", "York"]
    assert find_answers(text, ["(York"]) == []


@pytest.mark.parametrize(
    ("reply", "best", "exact"),
    [
        (" Mayor First 7", 1.0, 1.0),
        (" the first, of HALLAM!", 1.0, 1.0),
        (" I think that it was Mayor First 7.", 1.0, 0.0),
        (" Answer: Mayor First 7", 1.0, 1.0),
        (" Mayor First 7 was it\nQuestion: Who", 1.0, 0.0),
        (" Mayor First 70", 1.0, 0.0),  # no word boundary
        (" Mayor First", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_reply_is_scored_as_helmet_does(reply, best, exact, folder):
    made = task("helmet_nq", folder)
    sample = next(s for s in build("helmet_nq", folder, samples=9) if "Mayor First 7" in s.answers)
    assert made.score(sample, reply) == {"substring_exact_match": best, "exact_match": exact}
    assert made.score(sample, made.target(sample))["exact_match"] == 1.0


def test_a_ranking_is_scored_by_ndcg(folder):
    made = task("helmet_msmarco", folder)
    sample = build("helmet_msmarco", folder, samples=1)[0]
    relevance = sample.metadata["relevance"]
    ids = list(relevance)
    assert made.score(sample, made.target(sample)) == {"NDCG@10": 1.0}
    assert made.score(sample, " I cannot say") == {"NDCG@10": 0.0}
    for written in (" > ".join(ids), "\n[ID: " + "] > [".join(ids[::-1]) + "]", f" ID{ids[3]} > ID{ids[0]} > ID99999"):
        order = re.findall(r"\d+", written)
        wanted = ndcg({number: len(order) - place for place, number in enumerate(order)}, relevance, 10)
        assert made.score(sample, written)["NDCG@10"] == pytest.approx(wanted, abs=1e-5)
        assert 0 < wanted < 1


ANY = DataFile(names=("rows.jsonl",), source="there", schema="rows with a k")


def read(folder, content: bytes):
    (folder / "rows.jsonl").write_bytes(content)
    return open_passages(ANY, "t", folder, lambda row, place: row.get("k"))


def test_lines_are_read_when_they_are_wanted(tmp_path):
    text = '\ufeff{"k": "ä"}\n\n  \n{"other": 1}\n{"k": "b", "long": "' + "é" * 99 + '"}\r\n{"k": "c"}'
    lines = read(tmp_path, text.encode())
    assert (lines.keys, lines.numbers) == (["ä", "b", "c"], [1, 5, 6])
    assert [lines.row(index)["k"] for index in (2, 0, 1)] == ["c", "ä", "b"]
    assert lines.place(1) == "rows.jsonl, line 5"
    assert lines.described == {"file": "rows.jsonl", "sha256": hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"k": "a"}\n{"k": ', r"rows\.jsonl:2' is broken \(not JSON: .*expected rows with a k"),
        (b'{"k": "a"}\n[1]\n', r"rows\.jsonl, line 2: a list instead of an object"),
        (b'{"k": "a"}\n{"k": "\xff"}\n', r"rows\.jsonl:2' is binary: byte 0xff at offset 18"),
        (b'\n{"n": 1}\n', "no rows; expected rows with a k"),
        (b"", "no rows"),
    ],
)
def test_lines_that_are_broken_are_named(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("helmet_popqa", {"s_pop": 0}, "line 1: s_pop is 0; expected one line per question.* and a number s_pop"),
        ("helmet_popqa", {"s_pop": None}, "line 1: s_pop is None"),
        ("helmet_triviaqa", {"ctxs": []}, "answers or ctxs are empty"),
        ("helmet_triviaqa", {"answers": [3]}, "an answer is not a string"),
        ("helmet_triviaqa", {"ctxs": [{"title": "a"}]}, "line 1: no str 'text'"),
        ("helmet_triviaqa", {"question": None}, "line 1: no str 'question'"),
        ("helmet_msmarco", {"qid": 3}, "line 1: no str 'qid'"),
        ("helmet_msmarco", {"ctxs": []}, "line 1: no ctxs"),
        ("helmet_msmarco", {"ctxs": [{"id": "1", "text": "a", "label": "2"}]}, "line 1: no int 'label'"),
    ],
)
def test_rows_of_another_schema_are_named(name, change, message, folder, tmp_path):
    length = build(name, folder, samples=1)[0]
    path = folder / ("msmarco" if name == "helmet_msmarco" else "kilt") / length.metadata["data"]["file"]
    row = rows_of(path)[0] | change
    (tmp_path / path.name).write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        get_task(name, data_dir=tmp_path, shots=0).build(length=LENGTH, samples=1, tokenizer=TOKENIZER)


def test_settings_are_helmets():
    for name in RAG:
        made = get_task(name)
        assert (made.suite, made.category, made.metric) == ("helmet", "rag", "substring_exact_match")
        assert (made.max_new_tokens, made.stop, made.overlong, made.fills) == (20, ("\n",), "context-only", False)
        assert made.default_samples == (300 if name == "helmet_hotpotqa" else 600)
        assert list(made.sizes.items())[-1] == (131072, 1000)
    made = get_task("helmet_msmarco")
    assert (made.category, made.metric, made.max_new_tokens, made.default_samples) == ("rerank", "NDCG@10", 200, 129)
    assert list(made.sizes.values()) == [14, 50, 130, 285, 600, 1000]
