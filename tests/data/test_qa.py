"""Synthetic long questions: passages, pairs, and the folder they are written to."""

import errno
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.data.chat import chat_dataset
from longlens.data.qa import (
    PROMPT,
    QAPair,
    QASettings,
    Refusal,
    Span,
    crop_around,
    is_grounded,
    make_messages,
    read_pair,
    sample_passages,
    tokens_inside,
)
from longlens.data.qa_folder import REFUSED, ROWS, qa_folder
from longlens.errors import LonglensWarning, UserError
from tests.data.test_chat import CHATML, tokenizer_of
from tests.tiny import OWN_GENERATION, byte_tokenizer, tiny_model

TOKENIZER = tokenizer_of(CHATML)


class Written(NamedTuple):
    text: str
    is_complete: bool = True


class Parrot:
    """Asks for the first word of a passage; and what `answers` says of passages that hold a word."""

    name, identity_sha256, generation = "parrot", "0", {"in_force": {"do_sample": False}}

    def __init__(self, answers=None):
        self.answers, self.prompts = answers or {}, []

    def generate(self, prompts):
        self.prompts += prompts
        return [self.written(prompt.split("\n\n", 1)[1]) for prompt in prompts]

    def written(self, passage):
        for word, written in self.answers.items():
            if word in passage:
                return written if isinstance(written, Written) else Written(written)
        return Written(f"Question: What begins with {passage.split()[0][0]}?\nAnswer: {passage.split()[0]}")


def spans_of(text):
    """Of byte tokens of ASCII text."""
    return np.array([(at, at + 1) for at in range(len(text))], dtype=np.int64).reshape(-1, 2)


def passages(text, id="d", **changes):
    return sample_passages(text, spans_of(text), id, QASettings(**({"passage_tokens": 40} | changes)))


PARAGRAPHS = "\n\n".join(f"Paragraph {at:02} has a line.\nAnd   more." for at in range(30))


def test_a_passage_is_the_same_for_a_seed_and_id_and_another_for_others():
    long = "word " * 2000
    assert passages(long) == passages(long)
    # Pinned: another machine, another version, another order of documents give this too.
    assert passages(long) == [Span(4340, 4374)]
    found = {tuple(passages(long, id, seed=seed)) for id in "abcdefgh" for seed in (0, 1)}
    assert len(found) == 16
    several = passages(long, pairs=5)
    assert several[:1] == passages(long)
    assert all(a.end <= b.start or b.end <= a.start for a in several for b in several if a is not b)


def test_a_passage_is_whole_paragraphs_where_these_are_at_least_half():
    whole = {match.start(): match.end() for match in re.finditer(r"Paragraph.*\n.*", PARAGRAPHS)}
    for id in range(20):
        (found,) = passages(PARAGRAPHS, str(id), passage_tokens=120)
        assert found.start in whole
        assert found.end in whole.values()
        assert 60 <= found.end - found.start <= 120
    for id in range(20):  # one paragraph fits, or two
        (found,) = passages(PARAGRAPHS, str(id), passage_tokens=90)
        assert found.end - found.start >= 45
    for id in range(20):  # no paragraph fits
        (found,) = passages(PARAGRAPHS, str(id), passage_tokens=20)
        text = PARAGRAPHS[slice(*found)]
        assert text == text.strip()
        assert set(text.split()) <= set(PARAGRAPHS.split())
        assert len(text) <= 20


