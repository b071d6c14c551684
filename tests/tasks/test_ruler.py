"""RULER's tasks: what is in a text, and that its question has that answer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter

import pytest

from longlens.errors import UserError
from longlens.tasks import RULER, get_task
from longlens.tasks.ruler import effective_length, mean_over_tasks, summarize, weighted_average
from longlens.tasks.ruler.needles import NOISE, NUMBERS, UUIDS, WORDS, Kind, NoiseNeedles
from longlens.tasks.ruler.words import FrequentWords
from longlens.tasks.synthetic import word_list
from tests.tasks.fixtures import HOTPOTQA, SQUAD, TOKENIZER, task

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+(?: [a-z]\S*)*?) is: (\S+)\.(?=\s|$)")


def one(name, folder, length=6000, **arguments):
    return task(name, folder).build(length=length, samples=1, tokenizer=TOKENIZER, **arguments)[0]


def test_there_are_13_tasks():
    assert len(RULER) == 13


@pytest.mark.parametrize(
    ("name", "keys", "answers", "kind"),
    [
        ("niah_single_1", 1, 1, "numbers"),
        ("niah_single_2", 1, 1, "numbers"),
        ("niah_single_3", 1, 1, "uuids"),
        ("niah_multikey_1", 4, 1, "numbers"),
        ("niah_multikey_2", None, 1, "numbers"),
        ("niah_multikey_3", None, 1, "uuids"),
        ("niah_multivalue", 1, 4, "numbers"),
        ("niah_multiquery", 4, 4, "numbers"),
    ],
)
def test_needles_answer_the_question_and_no_two_are_alike(name, keys, answers, kind, folder):
    sample = one(name, folder)
    found = NEEDLE.findall(sample.prompt)
    by_key = {}
    for said, key, value in found:
        assert said == kind
        by_key.setdefault(key, []).append(value)
    assert len({value for _, _, value in found}) == len(found)
    assert len(by_key) == (keys if keys is not None else sample.metadata["units"] + 1)
    asked = re.search(r"for (.*) mentioned in the provided text\?$", sample.prompt)[1].replace(", and ", ", ")
    assert sorted(itertools.chain.from_iterable(by_key[key] for key in asked.split(", "))) == sorted(sample.answers)
    assert len(sample.answers) == answers == len(sample.answer_spans)
    assert len(sample.metadata["depths"]) == (4 if name == "niah_multikey_1" else answers)
    others = {value for _, _, value in found} - set(sample.answers)
    if answers > 1:
        assert "distractors" not in sample.metadata
        assert task(name, folder).target(sample) is None
        return
    wrong = sample.metadata["distractors"]
    assert len(set(wrong) - set(sample.answers)) == len(wrong) == 9
    inside = sample.metadata["distractors_in_text"]
    assert inside == min(9, len(others)) == len(set(wrong) & others) == len(set(wrong[:inside]) & others)
    assert {len(value) for value in wrong} == {len(sample.answers[0])}
    assert task(name, folder).target(sample) == f" {sample.answers[0]}"


def test_the_wording_is_singular_for_one_answer(folder):
    single, several = one("niah_single_1", folder), one("niah_multivalue", folder)
    assert single.prompt.startswith("A special magic number is hidden within the following text. Make sure")
    assert re.fullmatch(r" The special magic number for \S+ mentioned in the provided text is", single.answer_prefix)
    assert several.prompt.startswith("Some special magic numbers are hidden within the following text. Make sure")
    assert "\nWhat are all the special magic numbers for " in several.prompt
    assert several.answer_prefix.endswith(" mentioned in the provided text are")


def test_a_needle_stands_between_sentences_of_prose_and_the_rest_is_the_prose(folder):
    made = task("niah_multikey_1", folder)
    sample = one("niah_multikey_1", folder)
    context = sample.prompt.partition("\n")[2].rpartition("\n")[0]
    pieces = NEEDLE.sub("\0", context).split("\0")
    assert " ".join(" ".join(pieces).split()) == " ".join(made.text.take(sample.metadata["units"]))
    for before in pieces[:-1]:
        assert not before.strip() or before.strip()[-1] in ".!?"


def test_filler_lines_are_all_the_same(folder):
    lines = one("niah_single_1", folder).prompt.split("\n")[1:-1]
    assert Counter(lines)[NOISE] == len(lines) - 1


def test_a_needle_task_of_ones_own():
    made = NoiseNeedles(name="mine", keys=2, values=3, queries=2, key_kind=UUIDS)
    sample = made.build(length=4000, samples=1, tokenizer=TOKENIZER)[0]
    assert len(sample.answers) == 6
    for wrong in ({"keys": 0}, {"values": 41}):
        with pytest.raises(UserError, match="expected"):
            NoiseNeedles(name="mine", **wrong)
    assert isinstance(WORDS, Kind)
    assert NUMBERS.longest() == 7


def test_variables_lead_back_to_the_value(folder):
    sample = one("vt", folder)
    example, text = sample.prompt.split("\n\nMemorize and track")
    value = re.search(r"assigned the value (\d{5}) in the text above\.$", text)[1]
    known, lines = {value}, re.findall(r"^VAR (\S+) = (?:VAR )?(\S+) ?$", text, flags=re.MULTILINE)
    for name, origin in lines:
        assert origin in known
        known.add(name)
    assert [name for name, _ in lines] == sample.answers == sorted(known - {value}, key=sample.answers.index)
    assert {len(name) for name in sample.answers} == {5}
    assert sample.answer_prefix.endswith(f"5 variables are assigned the value {value}, they are: ")
    # The worked example is complete, names of three letters and two spaces before its answer included.
    shown = re.findall(r"^VAR ([A-Z]{3}) = ", example, flags=re.MULTILINE)
    assert example.endswith(f", they are:  {' '.join(shown)}")
    assert example.count(NOISE) >= 5
    assert task("vt", folder).target(sample) == f" {' '.join(sample.answers)}"


@pytest.mark.parametrize(("length", "common", "uncommon"), [(4000, 6, 1), (9000, 30, 3)])
def test_common_words_are_the_most_frequent(length, common, uncommon, folder):
    sample = one("cwe", folder, length=length)
    lists = [text.partition("\nQuestion")[0] for text in sample.prompt.split("ones that appear most often.\n")[1:]]
    counts = []
    for text in lists:
        items = re.findall(r"(\d+)\. (.*?)(?= \d+\. |$)", text)
        assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
        counts.append(Counter(word for _, word in items))
    shown, asked = counts
    assert {asked[word] for word in sample.answers} == {common}
    assert len(sample.answers) == 10
    assert set(asked.values()) == {common, uncommon}
    assert len(sample.answer_spans) == 10 * common
    assert sum(count == uncommon for count in asked.values()) == sample.metadata["units"]
    assert len(shown) == (20 if common == 6 else 40)
    top = " ".join(f"{number}. {word}" for number, (word, _) in enumerate(shown.most_common(10), start=1))
    said = sample.prompt.split("words that appear most often in the list are: ")[1].partition("\nBelow")[0]
    assert sorted(re.findall(r"\d+\. (.*?)(?= \d|$)", said)) == sorted(re.findall(r"\d+\. (.*?)(?= \d|$)", top))
    target = task("cwe", folder).target(sample)
    assert re.findall(r" \d+\. (.*?)(?= \d|$)", target) == sample.answers
    assert target.startswith(" 1. ")


def test_more_words_than_there_are_become_pairs(monkeypatch, folder):
    few = {kind: word_list(kind)[:30] for kind in ("noun", "adjective", "verb")}
    monkeypatch.setattr("longlens.tasks.synthetic.word_list", few.__getitem__)
    monkeypatch.setattr("longlens.tasks.ruler.words.word_list", few.__getitem__)
    sample = one("cwe", folder, length=9000)
    assert sample.metadata["words"] > 90 or sample.metadata["common_repeats"] == 30
    sample = one("cwe", folder, length=4000)
    assert sample.metadata["words"] > 90
    assert re.search(r"\d+\. [a-z]+-[a-z]+ ", sample.prompt)


def test_frequent_words_have_zetas_counts(folder):
    # With 1,000 words at alpha 2, as RULER's formula gives them.
    plan = FrequentWords().plan(length=None, seed=0, index=0, tokens=None)
    draft = plan.draft(1000)
    words = Counter(draft.prompt.partition("coded words. ")[2].partition("\nQuestion")[0].split())
    assert [count for _, count in words.most_common(5)] == [607, 151, 67, 37, 24]
    assert [word for word, _ in words.most_common(4)] == ["...", *draft.answers]
    assert len(draft.answer_spans) == 151 + 67 + 37


def test_frequent_words_have_no_one_right_text(folder):
    assert task("fwe", folder).target(one("fwe", folder)) is None


def test_frequent_words_are_never_in_doubt():
    plan = FrequentWords().plan(length=None, seed=3, index=1, tokens=None)
    for units in range(plan.minimum, 1500, 7):
        counts = plan.draft(units).metadata["counts"]
        assert counts[0] > counts[1] > counts[2] > counts[3] > (counts[4:] or [0])[0]


def test_alpha_has_to_be_above_1():
    with pytest.raises(UserError, match=r"`alpha=1\.0`; expected above 1"):
        get_task("fwe", alpha=1.0)


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_the_right_documents_are_there_at_any_length(name, folder):
    for length in (900, 2500, 9000):
        sample = one(name, folder, length=length)
        numbers = [int(number) for number in re.findall(r"^Document (\d+):$", sample.prompt, flags=re.MULTILINE)]
        assert numbers == list(range(1, sample.metadata["documents"] + 1))
    gold = [SQUAD["data"][0]["paragraphs"][0]["context"]] if name == "qa_1" else []
    gold += [] if name == "qa_1" else [f"{title}\n{''.join(text)}" for title, text in HOTPOTQA[0]["context"]]
    assert all(f":\n{text}" in sample.prompt for text in gold)
    assert sample.metadata["data"]["file"] == ("squad.json" if name == "qa_1" else "hotpotqa.json")
    assert sample.answer_prefix == " Answer:"


def test_paragraphs_of_the_same_article_come_first(folder):
    draft = task("qa_1", folder).plan(length=None, seed=1, index=0, tokens=None).draft(2)
    assert draft.metadata["documents"] == 3
    assert set(re.findall(r"Town (\d)\.", draft.prompt)) == {"0"}
    assert draft.answers == ("Ada 00", "Ada 00")
    assert draft.prompt.endswith("\n\nQuestion: Who is the mayor of town 0.0?")


def test_an_answer_is_marked_as_a_word_of_its_own_in_supporting_paragraphs(folder):
    samples = task("qa_2", folder).build(length=3000, samples=2, tokenizer=TOKENIZER)
    assert samples[0].answers == ["yes"]
    assert samples[0].answer_spans == []
    assert len(samples[1].answer_spans) == 1  # not in "1100 miles", and not in the paragraph on the peak
    start, end = samples[1].answer_spans[0]
    assert samples[1].prompt[start - 6 : end] == "It is 100 miles"


def test_there_are_no_more_samples_than_questions(folder):
    with pytest.raises(UserError, match=r"qa_2: hotpotqa\.json has 6 questions: request no more samples"):
        task("qa_2", folder).build(length=3000, samples=7, tokenizer=TOKENIZER)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qa_1", "{", r"squad\.json is broken \(not JSON: .*line 1"),
        ("qa_1", "[]", r"squad\.json: no list 'data'; expected data\[\]\.paragraphs\[\] with context"),
        ("qa_1", '{"data": []}', "no question that has an answer"),
        ("qa_1", '{"data": [{"paragraphs": [{"context": 3}]}]}', "no str 'context'"),
        ("qa_2", "{}", "not a list; expected a list of question, answer"),
        ("qa_2", '[{"context": [["a"]]}]', "a context that is not pairs of a title and a list of sentences"),
        ("qa_2", '[{"context": [["a", ["b"]]], "answer": 1}]', "no str 'answer'"),
    ],
)
def test_data_of_another_schema_is_refused(name, content, message, tmp_path):
    (tmp_path / ("squad.json" if name == "qa_1" else "hotpotqa.json")).write_text(content)
    with pytest.raises(UserError, match=message):
        get_task(name, data_dir=tmp_path).build(length=3000, samples=1, tokenizer=TOKENIZER)


@pytest.mark.parametrize("name", ["qa_1", "qa_2", "longeval_topics"])
def test_missing_data_is_named_with_where_it_can_be_had(name, tmp_path):
    for settings in ({}, {"data_dir": tmp_path}):
        with pytest.raises(UserError, match=r"(rajpurkar\.github|hotpotqa\.github|github\.com/DachengLi1)") as error:
            get_task(name, **settings).build(length=3000, samples=1, tokenizer=TOKENIZER)
        assert "\n" not in str(error.value)


def test_squad_answers_that_are_not_at_their_place_are_not_marked(tmp_path):
    wrong = json.loads(json.dumps(SQUAD))
    wrong["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(wrong))
    sample = get_task("qa_1", data_dir=tmp_path).build(length=3000, samples=1, tokenizer=TOKENIZER)[0]
    assert len(sample.answer_spans) == 1


def test_scores_are_shares_of_answers_and_any_answer(folder):
    made = task("niah_multivalue", folder)
    sample = one("niah_multivalue", folder)
    a, b, c, _ = sample.answers
    assert made.score(sample, f"{a}\x00{b}, {c}") == {"string_match_all": 0.75}
    rows = [{"string_match_all": 1 / 3}, {"string_match_all": 1.0}, {"string_match_all": 0.0}]
    assert made.aggregate(rows) == {"string_match_all": 44.44}  # rounded as RULER's
    qa = task("qa_1", folder)
    assert qa.score(one("qa_1", folder), "it is ADA 00, I think") == {"string_match_part": 1.0}


def test_the_target_of_a_question_is_the_answer_of_most(folder):
    sample = one("qa_1", folder)
    assert task("qa_1", folder).target(sample) == " Ada 00"
    votes = dataclasses.replace(sample, answers=["in May", "May", "the 5th", "May"])
    assert task("qa_1", folder).target(votes) == " May"
    assert task("qa_1", folder).target(dataclasses.replace(sample, answers=["in May", "May"])) == " in May"


# Rows of RULER's README: model, scores at 4k to 128k, average, weighted averages, effective length.
PUBLISHED = [
    ("Llama3.1 (8B)", (95.5, 93.8, 91.6, 87.4, 84.7, 77.0), 88.3, 85.4, 91.3, 32),
    ("Gemini-1.5-pro", (96.7, 95.8, 96.0, 95.9, 95.9, 94.4), 95.8, 95.5, 96.1, 128),
    ("GPT-4-1106-preview", (96.6, 96.3, 95.2, 93.2, 87.0, 81.2), 91.6, 89.0, 94.1, 64),
    ("Mistral-Large-2407", (96.2, 96.1, 95.1, 93.0, 78.8, 23.7), 80.5, 70.6, 90.4, 32),
    ("MegaBeam-Mistral (7B)", (93.8, 92.5, 92.0, 89.2, 83.7, 83.7), 89.1, 87.3, 91.0, 32),
    ("Together (7B)", (88.2, 81.1, 69.4, 63.0, 0.0, 0.0), 50.3, 33.8, 66.7, 4),
    ("GLM4 (9B)", (94.7, 92.8, 92.1, 89.9, 86.7, 83.1), 89.9, 88.0, 91.7, 64),
    ("Mistral-Nemo", (87.8, 87.2, 87.7, 69.0, 46.8, 19.0), 66.2, 54.7, 77.8, 16),
    ("InternLM2.5 (7B)", (88.1, 85.5, 84.5, 82.7, 75.5, 68.9), 80.9, 77.8, 83.9, 4),
    ("LWM (7B)", (82.3, 78.4, 73.7, 69.1, 68.1, 65.0), 72.8, 69.9, 75.7, None),
]


@pytest.mark.parametrize(("model", "scores", "mean", "increasing", "decreasing", "effective"), PUBLISHED)
def test_summaries_are_those_of_the_published_table(model, scores, mean, increasing, decreasing, effective):
    by_length = dict(zip((4, 8, 16, 32, 64, 128), scores, strict=True))
    shuffled = dict(sorted(by_length.items(), key=lambda pair: str(pair[0])))
    assert mean_over_tasks({str(key): value for key, value in by_length.items()}) == pytest.approx(mean, abs=0.06)
    assert weighted_average(shuffled, increasing=True) == pytest.approx(increasing, abs=0.06)
    assert weighted_average(shuffled, increasing=False) == pytest.approx(decreasing, abs=0.06)
    assert effective_length(shuffled) == effective


def test_the_threshold_can_be_chosen_and_a_gap_ends_the_effective_length():
    assert effective_length({4: 90.0, 8: 80.0, 16: 90.0}, threshold=85.0) == 4
    assert effective_length({4: 90.0, 8: 80.0, 16: 90.0}, threshold=70.0) == 16
    assert effective_length({4: 85.6}) is None
    for summary in (mean_over_tasks, effective_length, lambda scores: weighted_average(scores, increasing=True)):
        with pytest.raises(UserError, match="no scores to aggregate"):
            summary({})


@pytest.mark.parametrize(("model", "scores", "mean", "increasing", "decreasing", "effective"), PUBLISHED)
def test_a_summary_is_a_row_of_the_published_table(model, scores, mean, increasing, decreasing, effective):
    # Thirteen scores around each published mean.
    by_length = dict(zip((4096, 8192, 16384, 32768, 65536, 131072), scores, strict=True))
    by_task = {
        length: {task: score + (place - 6) * min(score, 100 - score) / 6 for place, task in enumerate(RULER)}
        for length, score in reversed(by_length.items())
    }
    row = summarize(by_task)
    assert row.means == {length: pytest.approx(score) for length, score in by_length.items()}
    assert list(row.means) == sorted(by_length)
    assert row.average == pytest.approx(mean, abs=0.06)
    assert row.weighted_increasing == pytest.approx(increasing, abs=0.06)
    assert row.weighted_decreasing == pytest.approx(decreasing, abs=0.06)
    assert row.effective_length == (None if effective is None else effective * 1024)
    assert row.gaps == {}


def test_a_missing_task_is_an_error_or_a_gap_without_a_mean():
    full = dict.fromkeys(RULER, 90.0)
    scores = {4096: full, 8192: {**full, "cwe": None}, 16384: {name: 90.0 for name in RULER if "qa" not in name}}
    message = r"over 13 tasks, but cwe at length 8192; qa_1, qa_2 at length 16384 has no score: run the"
    with pytest.raises(UserError, match=message):
        summarize(scores)
    row = summarize(scores, allow_gaps=True)
    assert row.means == {4096: 90.0, 8192: None, 16384: None}
    assert row.gaps == {8192: ("cwe",), 16384: ("qa_1", "qa_2")}
    assert (row.average, row.weighted_increasing, row.weighted_decreasing, row.effective_length) == (None,) * 4


def test_the_effective_length_is_known_where_the_gap_comes_after_its_end():
    full, low = dict.fromkeys(RULER, 90.0), dict.fromkeys(RULER, 50.0)
    gap = {"vt": 90.0}
    assert summarize({4: full, 8: low, 16: gap}, allow_gaps=True).effective_length == 4
    assert summarize({4: full, 8: gap, 16: low}, allow_gaps=True).effective_length is None
    assert summarize({4: gap, 8: full}, allow_gaps=True).effective_length is None
    assert summarize({4: full, 8: low}, threshold=40.0).effective_length == 8


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no scores to aggregate"),
        (
            {4096: {"niah_grid": 50.0}},
            r"niah_grid is not a task of RULER, so not part of its mean; expected niah_single_1, ",
        ),
        ({4096: {"vt": 101.0}}, r"score=101\.0 of vt at length 4096; expected percent, 0 to 100"),
        ({4096: {"vt": float("nan")}}, "score=nan of vt at length 4096"),
    ],
)
def test_a_summary_of_what_makes_no_sense_is_refused(scores, message):
    with pytest.raises(UserError, match=message):
        summarize(scores, allow_gaps=True)
