"""Models of entailment: which are taken, what they say, and what is refused or cut."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from longlens.errors import LonglensWarning, UserError
from longlens.models.entailment import MAX_NEW_TOKENS, PROMPT, load_entails
from tests.tiny import OWN_GENERATION, VOCABULARY, byte_tokenizer

PREMISE, CLAIM = "Title: Mill\nThe mill grinds corn.", "The mill grinds."
LABELS = ["contradiction", "Entailment", "neutral"]
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def tokenizer(*, pair: bool):
    """A byte a token: `<s> premise </s> claim </s>`, or a text and `</s>` as T5 has it."""
    made = byte_tokenizer(adds_bos=False)
    names = [("<s>", 256), ("</s>", 257)]
    single, double = ("<s> $A </s>", "<s> $A </s> $B </s>") if pair else ("$A </s>", None)
    made.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=double, special_tokens=names)
    made.add_special_tokens({"pad_token": "</s>"})
    return made


def saved(model, folder, *, pair: bool = True):
    model.save_pretrained(folder)
    tokenizer(pair=pair).save_pretrained(folder)
    return str(folder)


def classifier(kind: str = "Bert", labels=LABELS, **changes):
    config = getattr(transformers, f"{kind}Config")(
        **(_BERT | changes), id2label=dict(enumerate(labels)), label2id={label: n for n, label in enumerate(labels)}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # so that labels change with the text
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return saved(classifier(), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """Trained to write 1 for one claim and 0 for the other."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=257,
        pad_token_id=257,
        eos_token_id=257,
    )
    model = transformers.T5ForConditionalGeneration(config)
    bytes_of = tokenizer(pair=False)
    texts = [PROMPT.format(PREMISE, claim) for claim in ("mill, mill, mill", "zzzz, zzzz, zzzz")]
    longest = max(len(text) for text in texts) + 1
    inputs = bytes_of(texts, return_tensors="pt", padding="max_length", max_length=longest)
    labels = bytes_of(["1", "0"], return_tensors="pt").input_ids
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    return saved(model.eval(), tmp_path_factory.mktemp("t5"), pair=False)


def test_a_claim_follows_where_its_label_is_the_likeliest(bert):
    entails = load_entails(bert)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert)
    encode = tokenizer(pair=True)
    said = []
    for number in range(20):
        premise, claim = f"{number} {chr(97 + number) * 9}", f"{chr(117 - number) * 3}."
        logits = model(**encode(premise, claim, return_tensors="pt")).logits[0]
        said.append(entails(premise, claim))
        assert said[-1] is bool(LABELS[int(logits.argmax())] == "Entailment")
    assert set(said) == {True, False}
    assert entails.name == bert
    assert len(entails.weights_sha256) == 64


def test_premise_and_claim_are_not_the_same_to_it(bert):
    entails = load_entails(bert)
    pairs = [("a" * n, "b" * (20 - n)) for n in range(1, 20)]
    assert [entails(a, b) for a, b in pairs] != [entails(b, a) for a, b in pairs]


def test_a_writer_is_asked_as_helmet_asks_and_1_is_yes(t5):
    entails = load_entails(t5)
    assert entails.generation["in_force"]["max_new_tokens"] == MAX_NEW_TOKENS
    assert entails(PREMISE, "mill, mill, mill") is True
    assert entails(PREMISE, "zzzz, zzzz, zzzz") is False


def test_a_folder_that_asks_for_sampling_is_still_greedy(t5, tmp_path):
    folder = tmp_path / "t5"
    shutil.copytree(t5, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OWN_GENERATION))
    entails = load_entails(str(folder))
    assert all(entails(PREMISE, "mill, mill, mill") for _ in range(5))


def test_a_writer_that_writes_neither_1_nor_0_is_warned_of(t5, tmp_path):
    model = transformers.T5ForConditionalGeneration.from_pretrained(t5)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))
    entails = load_entails(saved(model, tmp_path, pair=False))
    with pytest.warns(LonglensWarning, match="generates something other than 1 and 0, which counts as not entailed"):
        assert entails(PREMISE, CLAIM) is False


def test_nothing_is_cut_unless_asked_for(bert):
    entails = load_entails(bert)
    assert isinstance(entails("p" * 51, "c" * 10), bool)  # with three special tokens the 64 that it has
    with pytest.raises(
        UserError, match=r"accepts 64 tokens, but premise and claim have 65: pass `max_tokens=64` to trunc"
    ):
        entails("p" * 52, "c" * 10)


