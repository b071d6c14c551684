"""InfiniteBench, SCROLLS, ZeroSCROLLS, L-Eval, BAMBOO and LooGLE, against what their own code says.

tests/golden/published.json holds hashes of upstream's prompts, and scores that upstream's own functions gave: rows of
task, prediction, answers, metadata and score; for LooGLE prediction, answer and ROUGE's recalls and BLEU, or exact and
partial match. Commits: the heads of the modules.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from longlens.bench.selection import make_tasks
from longlens.errors import UserError
from longlens.tasks import bamboo, get_task, infinitebench, leval, list_tasks, loogle
from longlens.tasks.base import Sample
from longlens.tasks.metrics.chinese import character_f1_zh
from tests.tasks import published
from tests.tasks.fixtures import TOKENIZER, task

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "published.json").read_text(encoding="utf-8"))
FIELDS = {"{a}": "{OPTION_A}", "{b}": "{OPTION_B}", "{c}": "{OPTION_C}", "{d}": "{OPTION_D}"} | {
    "{function}": "{func}",
    "{call}": "{func_call}",
    "{wanted}": "{prefix}",
}
ROWS = ("infinitebench", "scrolls", "zero_scrolls", "leval", "bamboo", "loogle")
NAMES = [name for name in list_tasks() if get_task(name).suite in ROWS]


def built(name, folder, samples=1, **options):
    made = task(name, folder)
    return made, made.build(samples=samples, tokenizer=TOKENIZER, **options)


def said(answers, **metadata):
    return Sample(id="x", prompt="", answer_prefix="", answers=answers, answer_spans=[], length=0, metadata=metadata)


def upstream(suite, name, facts):
    text = facts.prompt + facts.prefix
    if suite == "infinitebench":
        asks = "" if name in ("passkey", "number_string", "kv_retrieval", "math_find") else "{question}"
        for ours, theirs in (FIELDS | ({"{input}": asks} if asks else {})).items():
            text = text.replace(ours, theirs)
    elif suite == "leval":
        text = text.partition("\n\n")[0]  # its instructions, the rest is put together by code
    else:
        long = "{content}" if suite == "bamboo" else "{input}"
        text = text.replace("{context}", long).replace("{question}", "{question}" if suite == "bamboo" else "{Q}")
    return text


@pytest.mark.parametrize("suite", [infinitebench, leval, bamboo, loogle], ids=lambda module: module.__name__[15:])
def test_prompts_are_upstreams_word_for_word(suite):
    name = suite.__name__.rpartition(".")[2]
    wanted = GOLDEN["prompts"][name]
    for key, digest in wanted.items():
        assert hashlib.sha256(upstream(name, key, suite.SETS[key]).encode()).hexdigest() == digest, key
    assert name == "leval" or wanted.keys() == suite.SETS.keys()


@pytest.mark.parametrize("name", sorted({row[0] for row in GOLDEN["scores"]}))
def test_scores_are_those_of_upstreams_own_functions(name):
    made, rows = get_task(name), [row for row in GOLDEN["scores"] if row[0] == name]
    for _, prediction, answers, metadata, wanted in rows:
        score = made.score(said(answers, **metadata), prediction)[made.metric]
        assert score == pytest.approx(wanted, abs=1e-9), (prediction, answers)
    assert len({wanted for *_, wanted in rows}) > 1  # these predictions tell scores apart


def test_loogles_scores_are_those_of_its_own_functions():
    for prediction, answer, *wanted in GOLDEN["loogle"]:
        if isinstance(answer, str):
            found = get_task("loogle_longdep_qa").score(said([answer]), prediction)
            names, wanted = ("rouge_1", "rouge_2", "rouge_l", "bleu_1", "bleu_4"), [*wanted[0], *wanted[1]]
        else:
            found = get_task("loogle_shortdep_cloze").score(said([""], gaps=answer), prediction)
            names = ("exact_match", "partial_match")
        assert [found[key] for key in names] == pytest.approx(wanted, abs=1e-7), prediction


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_scored_and_its_target_is_right(name, folder):
    made, samples = built(name, folder, samples=2)
    assert [sample.metadata["index"] for sample in samples] == [0, 1]
    scores = []
    for sample in samples:
        assert sample.prompt == sample.prompt.rstrip()
        assert sample.answer_prefix == sample.answer_prefix.rstrip()
        start, end = sample.context_span
        assert 0 <= start < end <= len(sample.prompt)
        assert all(made.score(sample, "")[key] < 0.5 for key in made.score(sample, "") if key == made.metric)
        target = made.target(sample)
        scores.append(made.score(sample, sample.answers[0] if target is None else target))
        assert not set(sample.metadata.get("distractors", ())) & set(sample.answers)
    if name != "infinitebench_code_debug":  # which wants more than the letter
        assert made.aggregate(scores)[made.metric] == pytest.approx(100, abs=1e-4)


def test_prompts_of_scrolls_have_the_text_before_the_question(folder):
    _, (quality,) = built("scrolls_quality", folder)
    text = published.TEXT.format(n=0).strip()
    asked = "\n\nQuestion: What does Ada keep?\nthe mill\nthe well\nthe tower\nthe yard"
    assert (quality.prompt, quality.answer_prefix) == (text + asked, "\nAnswer:")
    assert quality.answers == ["the mill"]
    assert quality.metadata["distractors"] == ["the well", "the tower", "the yard"]
    _, (qasper,) = built("scrolls_qasper", folder)
    assert qasper.prompt == f"{published.TEXT.format(n=0)}\n\nQuestion: How many bridges?"
    assert qasper.answers == ["7", "seven"]  # two rows, one question


def test_prompts_of_zero_scrolls_are_its_own_and_lose_the_end_of_the_text(folder):
    (row, _) = published.zero_scrolls(0)["qmsum"]
    made, (whole,) = built("zero_scrolls_qmsum", folder)
    assert whole.prompt + whole.answer_prefix == row["input"].rstrip()
    (cut,) = made.build(samples=1, tokenizer=TOKENIZER, length=whole.length - 20)
    omission = row["truncation_seperator"]
    start, end = cut.context_span
    assert cut.prompt[start:end].endswith(omission)
    assert cut.prompt[:start] == whole.prompt[: whole.context_span[0]]
    assert cut.prompt[end:] == whole.prompt[whole.context_span[1] :]
    assert cut.length <= whole.length - 20


def test_scores_of_zero_scrolls():
    f1 = get_task("zero_scrolls_musique")
    assert f1.score(said(["Zoë Elm"]), "zoe of elm") == {"f1": pytest.approx(0.8)}
    assert get_task("scrolls_qasper").score(said(["Zoë Elm"]), "zoe of elm") == {"f1": pytest.approx(0.4)}
    quality = get_task("zero_scrolls_quality")
    assert [quality.score(said(["A"]), text)["accuracy"] for text in ("(A) mill", "It is A.", "BAD A", "B A")] == [
        1,
        1,
        1,
        0,
    ]
    digest = get_task("zero_scrolls_space_digest")
    scores = [digest.score(said(["60%"]), text)["exp_similarity"] for text in ("60%", "70%", "about 40.0%", "60")]
    assert scores == pytest.approx([1, 0.5, 0.25, 0])
    order = get_task("zero_scrolls_book_sum_sort")
    scores = [
        order.score(said(["2, 1, 3"]), text)["concordance_index"] for text in ("2,1,3", "1 2 3", "3, 1, 2", "2, 1", "")
    ]
    assert scores == pytest.approx([1, 2 / 3, 0, 0, 0])


@pytest.mark.parametrize("name", ["scrolls_gov_report", "zero_scrolls_squality", "leval_news_summ"])
def test_rouge_is_the_geometric_mean_of_three_means(name):
    from rouge_score.rouge_scorer import RougeScorer

    made, answers = get_task(name), ["Ada keeps a mill at Elm.", "The mills run."]
    predictions = ["Ada kept the mill.", "The mill at Elm"]
    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(kinds.values()))
    rows = [{key: max(scorer.score(answer, text)[kind].fmeasure for answer in answers) for key, kind in kinds.items()}
            for text in predictions]  # fmt: skip
    scores = [made.score(said(answers), text) for text in predictions]
    assert scores == [pytest.approx(row) for row in rows]
    means = [50 * sum(row[key] for row in rows) for key in kinds]
    assert made.aggregate(scores)["rouge"] == pytest.approx((means[0] * means[1] * means[2]) ** (1 / 3))


def test_hallucinations_are_summed_up_by_f1_over_all_samples():
    from sklearn.metrics import f1_score, precision_score, recall_score

    made = get_task("bamboo_senhallu_4k")
    truth = ["Yes.", "Yes.", "No.", "No.", "Yes."]
    replies = ["Yes.", "no", "YES", "No.", " yes, it is"]
    found = made.aggregate([made.score(said([one]), reply) for one, reply in zip(truth, replies, strict=True)])
    true, guessed = [one == "Yes." for one in truth], [True, False, True, False, True]
    wanted = [100 * measure(true, guessed) for measure in (f1_score, precision_score, recall_score)]
    assert [found[key] for key in ("f1", "precision", "recall", "accuracy")] == pytest.approx([*wanted, 60])
    assert made.aggregate([made.score(said(["No."]), "No.")]) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 100}


def test_a_judge_of_loogle_gets_its_prompts_and_is_read(folder):
    made, (asked,) = built("loogle_shortdep_qa", folder)
    (prompt,) = made.judge_prompts(asked, "It is Ben")
    assert prompt.endswith("Question: Who waits?\ngroudtruth = Ben.\npredict_answer = It is Ben")
    replies = ("True", "False.", "Maybe")
    assert [made.judged(asked, "", [reply]) for reply in replies] == [{"judge": 1}, {"judge": 0}, {}]
    made, (asked,) = built("loogle_longdep_summarization", folder)
    assert made.judge_prompts(asked, "A mill")[0].endswith("Generated = A mill \nScore = ")
    replies = ("85", "85/100", "Good", "850")
    assert [made.judged(asked, "", [reply]) for reply in replies] == [{"judge": 0.85}, {"judge": 0.85}, {}, {}]


def test_rows_that_upstream_has_judged_are_left_out(folder, tmp_path):
    rows = [published.l_eval("news_summ", n) | {"evaluation": kind} for n, kind in enumerate(("LLM", "rouge", "human"))]
    (tmp_path / "news_summ.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = get_task("leval_news_summ", data_dir=tmp_path)
    assert made.default_samples == 2  # the two questions of the second row
    assert "Which {one} is 1? \nAnswer this question with 4 words." in made.build(tokenizer=TOKENIZER)[1].prompt


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("infinitebench_passkey", "passkey.jsonl", {"answer": None}, r"row 1: no answer that is a string"),
        ("infinitebench_code_debug", "code_debug.jsonl", {"options": ["a"]}, "1 options; expected 4"),
        ("infinitebench_code_debug", "code_debug.jsonl", {"answer": ["x"]}, "the answer 'x' is not one of the options"),
        ("infinitebench_code_run", "code_run.jsonl", {"input": "call it"}, "an input without"),
        ("zero_scrolls_qasper", "tau/zero_scrolls/qasper/validation.jsonl", {"output": None},
         r"no output: the answers of this split are not published: use `split=validation`"),
        ("zero_scrolls_qasper", "tau/zero_scrolls/qasper/validation.jsonl", {"query_end_index": 10**6},
         "indexes of document and query that are out of range of its input"),
        ("leval_tpo", "tpo.jsonl", {"outputs": ["A"]}, "2 instructions and 1 outputs"),
        ("bamboo_altqa_4k", "altqa_4k.jsonl", {"answer": 3}, "no str 'answer'"),
        ("loogle_shortdep_qa", "shortdep_qa.jsonl", {"qa_pairs": "import os"}, "qa_pairs is not a list of questions"),
        ("loogle_shortdep_cloze", "shortdep_cloze.jsonl", {"qa_pairs": "[{'Q': 'x', 'A': 'y'}]"}, "does not say what"),
        ("loogle_longdep_qa", "longdep_qa.jsonl", {"question": 1}, "a question that is not a string"),
    ],
)  # fmt: skip
def test_a_row_of_another_schema_is_one_line_that_says_where_it_is_from(name, file, change, message, folder, tmp_path):
    row = json.loads((folder / file).read_text(encoding="utf-8").splitlines()[0]) | change
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(json.dumps(row))
    with pytest.raises(UserError, match=message) as caught:
        built(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value) or "split" in str(caught.value)


def test_archives_are_read_as_they_are_and_broken_ones_are_said(folder, tmp_path):
    shutil.copy(folder / "tau/scrolls/qasper.zip", tmp_path / "quality.zip")
    with pytest.raises(UserError, match=r"quality\.zip: no quality/validation\.jsonl in it; expected rows with"):
        built("scrolls_quality", tmp_path)
    (tmp_path / "quality.zip").write_bytes(b"PK no")
    with pytest.raises(UserError, match=r"quality\.zip: not a readable ZIP file"):
        built("scrolls_quality", tmp_path)
    with pytest.raises(UserError, match="`split` is 'train'; expected validation or test"):
        get_task("scrolls_quality", split="train")


def test_all_missing_files_of_a_suite_are_named_at_once(folder, tmp_path):
    suites = Counter(get_task(name).suite for name in NAMES)
    for suite, count in suites.items():
        names = [name for name in NAMES if get_task(name).suite == suite]
        assert len(make_tasks(names, {"data_dir": str(folder)})) == count
        with pytest.raises(
            UserError, match=rf"lacks {count} files: put .* into a folder, from .*(the Hub|github)"
        ) as caught:
            make_tasks(names, {"data_dir": str(tmp_path)})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no data folder is set: put altqa_4k\.jsonl, altqa_16k\.jsonl into a folder"):
        make_tasks(["bamboo_altqa_4k", "bamboo_altqa_16k"], {})
    assert len(make_tasks(["infinitebench_passkey", "infinitebench_math_find"], {})) == 2  # from the hub


def test_characters_are_the_words_of_a_chinese_answer():
    assert character_f1_zh("图书馆！", ["图 书馆"]) == 1
    assert character_f1_zh("图书", ["图书馆"]) == pytest.approx(0.8)
