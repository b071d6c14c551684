"""Questions on long documents and summaries: prompts, cuts and scores against restatements of HELMET's rules."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task, metrics
from tests.tasks.fixtures import TOKENIZER
from tests.tasks.helmet.rows_cite_longqa_summ import TOWNS, case_row, choice_row, infbench_row, narrativeqa_row

NAMES = (
    "helmet_narrativeqa",
    "helmet_infbench_qa",
    "helmet_infbench_choice",
    "helmet_infbench_sum",
    "helmet_multi_lexsum",
)
OMISSION = " ... [the rest of the text is omitted]"


def built(name, folder, samples=5, length=None, **options):
    made = get_task(name, data_dir=folder, **options)
    return made, made.build(samples=samples, length=length, tokenizer=TOKENIZER)


def context(sample):
    start, end = sample.context_span
    return sample.prompt[start:end]


def naive(name, text):
    """What HELMET's loaders make of a row whose text this is, without demonstrations."""
    (number,) = [n for n, town in enumerate(TOWNS) if re.search(rf"\b{town}\b", text)]
    town = TOWNS[number]
    if name == "helmet_narrativeqa":
        row = narrativeqa_row(town, number)
        return (
            "You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
            "as concisely as you can, using a single phrase if possible.\n\n"
            f"{row['document']['text']}\n\nQuestion: {row['question']['text']}\nAnswer:"
        )
    if name == "helmet_infbench_qa":
        row = infbench_row(town, number, "")
        return (
            "You are given a story and a question. Answer the question as concisely as you can, using a single phrase "
            f"if possible.\n\n{row['context']}\n\nQuestion: {row['input']}\n\nAnswer:"
        )
    if name == "helmet_infbench_choice":
        row = choice_row(town, number)
        options = "A. {}\nB. {}\nC. {}\nD. {}".format(*row["options"])
        return (
            "You are given a story and a question with multiple choices. Choose the best answer from the options "
            "provided. Only one of the following options is correct, output the answer using one single letter (A, B, "
            f"C, or D). Don't say anything else.\n\n{row['context']}\n\nQuestion: {row['input']}\nOptions:\n{options}"
            "\n\nAnswer:"
        )
    if name == "helmet_infbench_sum":
        return (
            "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. "
            "Only write about the plot and characters of the story. Do not discuss the themes or background of the "
            "book. Do not provide any analysis or commentary.\n\n"
            f"{infbench_row(town, number, '')['context']}\n\nNow summarize the book.\n\nSummary:"
        )
    sources = "\n\n".join(case_row(town, number)["sources"])
    return (
        "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. Write "
        "a concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
        "background, the parties involved, and the outcomes of the case.\n\n"
        f"Legal documents:\n{sources}\n\nNow please summarize the case.\n\nSummary:"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_the_template_filled_in(name, folder):
    _, samples = built(name, folder, shots=0)
    assert len({context(sample) for sample in samples}) == 5
    for sample in samples:
        assert sample.prompt + sample.answer_prefix == naive(name, context(sample))
        assert sample.prompt == sample.prompt.rstrip()
        assert sample.metadata["data"].keys() == {"file", "sha256"}


DEMONSTRATION = {
    "helmet_narrativeqa": r"Question: Who found the coins of TOWN\? \nAnswer: The weaver of SAME",
    "helmet_infbench_qa": r"\[story text\]\nQuestion: Who of TOWN\?\nAnswer: the weaver of SAME",
    "helmet_infbench_choice": r"\[story text\]\nQuestion: Who of TOWN\?\nOptions:\n(?:[A-D]\. The \w+ of SAME\n){4}"
    r"Answer: [A-D]",
    "helmet_infbench_sum": r"\[story text\]\nSummary: TOWN is a town\. It has a \w+\.",
    "helmet_multi_lexsum": r"Summary: The \w+ sued TOWN\. The court agreed\.",
}
AROUND = {
    "helmet_narrativeqa": ("For example:\n\n", "\n\nNow, use the following story to answer the question:\n\n"),
    "helmet_multi_lexsum": (
        "Example summaries:\n\n",
        "\n\nNow, write a summary of the following legal documents.\nLegal documents:\n",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_demonstrations_are_of_other_documents_and_have_no_text(name, folder):
    made, samples = built(name, folder, samples=6)
    drawn = []
    for sample in samples:
        before = sample.prompt[len(made.instruction) : sample.context_span[0]]
        begins, ends = AROUND.get(name, ("For example:\n\n", "\n\nNow, read the following story:\n\n"))
        one, other = (
            DEMONSTRATION[name].replace("TOWN", rf"(?P<{key}>(?:Old )?\w+)").replace("SAME", f"(?P={key})")
            for key in ("one", "other")
        )
        found = re.fullmatch(f"{re.escape(begins)}{one}\n\n{other}{re.escape(ends)}", before)
        assert found, before
        towns = [found["one"], found["other"]]
        assert towns[0] != towns[1]
        assert not any(f" of {town} " in context(sample) for town in towns)
        assert ("demonstrations" in sample.metadata) == (name in AROUND)
        drawn.append(towns)
    assert len(set(map(tuple, drawn))) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_long_document_loses_its_end_and_nothing_else(name, folder):
    made, whole = built(name, folder)
    length = max(sample.length for sample in whole) - 300
    cut = made.build(samples=5, length=length, tokenizer=TOKENIZER)
    shortened = 0
    for full, sample in zip(whole, cut, strict=True):
        assert sample.length <= length
        if full.length <= length:
            assert sample.prompt == full.prompt
            continue
        shortened += 1
        assert sample.length == length  # a byte is a token
        kept = context(sample).removesuffix(OMISSION)
        assert context(full).startswith(kept)
        assert context(sample) == kept + OMISSION
        assert sample.prompt.replace(context(sample), context(full)) == full.prompt
        assert sample.metadata["cut"]["policy"] == "context-only"
    assert shortened


@pytest.mark.parametrize("name", NAMES)
def test_samples_depend_on_nothing_but_their_names(name, folder):
    made, five = built(name, folder)
    assert made.build(samples=3, tokenizer=TOKENIZER) == five[:3]
    again = get_task(name, data_dir=folder).build(samples=5, seed=7, tokenizer=TOKENIZER)
    assert [context(sample) for sample in again] != [context(sample) for sample in five]


def test_short_documents_can_be_left_out(folder):
    _, samples = built("helmet_narrativeqa", folder, samples=4, min_characters=8_000)
    assert all(len(context(sample)) >= 8_000 for sample in samples)
    with pytest.raises(UserError, match=r"has 4 documents of at least 8,000 characters: request"):
        built("helmet_narrativeqa", folder, samples=5, min_characters=8_000)
    with pytest.raises(UserError, match=r"longbook_qa_eng\.jsonl has 7 documents: request no more samples"):
        built("helmet_infbench_qa", folder, samples=8)


def test_what_cannot_be_is_refused(folder):
    with pytest.raises(UserError, match=r"`shots=7`, but longbook_sum_eng\.jsonl has 6 rows to show: pass `shots=6`"):
        built("helmet_infbench_sum", folder, shots=7)
    for wrong in ({"shots": -1}, {"min_characters": -1}):
        with pytest.raises(UserError, match="expected at least 0"):
            get_task("helmet_narrativeqa", **wrong)
    with pytest.raises(UserError, match=r"put narrativeqa_test\.jsonl or narrativeqa_test\.parquet"):
        get_task("helmet_narrativeqa").build(samples=1, tokenizer=TOKENIZER)


def test_cases_without_a_short_summary_do_not_count(folder):
    _, samples = built("helmet_multi_lexsum", folder, samples=6)
    assert TOWNS[2] not in {word for sample in samples for word in re.findall(r"\w+", sample.prompt)}
    with pytest.raises(UserError, match="has 6 documents"):
        built("helmet_multi_lexsum", folder, samples=7)


def test_settings_are_helmets():
    tokens = {name: get_task(name).max_new_tokens for name in NAMES}
    assert list(tokens.values()) == [100, 10, 10, 1200, 400]  # longqa.yaml, summ.yaml: generation_max_length
    assert {get_task(name).default_samples for name in NAMES} == {100}
    assert get_task("helmet_infbench_qa").file.hub == "xinrongzhang2022/InfiniteBench@longbook_qa_eng.jsonl"


def test_a_choice_is_a_letter(folder):
    made, samples = built("helmet_infbench_choice", folder, samples=7)
    assert {sample.answers[0] for sample in samples} == set("ABCD")
    for sample in samples:
        letter, option = sample.answers
        assert f"\n{option}\n" in f"{sample.prompt}\n"
        assert option.startswith(f"{letter}. The ")
        assert sorted([letter, *sample.metadata["distractors"]]) == list("ABCD")
        assert made.target(sample) == f" {letter}"
        wrong = sample.metadata["distractors"][-1]
        for reply, score in (
            (f" {letter}", 1.0),
            (f"\nAnswer: {letter}.\nBecause", 1.0),
            (f" {letter}\nQuestion: Who else?\nAnswer: {wrong}", 1.0),  # a base model writes on
            (f"I take {option.upper()} here", 1.0),
            (option, 1.0),
            (f" {wrong}", 0.0),
            (f"{wrong}. or {letter}.", 0.0),
            (f"{letter} is what I say", 0.0),
            ("", float(letter == "A")),  # HELMET's normalization drops the article
        ):
            assert made.score(sample, reply) == {"exact_match": score}, (reply, letter)


@pytest.mark.parametrize("name", ["helmet_narrativeqa", "helmet_infbench_qa"])
def test_answers_are_scored_best_of_reply_and_its_first_line(name, folder):
    made, (sample, *_) = built(name, folder)
    right = sample.answers[0]
    scores = made.score(sample, f" {right}\nQuestion: and now?\nAnswer: nothing")
    assert set(scores.values()) == {1.0}
    assert next(iter(scores)) == made.metric == "rougeL_f1"
    near = made.score(sample, f"Answer: {right} or so, I think")
    texts = (f"Answer: {right} or so, I think", f"{right} or so, I think")
    assert near["rougeL_f1"] == max(metrics.rouge_l(text, answer) for text in texts for answer in sample.answers) < 1
    assert (near["exact_match"], near["substring_exact_match"]) == (0.0, 1.0)


def test_without_a_judge_a_summary_has_rouge(folder):
    made, (sample, *_) = built("helmet_multi_lexsum", folder)
    (wanted,) = sample.answers
    assert made.score(sample, f" {wanted}\n\nSummary: next") == {"rougeL_f1": 1.0, "f1": 1.0}
    assert made.score(sample, f"Here it is.\nSummary: {wanted}") == {"rougeL_f1": 1.0, "f1": 1.0}
    assert made.score(sample, "zzz") == {"rougeL_f1": 0.0, "f1": 0.0}
    assert (made.metric, made.judged_metric) == ("rougeL_f1", "judge")


FILES = {
    "helmet_narrativeqa": "narrativeqa_test.jsonl",
    "helmet_infbench_qa": "longbook_qa_eng.jsonl",
    "helmet_infbench_choice": "longbook_choice_eng.jsonl",
    "helmet_multi_lexsum": "multi_lexsum_validation.jsonl",
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("helmet_narrativeqa", {"document": {}}, "row 1: no str 'text'"),
        ("helmet_narrativeqa", {"answers": []}, "row 1: no answers"),
        ("helmet_infbench_qa", {"answer": []}, "row 1: no list of strings 'answer'"),
        ("helmet_infbench_qa", {"id": "x"}, "row 1: no int 'id'"),
        ("helmet_infbench_choice", {"options": ["a"]}, "row 1: 1 options; expected"),
        ("helmet_infbench_choice", {"answer": ["a"]}, "row 1: an answer that is not one of the options"),
        ("helmet_multi_lexsum", {"sources": [None]}, "row 1: sources that are not strings"),
        ("helmet_multi_lexsum", {"summary/long": None}, "row 1: no str 'summary/long'"),
    ],
)
def test_rows_of_another_schema_are_refused(name, change, message, folder, tmp_path):
    row = json.loads((folder / FILES[name]).read_text().split("\n")[0])
    (tmp_path / FILES[name]).write_text(json.dumps(row | change))
    with pytest.raises(UserError, match=message):
        get_task(name, data_dir=tmp_path, shots=0).build(samples=1, tokenizer=TOKENIZER)


def test_an_answer_may_be_a_text_and_a_file_parquet(folder, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    row = infbench_row("Arle", 0, "x") | {"answer": "the weaver of Arle"}
    (tmp_path / "longbook_qa_eng.jsonl").write_text(json.dumps(row))
    _, (sample,) = built("helmet_infbench_qa", tmp_path, samples=1, shots=0)
    assert sample.answers == ["the weaver of Arle"]
    shutil.copy(folder / "narrativeqa_train.jsonl", tmp_path)
    rows = [narrativeqa_row(town, number) for number, town in enumerate(TOWNS)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "narrativeqa_test.parquet")
    prompts = [[one.prompt for one in built("helmet_narrativeqa", place)[1]] for place in (folder, tmp_path)]
    assert prompts[0] == prompts[1]
