"""LongBench v2, against the prompts and rules of THUDM/LongBench at 2e00731."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from longlens.errors import UserError
from longlens.tasks import get_task
from longlens.tasks.longbench import summarize_v2
from longlens.tasks.longbench.v2 import PROMPT, PROMPT_WITHOUT_CONTEXT
from tests.tasks.fixtures import TOKENIZER
from tests.tasks.longbench.rows import V2

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "longbench.json").read_text(encoding="utf-8"))["v2"]


def built(folder, **settings):
    made = get_task("longbench_v2", data_dir=folder, **settings)
    return made, made.build(samples=4, tokenizer=TOKENIZER)


def as_pred_py(template, row):
    prompt = template.replace("$DOC$", row["context"].strip()).replace("$Q$", row["question"].strip())
    for letter in "ABCD":
        prompt = prompt.replace(f"$C_{letter}$", row[f"choice_{letter}"].strip())
    return prompt


@pytest.mark.parametrize(
    ("context", "template", "file"),
    [(True, PROMPT, "0shot.txt"), (False, PROMPT_WITHOUT_CONTEXT, "0shot_no_context.txt")],
)
def test_prompts_are_upstreams_its_marks_in_the_text_too(context, template, file, folder):
    assert hashlib.sha256(template.encode()).hexdigest() == GOLDEN[file]["sha256"]
    _, samples = built(folder, context=context)
    for sample, row in zip(samples, V2, strict=True):
        assert sample.prompt == as_pred_py(template, row)
        assert sample.answer_prefix == ""
        if context:
            start, end = sample.context_span
            assert sample.prompt[:start].endswith("<text>\n")
            assert sample.prompt[end:].startswith("\n</text>")
            assert sample.prompt[start:end] == as_pred_py("$DOC$", row)
            assert f"Let {row['question'].strip()} be a set" in sample.prompt
        else:
            assert sample.context_span is None


def test_a_sample_knows_its_groups_and_the_wrong_letters(folder):
    made, samples = built(folder)
    assert [sample.answers for sample in samples] == [["A"], ["B"], ["C"], ["D"]]
    assert samples[1].metadata["distractors"] == ["A", "C", "D"]
    said = [(s.metadata["difficulty"], s.metadata["length_label"], s.metadata["domain"]) for s in samples]
    assert said == [(row["difficulty"], row["length"], row["domain"]) for row in V2]
    assert (made.max_new_tokens, made.default_samples, made.overlong, made.template) == (128, 503, "middle", "prefill")
    assert made.metric in made.score(samples[0], "")


# pred.py, extract_answer: the statement with a letter in parentheses, else with a bare one; stars do not count.
@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("**The correct answer is (B)**", "B"),
        ("The correct answer is **B**", "B"),
        ("The correct answer is B", "B"),
        ("The correct answer is (A)", "A"),
        ("The correct answer is A or The correct answer is (B)", "B"),
        ("The correct answer is (C). No: The correct answer is (B)", "C"),
        ("the correct answer is (B)", None),
        ("The correct answer is: B", None),
        ("The correct answer is (E)", None),
        ("(B)", None),
        ("B", None),
        ("", None),
    ],
)
def test_replies_are_read_as_upstream_does(reply, letter, folder):
    made, samples = built(folder)
    right = float(letter == "B")
    assert made.score(samples[1], reply) == {"accuracy": right, "compensated": 0.25 if letter is None else right}


def test_what_a_model_continues_with(folder):
    made, (sample, *_) = built(folder)
    assert made.target(sample) == "The correct answer is (A)"
    for prefix, target in (("\n\nThe correct answer is", " (A)"), ("\nAnswer:", " The correct answer is (A)")):
        made, (sample, *_) = built(folder, answer_prefix=prefix)
        assert made.target(sample) == target
        assert made.score(sample, target)["accuracy"] == 1.0
        wrong = made.target(replace(sample, answers=["C"]))
        assert made.score(sample, wrong)["accuracy"] == 0.0
        assert wrong == target.replace("A", "C")  # as a choice among letters is made
    with pytest.raises(UserError, match="expected one that does not end in whitespace"):
        get_task("longbench_v2", answer_prefix="Answer: ")


def test_the_summary_is_that_of_result_py(folder):
    made, samples = built(folder)
    replies = ["The correct answer is (A)", "no idea", "The correct answer is (C)", "The correct answer is (A)"]
    scores = [made.score(sample, reply) for sample, reply in zip(samples, replies, strict=True)]
    metadata = [sample.metadata for sample in samples]
    assert summarize_v2(metadata, [row["accuracy"] for row in scores]) == {
        "overall": 50.0, "easy": 50.0, "hard": 50.0, "short": 33.3, "medium": 100.0, "long": None,
    }  # fmt: skip
    assert summarize_v2(metadata, [row["compensated"] for row in scores]) == {
        "overall": 56.2, "easy": 50.0, "hard": 62.5, "short": 41.7, "medium": 100.0, "long": None,
    }  # fmt: skip
    with pytest.raises(UserError, match="4 samples and 3 scores"):
        summarize_v2(metadata, [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, r"longbench_v2\.json, row 1: answer is 'E'; expected a list of questions"),
        ({"difficulty": "middling"}, "difficulty is 'middling'"),
        ({"length": 3}, "no str 'length'"),
        ({"choice_D": None}, "no str 'choice_D'"),
    ],
)
def test_a_row_that_is_not_right_is_said(change, message, tmp_path):
    (tmp_path / "longbench_v2.json").write_text(json.dumps([V2[0] | change]), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        get_task("longbench_v2", data_dir=tmp_path).build(samples=1, tokenizer=TOKENIZER)


def test_upstreams_file_is_found_and_the_hub_is_asked_where_there_is_none(tmp_path, folder, monkeypatch):
    import huggingface_hub

    (tmp_path / "data.json").write_text(json.dumps(V2), encoding="utf-8")
    asked = []

    def download(repo, name, **options):
        asked.append((repo, name, options["revision"]))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert [s.prompt for s in built(tmp_path)[1]] == [s.prompt for s in built(folder)[1]]
    with pytest.raises(UserError, match=r"cannot download data\.json of the Hub dataset zai-org/LongBench-v2"):
        get_task("longbench_v2", revision="abc").build(samples=1, tokenizer=TOKENIZER)
    assert asked == [("zai-org/LongBench-v2", "data.json", "abc")]
    with pytest.raises(UserError, match=r"has 4 rows .503 in the whole file.: request no more samples"):
        get_task("longbench_v2", data_dir=folder).build(tokenizer=TOKENIZER)
