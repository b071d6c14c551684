"""Offline weights: what LongCE computes online, beside the right tokens, through packing; other texts are refused."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import longlens
from longlens.data.mixture import pack_folder
from longlens.data.packing import BestFit, Fill, pack_dataset
from longlens.data.weigh import carry_with_ones, weigh, weigh_folder, weights_of
from longlens.errors import LonglensWarning, UserError
from longlens.keytokens.alignment import carry_weights
from longlens.keytokens.influence import soft_influence
from longlens.losses import longce_weights
from longlens.tokenization import TextEncoder
from tests.reference.longce import naive_logprobs, naive_short
from tests.tiny import byte_tokenizer, tiny_model
from tests.toys import NAN, scores, token_scores

K, D, GAMMA = 16, 8, 3.0
TEXTS = {
    "a": "It was the best of times, it was the worst of times. ",
    "b": "Call me Ishmael. Some years ago",
    "c": "Hi",
}


class Words:
    """An encoder whose tokens are words with the space before them; another tokenizer than that of the scores."""

    sha256 = "words"

    def encode(self, text):
        ends = [at for at, letter in enumerate(text) if letter == " "] + [len(text)]
        spans = np.array(list(zip([0, *ends[:-1]], ends, strict=True)), dtype=np.int64)
        return type("Encoded", (), {"token_ids": np.arange(len(spans)), "char_spans": spans})


TOY = scores(
    token_scores(["the", " cat", " s", "at"], [-1, -1, -1, -1], [NAN, -1, -3, -9], id="a"),
    token_scores(["a", "b"], [NAN, -1], [NAN, NAN], id="b"),
)
TOY_WEIGHTS = [1.0, 1.0, 5.0, 5.0]


def dataset(**columns):
    return datasets.Dataset.from_dict(columns)


def test_weights_by_hand():
    found = weigh(dataset(id=["b", "a"], text=["ab", "the cat sat"]), TOY)
    assert found.column_names == ["id", "text", "token_weights", "input_ids"]
    assert found["token_weights"][:] == [[1.0, 1.0], TOY_WEIGHTS]
    assert found["input_ids"][:] == [[0, 1], [0, 1, 2, 3]]


def test_weights_are_soft_influence_where_there_is_a_short_score():
    for row in TOY:
        wanted = np.where(np.isnan(row.lsd), 1, soft_influence(row.lsd, gamma=2.5))
        np.testing.assert_array_equal(weights_of(row, gamma=2.5), wanted.astype(np.float32))
        online = longce_weights(torch.tensor(row.long_logprobs), torch.tensor(row.short_logprobs), 2.5)
        np.testing.assert_allclose(weights_of(row, gamma=2.5), online, rtol=1e-6)
    assert weights_of(TOY[0], what="short_logprobs").tolist()[1:] == [-1, -3, -9]


def test_tokenized_rows_with_bos_and_eos():
    rows = [[0, 1, 2, 3], [9, 0, 1, 2, 3], [0, 1, 2, 3, 8], [9, 0, 1, 2, 3, 8]]
    found = weigh(dataset(id=["a"] * 4, input_ids=rows), TOY, column="w")
    around = [TOY_WEIGHTS, [1, *TOY_WEIGHTS], [*TOY_WEIGHTS, 1], [1, *TOY_WEIGHTS, 1]]
    assert found["w"][:] == around
    found = weigh(dataset(id=["a"], input_ids=[rows[3]]), TOY, what="short_logprobs")
    np.testing.assert_array_equal(found[0]["short_logprobs"], [NAN, NAN, -1, -3, -9, NAN])


def test_another_tokenizer_gets_weights_by_characters():
    found = weigh(dataset(id=["a"], text=["the cat sat"]), TOY, encoder=Words())
    assert found["input_ids"][:] == [[0, 1, 2]]
    assert found["token_weights"][:] == [[1.0, 1.0, 5.0]]
    row = TOY[0]
    carried = carry_weights(row.char_spans, TOY_WEIGHTS, Words().encode("the cat sat").char_spans)
    np.testing.assert_allclose(found["token_weights"][0], carried)


def test_characters_that_no_token_has_weigh_one():
    assert carry_with_ones([[0, 2], [4, 6]], [3.0, 5.0], [[0, 2], [2, 4], [1, 5], [4, 4]]).tolist() == [
        3,
        1,
        2.5,
        1,
    ]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"id": ["a"], "text": ["the bat sat"]},
            {},
            "row 1 has the id 'a' and another text than was scored: score the",
        ),
        ({"id": ["c"], "text": ["x"]}, {}, "row 1 has the id 'c', which was not scored (2 documents were): score the"),
        ({"text": ["x"]}, {}, "row 1 has no field 'id', which identifies the document: set `id_field`"),
        ({"id": ["a"], "body": ["x"]}, {}, "row 1 has neither input_ids nor a text in the field 'text': set `text"),
        (
            {"id": ["a"], "input_ids": [[0, 1, 2, 4]]},
            {},
            "row 1 has the id 'a' and other tokens than were scored (4 here, 4 there): it is from another text or",
        ),
        (
            {"id": ["a"], "input_ids": [[0, 1, 2, 3]]},
            {"encoder": Words()},
            "row 1 has input_ids and was scored with an",
        ),
        (
            {"id": ["a"], "text": ["the cat sat"]},
            {"encoder": Words(), "what": "short_logprobs"},
            "short log-probabilities are of the tokens of one tokenizer, and the scores are of another",
        ),
        ({"id": ["a"], "text": ["the cat sat"]}, {"gamma": 0}, "`gamma` is 0, expected a finite number above 0"),
        ({"id": ["a"], "text": ["the cat sat"]}, {"what": "x"}, "`what` is 'x'; expected token_weights or short_logpr"),
        ({"id": ["a"], "token_weights": [[1.0]]}, {}, "the dataset has a column 'token_weights' already: remove it"),
    ],
)
def test_what_is_refused(columns, options, message):
    with pytest.raises(UserError) as refused:
        weigh(dataset(**columns), TOY, **options)
    assert str(refused.value).startswith(message)


def test_scores_of_the_beginning_of_a_text():
    cut = scores(token_scores(["the", " cat"], [-1, -1], [NAN, -2], id="a", total_tokens=4))
    with pytest.raises(UserError, match=r"another text than was scored \(the scores are of its first 2 tokens\)"):
        weigh(dataset(id=["a"], text=["the cat sat"]), cut)


def test_scores_without_short_context():
    with pytest.raises(UserError, match="document 'a' has no short-context scores"):
        weigh(dataset(id=["a"], text=["ab"]), scores(token_scores(["a", "b"], [-1, -1], id="a")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model without BOS, and the scores of its own on `TEXTS`."""
    from longlens.scoring.transformers import TransformersScorer

    model, tokenizer = tiny_model("llama"), byte_tokenizer(bos=False)
    scorer = TransformersScorer(model, tokenizer, name="tiny", source="toy", weights_sha256="tiny")
    folder = tmp_path_factory.mktemp("trained")
    documents = [longlens.Document(id=id, text=text) for id, text in TEXTS.items()]
    return model, tokenizer, longlens.score(documents, scorer, context=K, stride=D, out=folder / "scores")


