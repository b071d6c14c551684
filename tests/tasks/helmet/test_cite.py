"""Answers with citations: prompts and scores against restatements of HELMET's rules."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks import get_task, metrics
from longlens.tasks.helmet.cite import ASQA, DOCUMENTS, QAMPARI, qampari_scores
from tests.tasks.fixtures import TOKENIZER
from tests.tasks.helmet.rows_cite_longqa_summ import TOWNS, asqa_row, demonstrations, qampari_row

ROWS = {
    "helmet_asqa": {row["question"]: row for row in map(asqa_row, TOWNS)},
    "helmet_qampari": {row["question"]: row for row in map(qampari_row, TOWNS)},
}


def built(name, folder, samples=5, **options):
    made = get_task(name, data_dir=folder, **options)
    return made, made.build(samples=samples, tokenizer=TOKENIZER)


def naive_documents(docs):
    return "\n\n".join(
        f"Document [{n}](Title: {doc['title']}): {doc['text'].rstrip()}" for n, doc in enumerate(docs, 1)
    )


@pytest.mark.parametrize(("name", "gap"), [("helmet_asqa", "\n\n"), ("helmet_qampari", "\n")])
def test_a_prompt_is_the_template_filled_in(name, gap, folder):
    made, samples = built(name, folder, docs=12)
    shown = {}
    for row in demonstrations("")["demos"]:
        head = f"{made.instruction}\n\nQuestion: {row['question']}\n\n"
        shown[row["question"]] = f"{head}{naive_documents(row['docs'])}{gap}Answer: {row['answer']}\n\n\n"
    for sample in samples:
        row = ROWS[name][sample.metadata["question"]]
        asked = re.findall(r"Question: (.*)\n", sample.prompt)
        assert len(asked) == 3
        assert len(set(asked)) == 3
        before = f"{shown[asked[0]]}{shown[asked[1]]}{made.instruction}\n\nQuestion: {row['question']}\n\n"
        context = naive_documents(row["docs"][:12])
        assert sample.prompt == before + context
        assert sample.answer_prefix == "\n\nAnswer:"
        assert sample.context_span == (len(before), len(sample.prompt))
        assert made.target(sample) is None
    assert len({sample.metadata["question"] for sample in samples}) == 5
    assert len({tuple(re.findall(r"Question: (.*)\n", sample.prompt)[:2]) for sample in samples}) > 1


def test_without_demonstrations_their_file_is_not_read(folder, tmp_path):
    (tmp_path / "data" / "alce").mkdir(parents=True)
    name = "asqa_eval_gtr_top2000.json"
    (tmp_path / "data" / "alce" / name).write_bytes((folder / name).read_bytes())
    (sample,) = get_task("helmet_asqa", data_dir=tmp_path, docs=3, shots=0).build(samples=1, tokenizer=TOKENIZER)
    assert sample.prompt.startswith(f"{ASQA.instruction}\n\nQuestion: Who ran")
    with pytest.raises(UserError, match=r"no asqa_revised\.json or prompts/asqa_revised\.json in .*HELMET, prompts/"):
        get_task("helmet_asqa", data_dir=tmp_path, docs=3).build(samples=1, tokenizer=TOKENIZER)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "asqa_revised.json").write_text(json.dumps(demonstrations("")))
    with pytest.raises(UserError, match=r"`shots=6`, but asqa_revised\.json has 5 demonstrations: pass fewer"):
        get_task("helmet_asqa", data_dir=tmp_path, docs=3, shots=6).build(samples=1, tokenizer=TOKENIZER)
    assert get_task("helmet_asqa", data_dir=tmp_path, docs=3).build(samples=1, tokenizer=TOKENIZER)


def test_instructions_are_helmets():
    digests = [hashlib.sha256(kind.instruction.encode()).hexdigest()[:16] for kind in (ASQA, QAMPARI)]
    assert digests == ["7f5c7da4d0ad3e9b", "5710c02e5aa3d6e9"]  # of "instruction" in prompts/*_revised.json
    assert [DOCUMENTS[4096], DOCUMENTS[131072]] == [8, 700]


def test_a_number_of_documents_that_is_not_there_is_refused(folder):
    _, samples = built("helmet_qampari", folder, samples=1, docs=91)
    assert samples[0].metadata["units"] == 91
    with pytest.raises(UserError, match=r"`docs=92`, but qampari_eval_.* has 91 documents for 'Which boats .*': pass"):
        built("helmet_qampari", folder, docs=92)
    with pytest.raises(UserError, match="has 7 questions: request no more samples"):
        built("helmet_qampari", folder, docs=2, samples=8)
    for wrong in ({"docs": 0}, {"shots": -1}):
        with pytest.raises(UserError, match="expected at least"):
            get_task("helmet_asqa", **wrong)


def test_another_seed_asks_other_questions_in_another_order(folder):
    made = get_task("helmet_asqa", data_dir=folder, docs=2)
    orders = [
        [sample.metadata["question"] for sample in made.build(samples=7, seed=seed, tokenizer=TOKENIZER)]
        for seed in (1, 2)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(ROWS["helmet_asqa"])
    assert orders[0] != orders[1]


def test_cited_documents_are_those_of_the_prompt(folder):
    made, samples = built("helmet_asqa", folder, docs=12)
    for sample in samples:
        docs = ROWS["helmet_asqa"][sample.metadata["question"]]["docs"]
        calls: list[tuple[str, str]] = []
        made.cited(sample, "It was so [2][12]. It ended [13].", lambda *call, to=calls: bool(to.append(call)))
        premise = "\n".join(f"Title: {doc['title']}\n{doc['text'].rstrip()}" for doc in (docs[1], docs[11]))
        assert calls == [(premise, "It was so.")]  # there is no thirteenth


def test_citations_are_counted_by_hand(folder):
    made, (sample, *_) = built("helmet_asqa", folder, docs=5)
    first = sample.metadata["answer_groups"][0][0]

    def entails(premise, claim):
        return first in premise

    both = f"{first} ran it [1]. It is closed [2]. Nobody knows why. It burned down [1][3]."
    assert made.cited(sample, both, entails) == {"citation_recall": 0.5, "citation_precision": 0.5}
    # four claims, two supported; of four citations [1] and, beside it, [1] are needed
    assert made.cited(sample, "Hm.", entails) == {}
    assert made.cited(sample, "\n", entails) == {}
    assert made.cited(sample, "Nothing is cited.", entails) == {"citation_recall": 0.0, "citation_precision": 0.0}


def test_items_of_a_list_are_claims_with_the_question(folder):
    made, (sample, *_) = built("helmet_qampari", folder, docs=5)
    question, claims = sample.metadata["question"], []
    made.cited(sample, "Swift [1], Heron [2],\nGull.", lambda _, claim: claims.append(claim) or True)
    assert claims == [f"{question} Swift", f"{question} Heron"]


def naive_str_em(output, groups):
    """The share of groups with a name in the reply, whose citations are all of the plain kind here."""
    said = metrics.normalize_answer(re.sub(r" ?\[\d\]|<.*?>", "", output))
    found = [True for group in groups if [name for name in group if metrics.normalize_answer(name) in said]]
    return len(found) / len(groups)


def test_asqa_counts_questions_that_are_answered(folder):
    made, samples = built("helmet_asqa", folder, docs=4)
    for sample in samples:
        (run,), (kept, called), (when,) = sample.metadata["answer_groups"]
        assert sample.answers == [run, kept, called, when]
        for reply, share in (
            (f"{run} [1] and {called} [2]\n", 2 / 3),
            (f"{run}, {kept} in {when.upper()} [3].<|im_end|>", 1.0),
            (f"{kept} and {called}", 1 / 3),
            ("[1]", 0.0),
        ):
            assert made.score(sample, reply) == {"str_em": share, "str_hit": float(share == 1)}
            assert naive_str_em(reply, sample.metadata["answer_groups"]) == share


def naive_qampari(output, answers):
    """Items between commas, without the dots and commas of the end, are looked up in the names and these in them."""
    items = [metrics.normalize_answer(item) for item in re.sub(r",*\.*\s*\Z", "", output).split(",")]
    items = list(filter(None, items))
    groups = [set(map(metrics.normalize_answer, names)) for names in answers]
    right = [item for item in items if any(item in group for group in groups)]
    hits = len([group for group in groups if group & set(items)])
    precision = len(right) / max(1, len(items))
    recall = hits / len(groups)
    top = 1.0 if hits >= 5 else hits / min(5, len(groups))

    def f1(share):
        return 0.0 if not precision or not share else 2 / (1 / precision + 1 / share)

    return {
        "qampari_rec_top5": top,
        "qampari_rec": recall,
        "qampari_prec": precision,
        "qampari_f1": f1(recall),
        "qampari_f1_top5": f1(top),
    }


NAMES = st.sampled_from(["Swift", "the swift", "Heron.", "Lark", "Otter", "Gull", "Tern", "The", ""])


@settings(derandomize=True, deadline=None)
@given(
    st.lists(NAMES, max_size=9),
    st.sampled_from([", ", ",", " ,"]),
    st.sampled_from(["", ".", ",.", " \n"]),
    st.lists(st.lists(NAMES, min_size=1, max_size=2), min_size=1, max_size=7),
)
def test_lists_are_scored_as_helmet_does(items, between, end, groups):
    output = between.join(items) + end
    assert qampari_scores(output, groups) == pytest.approx(naive_qampari(output, groups))


def test_citations_are_no_part_of_an_item(folder):
    made, (sample, *_) = built("helmet_qampari", folder, docs=4)
    reply = ", ".join(f"{names[-1]} [{n}]" for n, names in enumerate(sample.metadata["answer_groups"], 1))
    assert set(made.score(sample, f"{reply}.").values()) == {1.0}
    assert made.score(sample, f"{sample.answers[0]} [1]")["qampari_rec_top5"] == 1 / 5
    assert next(iter(made.score(sample, ""))) == made.metric


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"docs": []}, "row 1: no docs"),
        ({"docs": [{"title": "a"}]}, "row 1: no str 'text'"),
        ({"qa_pairs": []}, "row 1: no answers"),
        ({"qa_pairs": [{"short_answers": []}]}, "row 1: no answers"),
        ({"qa_pairs": [{"short_answers": [3]}]}, "'short_answers' that are not strings"),
        ({"question": None}, "row 1: no str 'question'"),
    ],
)
def test_rows_of_another_schema_are_refused(change, message, tmp_path):
    (tmp_path / "asqa_eval_gtr_top2000.json").write_text(json.dumps([asqa_row("Arle") | change]))
    with pytest.raises(UserError, match=message):
        get_task("helmet_asqa", data_dir=tmp_path, docs=1, shots=0).build(samples=1, tokenizer=TOKENIZER)
