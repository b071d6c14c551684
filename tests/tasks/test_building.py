"""What holds for the samples of every task: budgets, and that a sample depends on nothing but what it is named by."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks
from longlens.tasks.fitting import TokenCounter
from tests.tasks.fixtures import LENGTH, TOKENIZER, WITH_LENGTH, task
from tests.tiny import byte_tokenizer


def built(name, folder, **arguments):
    return task(name, folder).build(**({"length": LENGTH, "samples": 2, "tokenizer": TOKENIZER} | arguments))


def least_length(name, folder, samples, seed):
    with pytest.raises(UserError, match="is too short") as error:
        built(name, folder, length=1, samples=samples, seed=seed)
    return int(re.search(r"pass `length=(\d+)` or more", str(error.value))[1])


@pytest.mark.parametrize("name", WITH_LENGTH)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(more=st.integers(0, 2500), seed=st.integers(0, 3), reserve=st.integers(0, 60))
def test_a_sample_fits_its_budget_and_another_unit_would_not(name, folder, more, seed, reserve):
    made = task(name, folder)
    length = least_length(name, folder, 1, seed) + more
    samples = made.build(length=length + reserve, samples=1, seed=seed, tokenizer=TOKENIZER, reserve=reserve)
    for sample in samples:
        counted = len(TOKENIZER(sample.prompt + sample.answer_prefix).input_ids)
        assert sample.length == counted + made.max_new_tokens
        assert length - made.unit_tokens < sample.length <= length


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_the_least_length_is_named_and_is_the_least(name, folder):
    least = least_length(name, folder, 2, 5)
    assert len(built(name, folder, length=least, samples=2, seed=5)) == 2
    with pytest.raises(UserError, match=f"`length={least - 1}` is too short"):
        built(name, folder, length=least - 1, samples=2, seed=5)


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_one_unit_more_does_not_fit(name, folder):
    made, tokens = task(name, folder), TokenCounter(TOKENIZER)
    sample = built(name, folder, samples=1)[0] if name != "longeval_topics" else built(name, folder, length=3000)[0]
    length = sample.metadata["requested_length"]
    plan = made.plan(length=length, seed=42, index=0, tokens=tokens)
    for units, fits in ((sample.metadata["units"], True), (sample.metadata["units"] + 1, False)):
        draft = plan.draft(units)
        spent = tokens.count(draft.prompt + draft.answer_prefix) + made.max_new_tokens
        assert (spent <= length) == fits


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_nothing_else_decides(name, folder):
    """Not the state of Python's own random numbers, nor what was built before, nor with which tokenizer object."""
    length = 3000 if name == "longeval_topics" else LENGTH
    random.seed(1)
    first = built(name, folder, length=length)
    random.seed(2)
    state = random.getstate()
    built(name, folder, length=length - 200, seed=7)
    assert built(name, folder, length=length, tokenizer=byte_tokenizer()) == first
    assert random.getstate() == state
    if name != "niah_grid":  # nothing of it is drawn
        assert [sample.prompt for sample in built(name, folder, length=length, seed=7)] != [s.prompt for s in first]


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_answers_stand_where_the_sample_says(name, folder):
    for sample in built(name, folder, length=3000 if name == "longeval_topics" else LENGTH, samples=3):
        text = sample.prompt + sample.answer_prefix
        found = [text[start:end] for start, end in sample.answer_spans]
        assert sample.answer_spans == sorted(sample.answer_spans)
        assert {one.lower() for one in found} <= {answer.lower() for answer in sample.answers}
        if sample.answers != ["yes"]:
            assert {one.lower() for one in found} == {answer.lower() for answer in sample.answers}
        assert all(0 <= depth <= 100 for depth in sample.metadata.get("depths", []))


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_a_text_is_tokenized_whole_a_few_times_at_most(name, folder, monkeypatch):
    counts = []
    monkeypatch.setattr(TokenCounter, "count", lambda self, text: counts.append(1) or len(TOKENIZER(text).input_ids))
    built(name, folder, length=3000 if name == "longeval_topics" else LENGTH, samples=1)
    assert len(counts) <= 6  # the smallest text, then two to four; vt fits its example as well


def test_settings_that_fix_the_units_need_no_length():
    lines = get_task("longeval_lines", lines=30).build(samples=2, tokenizer=TOKENIZER)
    assert [sample.metadata["lines"] for sample in lines] == [30, 30]
    assert lines[0].id == "longeval_lines-30units-42-0"
    with pytest.raises(UserError, match="`length=200` is too short for 2 samples of longeval_lines"):
        get_task("longeval_lines", lines=30).build(length=200, samples=2, tokenizer=TOKENIZER)


