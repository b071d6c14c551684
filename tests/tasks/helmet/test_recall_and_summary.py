"""HELMET's recall tasks, which are RULER's in other words, and its summary."""

from __future__ import annotations

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks
from longlens.tasks.helmet import CATEGORIES, TASKS, summarize
from tests.tasks.fixtures import LENGTH, TOKENIZER, task

RECALL = {"helmet_niah_multikey_2": 50, "helmet_niah_multikey_3": 100, "helmet_niah_multivalue": 50}
# data.py, load_ruler
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text?\n"
    "The special magic {kind} for {query} mentioned in the provided text is"
)
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided "
    "text?\nThe special magic {kind} for {query} mentioned in the provided text are"
)


@pytest.mark.parametrize("name", RECALL)
def test_a_recall_prompt_is_helmets_template(name, folder):
    made = task(name, folder)
    assert (made.suite, made.category, made.metric) == ("helmet", "recall", "ruler_recall")
    assert (made.max_new_tokens, made.default_samples, made.stop) == (RECALL[name], 100, ())
    for sample in made.build(length=LENGTH, samples=3, tokenizer=TOKENIZER):
        text = sample.prompt + sample.answer_prefix
        query = text.rpartition(" mentioned in")[0].rpartition(" for ")[2]
        context = text.partition("afterwards.\n")[2].rpartition("\nWhat ")[0]
        template, kind = (SEVERAL, "numbers") if name == "helmet_niah_multivalue" else (ONE, "number")
        kind = "uuid" if name == "helmet_niah_multikey_3" else kind
        assert text == template.format(kind=kind, query=query, context=context)
        assert len(sample.answers) == (4 if name == "helmet_niah_multivalue" else 1)
        assert all(f" for {query} is: {answer}." in context for answer in sample.answers)
        assert sample.length <= LENGTH


def test_recall_is_the_share_of_answers_and_its_mean_is_not_rounded(folder):
    made = task("helmet_niah_multivalue", folder)
    sample = made.build(length=LENGTH, samples=1, tokenizer=TOKENIZER)[0]
    assert made.score(sample, f" {sample.answers[0]}, {sample.answers[2]}") == {"ruler_recall": 0.5}
    uuid = task("helmet_niah_multikey_3", folder).build(length=LENGTH, samples=1, tokenizer=TOKENIZER)[0]
    assert made.score(uuid, uuid.answers[0].upper()) == {"ruler_recall": 1.0}
    mean = made.aggregate([{"ruler_recall": 1.0}, {"ruler_recall": 0.0}, {"ruler_recall": 0.0}])["ruler_recall"]
    assert mean == pytest.approx(100 / 3, abs=1e-9)


def all_scores() -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    numbers = [number for category in CATEGORIES.values() for number in category]
    for place, (name, metric) in enumerate(numbers):
        scores.setdefault(name, {})[metric] = (place * 37) % 101
    return scores


def test_the_summary_is_means_of_means():
    """collect_results.py, custom_avgs, written out."""
    scores = all_scores()
    made = summarize(scores)
    s = scores
    asqa, qampari = s["helmet_asqa"], s["helmet_qampari"]
    wanted = {
        "recall": [
            s["json_kv"]["substring_exact_match"],
            *(s[f"helmet_niah_{task}"]["ruler_recall"] for task in ("multikey_2", "multikey_3", "multivalue")),
        ],
        "rag": [s[f"helmet_{task}"]["substring_exact_match"] for task in ("nq", "hotpotqa", "popqa", "triviaqa")],
        "icl": [
            s[f"helmet_{task}"]["exact_match"] for task in ("trec_coarse", "trec_fine", "banking77", "clinic150", "nlu")
        ],
        "cite": [
            asqa["str_em"],
            asqa["citation_recall"],
            asqa["citation_precision"],
            qampari["qampari_rec_top5"],
            qampari["citation_recall"],
            qampari["citation_precision"],
        ],
        "rerank": [s["helmet_msmarco"]["NDCG@10"]],
        "longqa": [
            s["helmet_narrativeqa"]["judge"],
            s["helmet_infbench_qa"]["rougeL_f1"],
            s["helmet_infbench_choice"]["exact_match"],
        ],
        "summ": [s["helmet_infbench_sum"]["judge"], s["helmet_multi_lexsum"]["judge"]],
    }
    means = {category: sum(values) / len(values) for category, values in wanted.items()}
    assert made.categories == pytest.approx(means)
    assert made.overall == pytest.approx(sum(means.values()) / 7)
    assert made.gaps == ()
    assert made.tasks == scores


def test_what_does_not_belong_to_it_does_not_count():
    scores = all_scores()
    more = {name: values | {"other": 1.0} for name, values in scores.items()} | {"vt": {"string_match_all": 3.0}}
    assert summarize(more) == summarize(scores)


def test_a_gap_is_an_error_or_leaves_no_number():
    scores = all_scores()
    del scores["helmet_qampari"]["citation_recall"]
    scores["helmet_nlu"]["exact_match"] = None
    with pytest.raises(UserError, match="needs helmet_qampari citation_recall, helmet_nlu exact_match too: score them"):
        summarize(scores)
    made, whole = summarize(scores, allow_gaps=True), summarize(all_scores())
    assert made.gaps == ("helmet_qampari citation_recall", "helmet_nlu exact_match")
    assert made.overall is None
    for category, value in made.categories.items():
        assert value == (None if category in ("cite", "icl") else whole.categories[category])
    assert "citation_recall" not in made.tasks["helmet_qampari"]
    assert "helmet_nlu" not in made.tasks
    nothing = summarize({}, allow_gaps=True)
    assert (set(nothing.categories.values()), nothing.overall, len(nothing.gaps)) == ({None}, None, 25)


@pytest.mark.parametrize("value", [-0.1, 100.1, float("nan")])
def test_scores_are_percentages(value):
    scores = all_scores()
    scores["helmet_msmarco"]["NDCG@10"] = value
    with pytest.raises(UserError, match=r"helmet_msmarco: NDCG@10 is .*; expected a percentage"):
        summarize(scores, allow_gaps=True)


def test_the_summary_names_the_tasks_there_are():
    numbers = {name: category for category, of in CATEGORIES.items() for name, _ in of}
    for name in TASKS:
        assert get_task(name).category == numbers[name]
        assert get_task(name).suite == "helmet"
    assert get_task("json_kv").category == numbers["json_kv"]
    assert set(TASKS) <= set(list_tasks())
