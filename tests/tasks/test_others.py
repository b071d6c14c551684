"""LongEval, the needle grid, HELMET's json_kv, haystacks and the registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks, metrics
from longlens.tasks.haystack import made as made_haystack
from longlens.tasks.haystack import open_haystack, sentence_ends
from longlens.tasks.json_kv import PAIRS
from longlens.tasks.niah import DEPTHS, LENGTHS
from tests.tasks.fixtures import CONVERSATIONS, HAYSTACK, TOKENIZER, task

LINE = re.compile(r"^line (.*): REGISTER_CONTENT is <(\d+)>$", flags=re.MULTILINE)


@pytest.mark.parametrize("ids", ["LRT", "LRT-ABCindex", "LRT-UUID", "LRT-NL"])
def test_a_line_has_the_number(ids):
    for sample in get_task("longeval_lines", ids=ids, lines=40).build(samples=3, tokenizer=TOKENIZER):
        rows = dict(LINE.findall(sample.prompt))
        assert len(rows) == 40
        asked = re.search(r"<REGISTER_CONTENT> in line (.*)\? I need the number\.$", sample.prompt)[1]
        assert sample.answers == [rows[asked]]
        assert asked == sample.metadata["asked"]
        assert all(1 <= int(number) <= 50000 for number in rows.values())


def test_lines_are_named_as_upstream_does():
    names = {
        ids: [name for name, _ in LINE.findall(sample.prompt)]
        for ids in ("LRT", "LRT-ABCindex", "LRT-NL")
        for sample in get_task("longeval_lines", ids=ids, lines=8).build(samples=1, tokenizer=TOKENIZER)
    }
    assert names["LRT"] == [str(number) for number in range(1, 9)]
    assert names["LRT-ABCindex"][:2] + names["LRT-ABCindex"][5:7] == ["AAAAAA", "AAAAAB", "AAAAAF", "AAAABA"]
    assert all("-" in name for name in names["LRT-NL"])


def test_the_papers_setting_has_1350_different_lines_and_50_samples():
    made = get_task("longeval_lines_1350")
    sample = made.build(samples=1, tokenizer=TOKENIZER)[0]
    assert len({name for name, _ in LINE.findall(sample.prompt)}) == 1350
    assert made.default_samples == 50
    assert made.max_new_tokens == 100


def test_the_last_integer_decides():
    made = get_task("longeval_lines", lines=5, answer_prefix="\nLine <{line}>: <REGISTER_CONTENT> is")
    sample = made.build(samples=1, tokenizer=TOKENIZER)[0]
    answer = sample.answers[0]
    assert sample.answer_prefix == f"\nLine <{sample.metadata['asked']}>: <REGISTER_CONTENT> is"
    assert made.score(sample, f"In line 7 it is <{answer}>.") == {"accuracy": 1.0}
    assert made.score(sample, f"<{answer}> (line 7)") == {"accuracy": float(answer == "7")}
    assert made.score(sample, "no idea") == {"accuracy": 0.0}


def test_topics_are_conversations_and_the_first_is_asked_for(folder):
    made = get_task("longeval_topics", data_dir=folder, topics=4)
    sample = made.build(samples=1, tokenizer=TOKENIZER)[0]
    texts = {row["topic"]: row["conversation"] for row in CONVERSATIONS}
    topics = sample.metadata["topics"]
    assert len(set(topics)) == 4
    assert "".join(texts[topic] for topic in topics) in sample.prompt
    assert "on 4 different topics" in sample.prompt
    assert sample.answers == [topics[0]]
    assert made.score(sample, f"We discussed {topics[0].upper()}!") == {"accuracy": 1.0}


def test_too_few_conversations_are_an_error(folder, tmp_path):
    with pytest.raises(UserError, match=r"conversations\.jsonl has 10 conversations; expected at least 11"):
        get_task("longeval_topics", data_dir=folder, topics=11).build(samples=1, tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"the data ends .* tokens before length=90000: give more of it, or length="):
        task("longeval_topics", folder).build(length=90000, samples=1, tokenizer=TOKENIZER)
    (tmp_path / "conversations.jsonl").write_text('{"topic": "a", "conversation": "b"}\n\n{"topic": "c"}\n')
    with pytest.raises(UserError, match="no str 'conversation'"):
        get_task("longeval_topics", data_dir=tmp_path).build(length=3000, samples=1, tokenizer=TOKENIZER)


def test_the_grid_goes_through_all_depths(folder):
    made = get_task("niah_grid", haystack=folder / "prose.txt", depths=(0, 25, 50, 75, 100))
    samples = made.build(length=6000, samples=10, tokenizer=TOKENIZER)
    assert [sample.metadata["depth"] for sample in samples] == [0, 25, 50, 75, 100] * 2
    real = [sample.metadata["depths"][0] for sample in samples[:5]]
    assert real[0] == 0
    assert real[4] == 100
    for depth, found in zip((25, 50, 75), real[1:4], strict=True):
        assert depth - 5 < found <= depth + 0.5  # at the end of a sentence before it
        assert found > 0
    for sample in samples:
        at = sample.prompt.index("The best thing to do in San Francisco is")
        assert sample.prompt[:at].rstrip()[-1] in ".?!t" or sample.metadata["depth"] == 100
    assert (len(DEPTHS), DEPTHS[0], DEPTHS[-1]) == (35, 0, 100)
    assert (len(LENGTHS), LENGTHS[0], LENGTHS[-1]) == (35, 1000, 16000)


def test_a_reply_to_the_needle_is_scored_by_its_words(folder):
    made = task("niah_grid", folder)
    sample = made.build(length=3000, samples=1, tokenizer=TOKENIZER)[0]
    good = made.score(sample, "You should Eat a sandwich, and sit in Dolores Park on a sunny day!")
    assert good == {"exact": 1.0, "recall": 1.0}
    half = made.score(sample, "Eat a sandwich in the park.")  # 4 of 10 words that are no articles
    assert half == {"exact": 0.0, "recall": pytest.approx(0.4)}


@pytest.mark.parametrize("wrong", [{"depths": ()}, {"depths": (0, 101)}, {"answer": "eat cake"}])
def test_a_grid_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match="expected"):
        get_task("niah_grid", **wrong)


def test_json_has_the_pair_and_the_examples_are_others():
    samples = get_task("json_kv", pairs=11).build(samples=7, tokenizer=TOKENIZER)
    for sample in samples:
        pairs = json.loads(sample.prompt.partition("\n")[0])
        shown = re.findall(r"Key: (\S+)\nCorresponding value: (\S+)\n", sample.prompt)
        asked = sample.prompt.rpartition("Key: ")[2]
        assert len(pairs) == 11
        assert len(shown) == 2
        assert pairs[asked] == sample.answers[0]
        assert not {key for key, _ in shown} & set(pairs)
    assert [list(json.loads(s.prompt.partition("\n")[0])).index(s.prompt.rpartition(": ")[2]) for s in samples] == [
        0, 2, 4, 6, 8, 10, 0,
    ]  # fmt: skip
    assert PAIRS[131072] == 1800


def test_json_is_scored_as_helmet_does():
    made = get_task("json_kv", pairs=3)
    sample = made.build(samples=1, tokenizer=TOKENIZER)[0]
    value = sample.answers[0]
    best = {"substring_exact_match": 1.0, "exact_match": 1.0}
    assert made.score(sample, f"Corresponding value: {value}\nKey: x") == best
    assert made.score(sample, f"It is {value}.") == best | {"exact_match": 0.0}


def test_sentences_end_at_marks_before_no_small_letter():
    text = 'He came. "Why?" she asked. E.g. Mr. Smith, J. R. and (so on.) Version 3.5 is out! 7 left'
    words = tuple(text.split())
    ends = [" ".join(words[:end]).split()[-1] for end in sentence_ends(words)]
    assert ends == ["came.", "asked.", "on.)", "out!", "left"]


def test_a_haystack_repeats_and_knows_its_sentences():
    hay = made_haystack("mine", "One two. Three. Four")
    assert hay.take(9) == ["One", "two.", "Three.", "Four"] * 2 + ["One"]
    for count in range(1, 13):
        words = hay.take(count)
        begins = [0, *(i + 1 for i, word in enumerate(words[:-1]) if word in ("two.", "Three.", "Four")), count]
        assert hay.sentences(count) == begins


def test_a_haystack_is_named_and_hashed_by_its_words(folder, tmp_path):
    hay = open_haystack(folder / "prose.txt")
    (tmp_path / "other.txt").write_text(HAYSTACK.replace("\n", "  \n\n"))
    other = open_haystack(tmp_path / "other.txt")
    assert (hay.name, other.name) == ("prose.txt", "other.txt")
    assert hay.sha256 == other.sha256
    with pytest.raises(UserError, match="haystack 'mine' has 1 sentences; expected a text of at least 2"):
        made_haystack("mine", "Only one here")


def test_the_default_haystack_is_prose_of_this_python():
    hay = open_haystack()
    assert re.fullmatch(r"pydoc topics of Python 3\.\d+\.\d+.*", hay.name)
    assert len(hay.words) > 10000
    assert max(map(len, hay.words)) < 120
    sample = get_task("niah_single_2").build(length=3000, samples=1, tokenizer=TOKENIZER)[0]
    assert sample.metadata["haystack"] == {"name": hay.name, "sha256": hay.sha256}


def test_what_is_not_there_is_said():
    with pytest.raises(UserError, match="no task 'niah_singel_1': did you mean 'niah_single_1'"):
        get_task("niah_singel_1")
    with pytest.raises(UserError, match="no task 'zzz': there are longeval_lines, "):
        get_task("zzz")
    with pytest.raises(UserError, match="task 'niah_single_1' has no setting 'haystack': it has none"):
        get_task("niah_single_1", haystack="x")
    with pytest.raises(UserError, match="task 'longeval_lines' has no setting 'num': it has ids, lines, answer_prefix"):
        get_task("longeval_lines", num=3)
    for wrong in ({"ids": "LRT-XY"}, {"lines": 0}):
        with pytest.raises(UserError, match="expected"):
            get_task("longeval_lines", **wrong)
    for wrong in ({"pairs": 0}, {"shots": -1}):
        with pytest.raises(UserError, match="expected"):
            get_task("json_kv", **wrong)
    with pytest.raises(UserError, match="topics=0; expected at least 1"):
        get_task("longeval_topics", topics=0)


def test_words_need_their_package(monkeypatch):
    from longlens.tasks.words import word_list

    word_list.cache_clear()
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    with pytest.raises(UserError, match=r"needs the package 'wonderwords', .*pip install 'longlens\[tasks\]'"):
        get_task("cwe").build(length=3000, samples=1, tokenizer=TOKENIZER)


def test_all_tasks_are_listed_and_named():
    assert list_tasks()[:4] == ["longeval_lines", "longeval_lines_1350", "longeval_topics", "niah_grid"]
    assert [get_task(name).name for name in list_tasks()] == list_tasks()
    assert callable(metrics.last_integer)


def test_asking_for_tasks_imports_nothing_heavy():
    program = "import sys, longlens.tasks as t; t.list_tasks(); t.get_task('vt'); print('torch' in sys.modules)"
    program += "; print('transformers' in sys.modules, 'scipy' in sys.modules, 'wonderwords' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 4