@given(text=st.text("ab \n", max_size=120), tokens=st.integers(8, 30), pairs=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_passages_are_inside_short_enough_and_apart(text, tokens, pairs, seed):
    found = passages(text, pairs=pairs, passage_tokens=tokens, seed=seed)
    assert len(found) <= pairs
    assert len(text) >= tokens or not found
    for passage in found:
        assert 0 <= passage.start < passage.end <= len(text)
        assert passage.end - passage.start <= tokens
        assert text[slice(*passage)].strip()
    places = [at for passage in found for at in range(*passage)]
    assert len(places) == len(set(places))


@given(number=st.integers(8, 300), length=st.integers(1, 8), place=st.floats(0, 1), budget=st.integers(8, 300))
def test_the_part_that_is_kept_holds_the_passage_as_deep_as_the_whole(number, length, place, budget):
    first = round(place * (number - length))
    passage = Span(first, first + length)
    kept = crop_around(passage, number, min(budget, number))
    assert kept.end - kept.start == min(budget, number)
    assert 0 <= kept.start <= passage.start < passage.end <= kept.end <= number
    if first == 0:
        assert kept.start == 0
    if first == number - length:
        assert kept.end == number
    if number > length:
        room = (kept.end - kept.start) - length
        assert abs((first - kept.start) - room * first / (number - length)) <= 1


def test_tokens_of_characters():
    spans = np.array([(0, 3), (3, 3), (3, 4), (6, 9), (6, 9)])
    assert tokens_inside(Span(0, 3), spans) == (0, 1)
    assert tokens_inside(Span(1, 4), spans) == (0, 3)
    assert tokens_inside(Span(6, 7), spans) == (3, 5)
    assert tokens_inside(Span(4, 6), spans) == (3, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Question: Who?\nAnswer: Ann.", QAPair("Who?", "Ann.")),
        (
            "Here you are.\n\n**Question:** Who\nis it?\n\n**Answer:** Ann.\n\nAnd Bob.",
            QAPair("Who\nis it?", "Ann.\n\nAnd Bob."),
        ),
        (
            "question: Why ask a question: now?\nANSWER: No answer: none.",
            QAPair("Why ask a question: now?", "No answer: none."),
        ),
        ("### Question: **Who?**\n### Answer: Ann", QAPair("Who?", "Ann")),
        ("Who? Ann.", Refusal("no question")),
        ("Question: Who?\nAnn.", Refusal("no answer")),
        ("Answer: Ann.", Refusal("no question")),
        ("Answer: Ann.\nQuestion: Who?", Refusal("the answer comes first")),
        ("Question:\nAnswer: Ann.", Refusal("empty question")),
        ("Question: Who?\nAnswer: \n", Refusal("empty answer")),
        ("Question: Who?\nAnswer: Ann.\nQuestion: Where?\nAnswer: Here.", Refusal("several questions")),
        ("Question: Who?\nAnswer: Ann.\nAnswer: Bob.", Refusal("several answers")),
        ("", Refusal("no question")),
    ],
)
def test_a_pair_is_one_question_and_then_one_answer(text, expected):
    assert read_pair(Written(text), "", QASettings()) == expected


def test_what_did_not_come_to_an_end_is_refused():
    stopped = Refusal("stopped by --max-new-tokens")
    assert read_pair(Written("Question: Who?\nAnswer: An", False), "", QASettings()) == stopped
    several = Written("Question: Who?\nAnswer: Ann.\nQuestion: W", False)
    assert read_pair(several, "", QASettings()) == Refusal("several questions")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Straße 4.", True),
        ("It was the STRASSE.", True),
        ("Ann and Bob", False),
        ("Road 4", False),
        ("Straße 5", False),
        ("Bob", False),
        ("Ann", True),
    ],
)
def test_grounded_answers_have_the_words_of_the_passage(answer, expected):
    passage = "Ann lives in the Straße, at number 4."
    assert is_grounded(answer, passage) == expected
    found = read_pair(Written(f"Question: Q?\nAnswer: {answer}"), passage, QASettings(grounded=True))
    assert found == (QAPair("Q?", answer) if expected else Refusal("answer is not in the passage"))
    assert read_pair(Written(f"Question: Q?\nAnswer: {answer}"), passage, QASettings()) == QAPair("Q?", answer)


@pytest.fixture
def books(tmp_path, monkeypatch):
    """Three long documents and one that is shorter than a passage."""
    monkeypatch.chdir(tmp_path)
    Path("books").mkdir()
    for name in "abc":
        Path(f"books/{name}.txt").write_text(PARAGRAPHS.replace("Paragraph", f"{name}-Paragraph"))
    Path("books/short.txt").write_text("short")
    return tmp_path


