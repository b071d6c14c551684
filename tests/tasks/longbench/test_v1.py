"""LongBench v1 and LongBench-E, against hashes of the prompts, numbers and rules of THUDM/LongBench at 2e00731."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks, metrics
from longlens.tasks.longbench import SETS, bucket_means
from longlens.tasks.longbench.sets import DOMAINS
from tests.tasks.fixtures import TOKENIZER
from tests.tasks.longbench.rows import FIRST, LENGTHS, TREC_CLASSES, rows_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "longbench.json").read_text(encoding="utf-8"))["v1"]
# pred.py, main: the sets of --e; and in get_pred: those without build_chat
E = [
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
]  # fmt: skip
NO_CHAT = ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]
# eval.py, scorer
FIRST_LINE = ["trec", "triviaqa", "samsum", "lsht"]


def test_the_table_is_upstreams():
    said = {
        name: {
            "max_new_tokens": facts.max_new_tokens,
            "sha256": hashlib.sha256(f"{facts.prompt}{facts.prefix}".encode()).hexdigest(),
        }
        for name, facts in SETS.items()
    }
    assert said == GOLDEN
    assert list(said) == list(GOLDEN)
    assert [name for name, facts in SETS.items() if facts.samples_e] == E
    assert [name for name, facts in SETS.items() if facts.template == "none"] == NO_CHAT
    assert [name for name, facts in SETS.items() if facts.first_line] == FIRST_LINE
    assert [name for name, facts in SETS.items() if facts.stop] == ["samsum"]
    assert sum(facts.samples for facts in SETS.values()) == 4750  # README: "a total of 4,750 test data"
    # README's table: sets of English, Chinese and code by domain
    languages = [[facts.language for facts in SETS.values() if facts.category == domain] for domain in DOMAINS]
    assert [(row.count("en"), row.count("zh"), row.count("code")) for row in languages] == [
        (3, 1, 0), (3, 1, 0), (3, 1, 0), (3, 1, 0), (2, 1, 0), (0, 0, 2),
    ]  # fmt: skip


def test_every_set_is_a_task():
    assert [name for name in list_tasks() if name.startswith("longbench_")] == [
        *(f"longbench_{name}" for name in SETS), *(f"longbench_e_{name}" for name in E), "longbench_v2",
    ]  # fmt: skip
    for name, facts in SETS.items():
        made = get_task(f"longbench_{name}")
        assert (made.suite, made.category, made.metric) == ("longbench", facts.category, facts.metric)
        assert (made.max_new_tokens, made.template, made.stop) == (facts.max_new_tokens, facts.template, facts.stop)
        assert made.default_samples == facts.samples
    made = get_task("longbench_e_qasper")
    assert (made.suite, made.category, made.default_samples) == ("longbench_e", "single-doc QA", 224)


def built(name, folder, **arguments):
    made = get_task(name, data_dir=folder)
    return made, made.build(**({"samples": 6, "tokenizer": TOKENIZER} | arguments))


@pytest.mark.parametrize("name", SETS)
def test_prompts_are_upstreams_up_to_white_space_at_the_end(name, folder):
    _, samples = built(f"longbench_{name}", folder)
    for sample, row in zip(samples, rows_of(name), strict=True):
        whole = f"{SETS[name].prompt}{SETS[name].prefix}".format(**row)  # upstream's, as the hashes say
        assert sample.prompt + sample.answer_prefix == whole.rstrip()
        assert sample.prompt == sample.prompt.rstrip()
        assert sample.prompt + sample.answer_prefix + sample.metadata["white_space"] == whole
        start, end = sample.context_span
        assert sample.prompt[start:end] in (row["context"], row["context"].rstrip())
        assert sample.prompt[start:end] == row["context"] or end == len(sample.prompt)
        if FIRST[name][0].strip() and name != "repobench-p":  # where there is a prefix, nothing of the row is in it
            assert row["input"].strip() in sample.prompt
            assert row["input"].strip() not in sample.answer_prefix
        assert sample.answers == row["answers"]


# What continues upstream's prompt, white space and all.
@pytest.mark.parametrize(
    ("name", "prefix", "target"),
    [
        ("narrativeqa", "\n\nAnswer:", None),
        ("hotpotqa", " \nAnswer:", " Ada Hcrib"),
        ("multifieldqa_zh", "\n回答：", "十二座桥"),
        ("gov_report", "\n\nSummary:", " Five towns have mayors and bridges."),
        ("vcsum", "\n\n会议总结：", "图书馆、港口和面包店的情况。"),
        ("trec", "", " Animal group"),
        ("triviaqa", "", "\nElm"),
        ("samsum", "", " Ada comes to Ben."),
        ("lsht", "", "科学技术"),
        ("passage_count", "\n\nThe final answer is:", " 5"),
        ("passage_retrieval_en", "\n\nThe answer is:", " Paragraph 3"),
        ("passage_retrieval_zh", "\n\n答案是：", "段落2"),
        ("lcc", "\nNext line of code:", "\n        return len(self.wheels)"),
        ("repobench-p", "\nNext line of code:", "\n        return len(self.wheels)"),
    ],
)
def test_the_answer_prefix_has_its_separator_and_the_target_its_white_space(name, prefix, target, folder):
    made, (sample,) = built(f"longbench_{name}", folder, samples=1)
    assert sample.answer_prefix.endswith(prefix.lstrip(" "))
    assert sample.answer_prefix.strip() == prefix.strip()
    assert made.target(sample) == target
    if target is not None:
        assert made.score(sample, target)[made.metric] == pytest.approx(1.0)


def as_eval_py(name, prediction, answers, classes):
    """``scorer`` of eval.py for one prediction, with its dataset2metric written out."""
    f1, rouge = ["narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"], [
        "gov_report", "qmsum", "multi_news", "samsum",
    ]  # fmt: skip
    score = 0.0
    if name in FIRST_LINE:
        prediction = prediction.lstrip("\n").split("\n")[0]
    for answer in answers:
        if name in f1:
            one = metrics.token_f1(prediction, answer, variant="longbench")
        elif name in rouge:
            one = metrics.rouge_l(prediction, answer, variant="longbench")
        elif name == "multifieldqa_zh":
            one = metrics.token_f1_zh(prediction, answer)
        elif name in ("dureader", "vcsum"):
            one = metrics.rouge_l_zh(prediction, answer)
        elif name in ("trec", "lsht"):
            one = metrics.classification_score(prediction, answer, classes)
        elif name == "passage_retrieval_en":
            one = metrics.retrieval_score(prediction, answer)
        elif name == "passage_retrieval_zh":
            one = metrics.retrieval_score_zh(prediction, answer)
        elif name == "passage_count":
            one = metrics.count_score(prediction, answer)
        else:
            one = metrics.code_similarity(prediction, answer)
        score = max(score, one)
    return score


@pytest.mark.parametrize("name", SETS)
def test_scores_are_upstreams(name, folder):
    made, samples = built(f"longbench_{name}", folder)
    answer = samples[0].answers[-1]
    predictions = [
        f" {answer}",
        f"\n{answer}\nand more 1 2 3",
        "no",
        f"{answer} or the Food of 3",
        "",
        f"# why\n{answer}",
    ]
    scores = [made.score(sample, text) for sample, text in zip(samples, predictions, strict=True)]
    wanted = [as_eval_py(name, text, samples[0].answers, FIRST[name][3]) for text in predictions]
    assert scores == [{made.metric: value} for value in wanted]
    assert made.aggregate(scores) == {made.metric: round(100 * sum(wanted) / 6, 2)}
    assert wanted[0] > 0.9
    assert wanted[2] < 0.9


def test_only_the_first_line_counts_for_four_sets(folder):
    for name, good in (
        ("trec", "Animal group"),
        ("triviaqa", "Elm"),
        ("samsum", "Ada comes to Ben"),
        ("lsht", "科学技术"),
    ):
        made, (sample,) = built(f"longbench_{name}", folder, samples=1)
        assert made.score(sample, f"\n\n{good}\nFood 体育")[made.metric] == made.score(sample, good)[made.metric] > 0.8
        assert made.score(sample, f"nothing\n{good}")[made.metric] == 0.0


def test_wrong_answers_are_the_other_classes_and_paragraphs(folder):
    _, (trec,) = built("longbench_trec", folder, samples=1)
    assert trec.metadata["all_classes"] == TREC_CLASSES
    assert sorted(trec.metadata["distractors"]) == sorted(set(TREC_CLASSES) - {"Animal group"})
    _, (english,) = built("longbench_passage_retrieval_en", folder, samples=1)
    assert sorted(english.metadata["distractors"]) == [f"Paragraph {number}" for number in (1, 2, 4, 5)]
    _, (chinese,) = built("longbench_passage_retrieval_zh", folder, samples=1)
    assert sorted(chinese.metadata["distractors"]) == ["段落1", "段落3"]
    _, (free,) = built("longbench_hotpotqa", folder, samples=1)
    assert "distractors" not in free.metadata


@pytest.mark.parametrize("name", ["longbench_qasper", "longbench_lcc", "longbench_dureader"])
def test_the_middle_of_a_long_prompt_goes(name, folder):
    made, (whole,) = built(name, folder, samples=1)
    length = whole.length - 101
    (cut,) = made.build(samples=1, tokenizer=TOKENIZER, length=length)
    assert length - 8 <= cut.length <= length  # a character of Chinese is three tokens here
    assert cut.metadata["cut"]["policy"] == "middle"
    assert cut.answer_prefix == whole.answer_prefix
    half = len(cut.prompt) // 2 - 4
    assert cut.prompt[:half] == whole.prompt[:half]
    assert cut.prompt[-half:] == whole.prompt[-half:]


def test_e_has_buckets_by_the_length_of_the_row(folder):
    _, samples = built("longbench_e_hotpotqa", folder)
    assert [sample.metadata["row_length"] for sample in samples] == list(LENGTHS)
    assert [sample.metadata["bucket"] for sample in samples] == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+", "8k+"]
    scores = [0.5, 0.0, 1 / 3, 1.0, 1.0, 0.125]
    means = bucket_means([sample.metadata for sample in samples], scores)
    assert means == {"0-4k": 25.0, "4-8k": round(100 * (1 / 3 + 1) / 2, 2), "8k+": 56.25}
    assert bucket_means([samples[0].metadata], [1.0]) == {"0-4k": 100.0, "4-8k": None, "8k+": None}
    with pytest.raises(UserError, match="1 samples and 2 scores; expected as many of each, at least one"):
        bucket_means([samples[0].metadata], [1.0, 0.0])
    _, plain = built("longbench_hotpotqa", folder)
    assert [sample.prompt for sample in plain] == [sample.prompt for sample in samples]


def test_files_are_found_where_the_archive_puts_them_and_beside(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = rows_of("trec")
    (tmp_path / "trec.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, lines = built("longbench_trec", tmp_path)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "trec_e.parquet")
    _, columns = built("longbench_e_trec", tmp_path)
    assert [sample.prompt for sample in lines] == [sample.prompt for sample in columns]
    assert (lines[0].metadata["data"]["file"], columns[0].metadata["data"]["file"]) == ("trec.jsonl", "trec_e.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input": None},
            r"trec\.jsonl, row 1: no str 'input'; expected one row per question, with input, context and _id",
        ),
        ({"context": 3}, "no str 'context'"),
        ({"answers": []}, "answers is not a list of at least one string"),
        ({"answers": "Food"}, "no list 'answers'"),
        ({"all_classes": [1]}, "all_classes is not a list of at least one string"),
        ({"all_classes": None}, "no list 'all_classes'"),
        ({"length": "long"}, "no int 'length'"),
        ({"_id": None}, "no str '_id'"),
    ],
)
def test_a_row_that_is_not_right_is_said(change, message, tmp_path):
    (tmp_path / "trec.jsonl").write_text(json.dumps(rows_of("trec")[0] | change), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        built("longbench_trec", tmp_path, samples=1)


def test_data_that_is_not_there_is_said(tmp_path, folder):
    with pytest.raises(UserError, match=r"longbench_lcc reads data .* data/lcc\.jsonl or lcc\.jsonl .*THUDM/LongBench"):
        get_task("longbench_lcc").build(samples=1, tokenizer=TOKENIZER)
    with pytest.raises(UserError, match=r"longbench_e_lcc: no data/lcc_e\.jsonl or lcc_e\.jsonl or lcc_e\.parquet in"):
        built("longbench_e_lcc", tmp_path)
    with pytest.raises(UserError, match=r"lcc\.jsonl has 6 rows .500 in the whole file.: request no more samples"):
        built("longbench_lcc", folder, samples=None)