def test_a_premise_that_is_cut_loses_its_end(bert):
    entails = load_entails(bert, max_tokens=40)
    whole = load_entails(bert)
    premises = ["".join(chr(97 + (number * step) % 26) for number in range(60)) for step in range(1, 12)]
    said = [entails(premise, "claim") for premise in premises]
    assert said == [whole(premise[: 40 - 3 - 5], "claim") for premise in premises]
    assert set(said) == {True, False}
    with pytest.raises(UserError, match="a claim does not fit into 40 tokens"):
        entails("premise", "c" * 38)
    assert isinstance(load_entails(bert, max_tokens=1000)("p" * 99, "claim"), bool)  # 64 stay the most it takes


def test_characters_of_several_tokens_are_cut_whole(bert):
    entails = load_entails(bert, max_tokens=30)
    assert entails("漢" * 30, "claim") == load_entails(bert)("漢" * 7, "claim")  # 22 bytes of room


def test_a_writer_takes_any_length_and_is_cut_as_well(t5):
    claim = "mill, mill, mill"
    assert isinstance(load_entails(t5)("p" * 900, claim), bool)
    least = len(PROMPT.format("", claim)) + 1
    short, whole = load_entails(t5, max_tokens=least + 4), load_entails(t5)
    assert short("Title: Mill", claim) == whole("Titl", claim)
    with pytest.raises(UserError, match="a claim does not fit"):
        load_entails(t5, max_tokens=least - 1)(PREMISE, claim)


def test_positions_of_roberta_begin_after_its_padding(tmp_path):
    model = classifier("Roberta", type_vocab_size=1, max_position_embeddings=34, pad_token_id=1)
    folder = saved(model, tmp_path)
    files = tmp_path / "tokenizer_config.json"
    files.write_text(json.dumps(json.loads(files.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}))
    entails = load_entails(folder)
    assert isinstance(entails("p" * 19, "c" * 10), bool)
    with pytest.raises(UserError, match="accepts 32 tokens, but premise and claim have 33"):
        entails("p" * 20, "c" * 10)


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["entailment"], ["not_entailment", "other"]])
def test_labels_have_to_name_entailment(labels, tmp_path):
    with pytest.raises(UserError, match=r"has the labels .*; expected one label 'entailment' among others"):
        load_entails(saved(classifier(labels=labels), tmp_path))


def test_other_models_are_refused(tmp_path, bert, t5):
    config = transformers.BertConfig(**_BERT)
    masked = saved(transformers.BertForMaskedLM(config), tmp_path / "masked")
    with pytest.raises(UserError, match=r"is BertForMaskedLM; expected a model for sequence classification"):
        load_entails(masked)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match=r"is a \.gguf file: pass the directory or Hub id"):
        load_entails(str(tmp_path / "model.gguf"))
    with pytest.raises(UserError, match="`max_tokens` is 0; expected at least 1"):
        load_entails(bert, max_tokens=0)
    with pytest.raises(UserError, match="`dtype` is 'int8'; expected auto"):
        load_entails(bert, dtype="int8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no model"):
        load_entails(str(tmp_path / "empty"))


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    config = transformers.BertConfig(**_BERT, id2label={0: "entailment", 1: "other"})
    folder = saved(transformers.BertModel(config), tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text()) | {"architectures": ["BertForSequenceClassification"]}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lacks weights of BertForSequenceClassification, such as 'classifier.bias'"):
        load_entails(folder)


def test_pickles_are_read_only_when_asked_for(bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    weights = transformers.AutoModelForSequenceClassification.from_pretrained(bert).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights are pickles, which are read only with `allow_pickle=True`"):
        load_entails(str(folder))
    assert load_entails(str(folder), allow_pickle=True)(PREMISE, CLAIM) == load_entails(bert)(PREMISE, CLAIM)


def test_code_of_a_folder_is_not_run(bert, tmp_path):
    folder = tmp_path / "coded"
    shutil.copytree(bert, folder)
    path = folder / "config.json"
    (folder / "code.py").write_text("raise SystemError('this code was run')")
    auto = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "own", "auto_map": auto}))
    with pytest.raises(UserError, match="contains custom code"):
        load_entails(str(folder))


def test_it_says_where_memory_ran_out(bert, monkeypatch):
    entails = load_entails(bert)

    def fail(inputs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(entails, "_decide", fail)
    with pytest.raises(UserError, match="ran out of memory: set `max_tokens`"):
        entails(PREMISE, CLAIM)