def made(out="out", generator=None, **changes):
    return qa_folder(
        ["books"],
        Parrot() if generator is None else generator,
        TOKENIZER,
        out,
        QASettings(**({"passage_tokens": 100, "max_length": 4000} | changes)),
    )


def lines(out, name=ROWS):
    return [json.loads(line) for line in Path(out, name).read_text(encoding="utf-8").splitlines()]


def test_rows_are_the_document_the_question_and_the_answer(books):
    generator = Parrot()
    counts = made(generator=generator)
    short = "document shorter than a passage"
    assert counts == {"documents": 4, "pairs": 4, "rows": 3, "cut_rows": 0, "refused": {short: 1}}
    assert json.loads(Path("out/counts.json").read_text()) == counts
    assert not Path("out/.work").exists()
    rows = lines("out")
    assert [row["id"] for row in rows] == [f"books/{name}.txt#qa0" for name in "abc"]
    for row, prompt in zip(rows, generator.prompts, strict=True):
        text = Path(row["document_id"]).read_text()
        passage = text[slice(*row["passage_span"])]
        first = passage.split()[0]
        assert prompt == PROMPT.format(passage=passage)
        assert row["messages"] == make_messages(text, QAPair(f"What begins with {first[0]}?", first))
        assert (row["document_span"], row["document_characters"]) == ([0, len(text)], len(text))
        assert (row["generator"], row["generator_sha256"], row["seed"], row["pair"]) == ("parrot", "0", 0, 0)
        assert row["generation"] == Parrot.generation
    assert len({row["prompt_sha256"] for row in rows} | {row["document_sha256"] for row in rows}) == 6
    assert [(line["document_id"], line["reason"]) for line in lines("out", REFUSED)] == [("books/short.txt", short)]
    assert len(chat_dataset(["out"], TOKENIZER, max_length=4000)) == 3


def test_long_documents_are_cut_around_the_passage_to_the_token(books):
    counts = made(max_length=400, pairs=3)
    assert (counts["rows"], counts["cut_rows"]) == (9, 9)
    for row in lines("out"):
        start, end = row["document_span"]
        assert start <= row["passage_span"][0] < row["passage_span"][1] <= end
        assert row["messages"][0]["content"].startswith(Path(row["document_id"]).read_text()[start:end] + "\n\nWhat")
    sizes = [len(row["input_ids"]) for row in chat_dataset(["out"], TOKENIZER, max_length=400)]
    assert sizes == [400] * 9  # nothing is left out, and no token of the room
    tokenizer, TOKENIZER.chat_template = TOKENIZER, None
    try:
        made("plain", max_length=400)
    finally:
        tokenizer.chat_template = CHATML
    contents = [[message["content"] for message in row["messages"]] for row in lines("plain")]
    assert {sum(map(len, both)) for both in contents} == {400 - 64}


def test_pairs_that_are_refused_are_counted_by_reason_and_kept(books):
    answers = {
        "a-P": "no pair",
        "b-P": Written("Question: Q?\nAnswer: b-Par", False),
        "c-P": "Question: Q?\nAnswer: nothing",
    }
    with pytest.warns(LonglensWarning, match=r"none of 4 pairs was accepted \(no question, .* read out.refused.log"):
        counts = made(generator=Parrot(answers), grounded=True)
    reasons = [
        "no question",
        "stopped by --max-new-tokens",
        "answer is not in the passage",
        "document shorter than a passage",
    ]
    assert counts["refused"] == dict.fromkeys(reasons, 1)
    assert [line.get("text") for line in lines("out", REFUSED)] == [
        "no pair",
        "Question: Q?\nAnswer: b-Par",
        "Question: Q?\nAnswer: nothing",
        None,
    ]
    long = Parrot({"a-P": "Question: Q?\nAnswer: " + "x" * 5000})
    assert made("long", generator=long)["refused"]["too long for --max-length"] == 1
    assert made("many", pairs=40, max_length=4000)["refused"]["no further passage"] > 0