def test_a_sample_says_what_made_it(folder):
    sample = built("niah_multikey_1", folder, samples=2, seed=9, reserve=20)[1]
    assert sample.id == f"niah_multikey_1-{LENGTH}-9-1"
    said = {key: sample.metadata[key] for key in ("task", "settings", "seed", "index", "requested_length", "reserve")}
    assert said == {
        "task": "niah_multikey_1",
        "settings": {"keys": 4, "values": 1, "queries": 1},
        "seed": 9,
        "index": 1,
        "requested_length": LENGTH,
        "reserve": 20,
    }
    assert sample.metadata["haystack"]["name"] == "prose.txt"
    assert len(sample.metadata["haystack"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "`samples=0`; expected at least 1"),
        ({"length": -5}, "`length=-5`; expected at least 1"),
        ({"reserve": -1}, "`reserve=-1`; expected at least 0"),
        ({"length": None}, "fwe needs a length in tokens, such as `length=4096`"),
        ({"tokenizer": "smollm2"}, r"`tokenizer` is 'smollm2'; expected a tokenizer of transformers, such as"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        built("fwe", folder, **arguments)


def wrong_tokenizers():
    whole = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = [Tokenizer(models.BPE()), whole, words]
    return [PreTrainedTokenizerFast(tokenizer_object=tokenizer) for tokenizer in made]


@pytest.mark.parametrize("tokenizer", wrong_tokenizers(), ids=["empty", "one unknown text", "unknown words"])
def test_a_tokenizer_that_knows_no_words_is_refused(tokenizer, folder):
    """No number of units would fill a length."""
    with pytest.raises(UserError, match=r"makes [01] different tokens of 'Each of .*: it has no vocabulary"):
        built("longeval_lines", folder, tokenizer=tokenizer)


@pytest.mark.parametrize("tokenizer", [None, 3, ["a"], len, str.split, PreTrainedTokenizerFast, lambda text, **_: text])
def test_what_is_no_tokenizer_is_refused(tokenizer, folder):
    with pytest.raises(UserError, match=r"expected a tokenizer of transformers, such as longlens\.models") as error:
        built("longeval_lines", folder, tokenizer=tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_distractors_are_a_choice_of_wrong_answers(name, folder):
    for sample in built(name, folder, length=3000 if name == "longeval_topics" else LENGTH):
        wrong = sample.metadata.get("distractors")
        if wrong is None:
            continue
        assert 1 <= len(wrong) == len(set(wrong)) <= 9
        assert not set(wrong) & set(sample.answers)
        inside = sample.metadata["distractors_in_text"]
        words = [re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE) for text in wrong]
        stand = [word.search(sample.prompt) is not None for word in words]
        assert stand == [True] * inside + [False] * (len(wrong) - inside)
        assert all(task(name, folder).score(sample, f" {text}")[task(name, folder).metric] == 0 for text in wrong)


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_chance_is_the_same_at_every_length(name, folder):
    """A text of one unit has as many wrong answers as one of many, so that scores over lengths have one chance."""
    short = least_length(name, folder, 3, 7)
    lengths = (short, short + 300, 3000 if name == "longeval_topics" else LENGTH)
    samples = [one for length in lengths for one in built(name, folder, length=length, samples=3, seed=7)]
    if all("distractors" in sample.metadata for sample in samples):
        assert len({len(sample.metadata["distractors"]) for sample in samples}) == 1
        assert len({sample.metadata["units"] for sample in samples}) > 1
    else:
        assert not any("distractors" in sample.metadata for sample in samples)


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_the_target_is_a_right_answer(name, folder):
    made = task(name, folder)
    for sample in built(name, folder, length=3000 if name == "longeval_topics" else LENGTH):
        target = made.target(sample)
        if target is not None:
            assert made.score(sample, target)[made.metric] == 1
            assert target.startswith(" ") == bool(sample.answer_prefix)


def test_bos_counts_where_the_tokenizer_puts_one():
    plain = byte_tokenizer(bos=False)
    with_bos, without = (get_task("json_kv", pairs=3).build(samples=1, tokenizer=t)[0] for t in (TOKENIZER, plain))
    assert with_bos.prompt == without.prompt
    assert with_bos.length == without.length + 1


def test_default_samples_are_the_benchmarks(folder):
    sizes = {name: task(name, folder).default_samples for name in list_tasks()}
    assert {sizes["longeval_lines"], sizes["longeval_lines_1350"], sizes["longeval_topics"]} == {50}
    assert (sizes["vt"], sizes["niah_grid"], sizes["json_kv"]) == (500, 35, 100)


def test_scores_of_no_sample_have_no_mean(folder):
    with pytest.raises(UserError, match="vt: no scores to aggregate"):
        task("vt", folder).aggregate([])