def online(model, ids):
    """Weights of LongCE for tokens 1, 2, ... of a document, and their short log-probabilities, by the naive loop."""
    with torch.no_grad():
        ids = torch.tensor(ids)
        short = naive_short(model, ids, K, D)
        return longce_weights(naive_logprobs(model, ids), short, GAMMA).numpy(), short.numpy()


@pytest.mark.parametrize("packing", [BestFit(), Fill()])
def test_packed_weights_are_those_that_longce_computes_online(trained, packing):
    model, _, stored = trained
    texts = dataset(id=list(TEXTS), text=list(TEXTS.values()))
    weighed = weigh(weigh(texts, stored, gamma=GAMMA), stored, what="short_logprobs")
    packed, counts = pack_dataset(weighed, 90, packing=packing)
    assert counts.documents == 3
    seen = 0
    for row in packed:
        starts = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        for start, stop in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            weights, short = online(model, row["input_ids"][start:stop])
            assert row["token_weights"][start] == 1
            np.testing.assert_allclose(row["token_weights"][start + 1 : stop], weights, rtol=1e-4)
            np.testing.assert_allclose(row["short_logprobs"][start + 1 : stop], short, atol=1e-4)
            seen += int((weights != 1).sum())
    assert seen > 40


def test_bos_and_eos_are_around_packed_weights(trained, tmp_path, monkeypatch):
    """With the folder that the command writes: offline weights of the text's tokens, 1 for what is put around them."""
    _, _, stored = trained
    monkeypatch.chdir(tmp_path)
    lines = [f'{{"id": "{id}", "text": "{text}"}}' for id, text in TEXTS.items()]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    counts = weigh_folder(["t.jsonl"], stored, "weighed", gamma=GAMMA)
    rows = pq.read_table("weighed/data").to_pylist()
    assert [row["id"] for row in rows] == list(TEXTS)
    assert counts["tokens"] == sum(len(text) for text in TEXTS.values())
    np.testing.assert_allclose(counts["mean_weight"], np.mean([w for row in rows for w in row["token_weights"]]))
    tokenizer = byte_tokenizer(bos=False)
    assert (
        pack_folder(["weighed"], tokenizer, "packed", length=99, packing=BestFit())["row_tokens"]
        == 3 + counts["tokens"]
    )
    for row in pq.read_table("packed/data").to_pylist():
        weight = [w for id, w in zip(row["input_ids"], row["token_weights"], strict=True) if id == 257]
        assert set(weight) == {1.0}
    with pytest.warns(LonglensWarning, match="the documents: 2 documents with token_weights were split"):
        pack_folder(["weighed"], tokenizer, "short", length=20, packing=BestFit())
    with pytest.raises(UserError, match="weighed was tokenized by another tokenizer"):
        pack_folder(["weighed"], byte_tokenizer(), "other", length=99, packing=BestFit())
    with pytest.raises(UserError, match=r"packed is already packed \(a 'packed' of longlens\): pass it to the trainer"):
        pack_folder(["packed"], tokenizer, "twice", length=99, packing=BestFit())