class Killed(Exception):
    pass


class Dying(Parrot):
    def __init__(self, lives):
        super().__init__()
        self.lives = lives

    def generate(self, prompts):
        if len(self.prompts) == self.lives:
            raise Killed
        return super().generate(prompts)


def test_a_run_that_was_stopped_goes_on_and_asks_nothing_twice(books):
    whole = made("whole", pairs=2)
    expected = Path("whole", ROWS).read_bytes()
    asked = 0
    for lives in (0, 1, 3, 99):
        generator = Dying(lives)
        if lives == 99:
            assert made(generator=generator, pairs=2) == whole
        else:
            with pytest.raises(Killed):
                made(generator=generator, pairs=2)
        asked += len(generator.prompts)
        if lives == 1:  # as if it had been killed while it wrote the line
            with Path("out", ROWS).open("ab") as file:
                file.write(b'{"document_id": "books/a.t')
    assert asked == 6
    assert Path("out", ROWS).read_bytes() == expected
    generator = Parrot()
    assert made(generator=generator, pairs=2) == whole
    assert generator.prompts == []
    assert Path("out", ROWS).read_bytes() == expected


class Slow(Parrot):
    def generate(self, prompts):
        time.sleep(0.05)
        return super().generate(prompts)


def test_a_process_that_is_killed_leaves_whole_lines_and_the_next_goes_on(books):
    child = os.fork()
    if child == 0:
        try:
            made(generator=Slow(), pairs=6)
        finally:
            os._exit(0)
    try:
        deadline = time.monotonic() + 60
        while not (Path("out", ROWS).exists() and Path("out", ROWS).read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    before = Path("out", ROWS).read_bytes().count(b"\n")
    with pytest.raises(UserError, match="out is not complete: run the command that makes it again"):
        chat_dataset(["out"], TOKENIZER, max_length=4000)
    generators = [Parrot(), Parrot()]
    for out, generator in zip(("out", "whole"), generators, strict=True):
        assert made(out, generator, pairs=6)["rows"] == 18
    assert [len(generator.prompts) for generator in generators] == [18 - before, 18]
    assert Path("out", ROWS).read_bytes() == Path("whole", ROWS).read_bytes()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"pairs": 2}, {"passage_tokens": 90}, {"max_length": 999}, {"grounded": True}]
)
def test_another_run_is_refused_its_folder(change, books):
    made()
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"out contains a different dataset: {next(iter(change))} is"):
        made(**change)
    other = Parrot()
    other.identity_sha256 = "1"
    with pytest.raises(UserError, match="a different dataset: generator_sha256 is '0' there and '1' here"):
        made(generator=other)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_document_that_changed_is_refused(books):
    with pytest.raises(Killed):
        made(generator=Dying(1))
    text = Path("books/a.txt").read_text()
    Path("books/a.txt").write_text(text.replace("more", "less"))  # of the same size
    with pytest.raises(UserError, match=r"document 'books/a.txt' has changed since out has pairs on it"):
        made()


def test_a_full_disk_is_said_and_what_was_written_is_kept(books, monkeypatch):
    written, synced = [], os.fsync

    def full(file):
        written.append(file)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"train.jsonl: No space left on device; what was .*: make room and run the same"
    ):
        made()
    monkeypatch.setattr(os, "fsync", synced)
    made()
    assert [row["document_id"] for row in lines("out")] == [f"books/{name}.txt" for name in "abc"]


def test_nothing_is_left_of_a_run_that_could_not_begin(books):
    Path("books/bad.txt").write_bytes(b"\xff")
    Path("books/a.txt").unlink()
    for name in ("b", "c", "short"):
        Path(f"books/{name}.txt").unlink()
    with pytest.raises(UserError, match=r"bad.txt' is binary"):
        made()
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": 0}, "`pairs` is 0; expected at least 1"),
        ({"passage_tokens": 7}, "`passage_tokens` is 7; expected at least 8"),
        ({"passage_tokens": 100, "max_length": 199}, "`max_length` is 199 and `passage_tokens` 100: expected at least"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        QASettings(**changes)


def test_a_tokenizer_without_a_template_and_documents_with_marks_and_emoji(books):
    Path("books/d.txt").write_text("Naïve e\u0301 🙂 Straße. " * 60)
    qa_folder(["books/d.txt"], Parrot(), byte_tokenizer(), "out", QASettings(passage_tokens=50, max_length=300))
    (row,) = lines("out")
    text = Path("books/d.txt").read_text()
    start, end = row["document_span"]
    assert row["messages"][0]["content"].startswith(text[start:end])
    assert start <= row["passage_span"][0] < row["passage_span"][1] <= end


def generator(model=None, tokenizer=TOKENIZER, **changes):
    from longlens.models.generate import TransformersGenerator

    model = tiny_model("llama") if model is None else model
    return TransformersGenerator(model, tokenizer, name="tiny", identity_sha256="0", **changes)


def naive_greedy(model, ids, number, ends):
    written = []
    while len(written) < number and not (written and written[-1] in ends):
        written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("template", [CHATML, None], ids=["chat", "text"])
def test_the_generator_is_greedy_and_says_whether_a_text_came_to_an_end(template):
    tokenizer = tokenizer_of(template)
    model = tiny_model("llama")
    model.generation_config.do_sample, model.generation_config.temperature = True, 9.0
    text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n" if template else "Why?"
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        free = naive_greedy(model, ids, 12, {257})
        assert 257 not in free
        stopped, whole = free[:5], free[: free.index(free[4]) + 1]
    expected = tokenizer.decode(free, skip_special_tokens=True)
    assert generator(model, tokenizer, max_new_tokens=12).generate(["Why?"] * 2) == [(expected, False)] * 2
    # A chat model's folder names further tokens that end a text.
    model.generation_config.eos_token_id = [257, stopped[-1]]
    expected = tokenizer.decode(whole, skip_special_tokens=True)
    assert generator(model, tokenizer, max_new_tokens=12).generate(["Why?"]) == [(expected, True)]
    assert not model.training
    model.train()
    generator(model, tokenizer, max_new_tokens=2).generate(["Why?"])
    assert model.training


def test_settings_of_the_models_folder_are_not_in_force(models, tmp_path):
    from longlens.models.generate import load_generator

    shutil.copytree(models / "llama", tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(OWN_GENERATION))
    made = load_generator(str(tmp_path / "m"), max_new_tokens=8)
    assert made.generate(["Why?"]) == load_generator(str(models / "llama"), max_new_tokens=8).generate(["Why?"])
    assert made.generation["in_force"].items() >= {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}.items()
    assert made.generation["ignored"].keys() == OWN_GENERATION.keys()


def test_a_longer_prompt_before_does_not_change_an_answer():
    model = tiny_model("llama-dynamic-ntk", max_position_embeddings=60)
    asked = ["Why? " * 30, "Why? " * 20]
    writing = generator(model, max_new_tokens=8)
    writing._max_length = None  # dynamic NTK is made for texts that are longer than its config says
    assert writing.generate(asked)[1] == writing.generate(asked[1:])[0]


def test_a_raw_prompt_that_begins_with_bos_has_it_once():
    writing = generator(tiny_model("llama"), byte_tokenizer())
    assert writing._encode("<s>Why?") == writing._encode("Why?")
    assert writing._encode("Why?").count(256) == 1


def test_what_a_generator_cannot_do_is_said():
    with pytest.raises(UserError, match="`max_new_tokens` is 0; expected at least 1"):
        generator(max_new_tokens=0)
    with pytest.raises(
        UserError, match=r"tiny supports 64 tokens, but a prompt has 1\d\d plus 5 to generate: use fewer `pass"
    ):
        generator(tiny_model("llama", max_position_embeddings=64), max_new_tokens=5).generate(["a" * 100])
    model, tokenizer = tiny_model("llama"), tokenizer_of(None)
    tokenizer.eos_token = model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="tiny has no token that ends a text"):
        generator(model, tokenizer)