def test_the_same_tokenizer_named_again_changes_nothing(trained):
    _, tokenizer, stored = trained
    texts = dataset(id=list(TEXTS), text=list(TEXTS.values()))
    with_encoder = weigh(texts, stored, encoder=TextEncoder(tokenizer))
    assert with_encoder[:] == weigh(texts, stored)[:]


def test_weighing_imports_no_torch():
    program = (
        "import sys, datasets, pyarrow\nimport longlens.data\nfrom longlens.data import mixture, weigh\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_published_rule_gives_the_weights_of_documents_with_bos():
    """BOS counts in the windows and stands before the first alone, as in a training row that begins with it."""
    from longlens.scoring.transformers import TransformersScorer

    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    scorer = TransformersScorer(model, tokenizer, name="tiny", source="toy", weights_sha256="tiny")
    documents = [longlens.Document(id=id, text=text) for id, text in TEXTS.items()]
    stored = longlens.score(documents, scorer, context=K, stride=D, bos="published")
    weighed = weigh(dataset(id=["a"], text=[TEXTS["a"]]), stored, gamma=GAMMA)[0]
    weights, _ = online(model, [256, *weighed["input_ids"]])
    np.testing.assert_allclose(weighed["token_weights"], weights, rtol=1e-4)
    other = longlens.score(documents, scorer, context=K, stride=D)
    weighed = weigh(dataset(id=["a"], text=[TEXTS["a"]]), other, gamma=GAMMA)[0]
    assert np.abs(np.array(weighed["token_weights"]) - weights).max() > 0.1  # the default has BOS before every window


def test_the_file_in_the_docs_trains_with_weights(tmp_path):
    """Gradients of transformers' Trainer with the file of docs/data.md are those of the weighted sum, written out."""
    from transformers import Trainer, TrainingArguments

    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "longce_offline.py").write_text(next(b for b in blocks if b.startswith("# longce_offline.py")))
    offline = runpy.run_path(str(tmp_path / "longce_offline.py"))
    ids = [list(range(10, 26)), list(range(40, 56))]
    weights = np.random.default_rng(0).uniform(0.1, 5, (2, 16)).astype(np.float32).tolist()
    packed, _ = pack_dataset(dataset(input_ids=ids, token_weights=weights), 32)
    model = tiny_model("llama")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=1,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=packed)
    offline["install"](trainer)
    trainer.train()
    naive = tiny_model("llama")
    losses = [
        -(naive_logprobs(naive, torch.tensor(row)) * torch.tensor(weight[1:])).sum()
        for row, weight in zip(ids, weights, strict=True)
    ]
    (sum(losses) / 30).backward()
    for (name, after), parameter in zip(model.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(before[name] - after.detach(), parameter.grad, atol=1e-4, rtol=1e-3)
