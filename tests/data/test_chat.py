"""Chat data: whatever the template, what the assistant says is learned and nothing else is."""

import json
import re
import runpy
from itertools import groupby
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longlens.data.chat import ChatCounts, ChatSettings, chat_dataset, chat_rows
from longlens.data.conversation import ChatEncoder, Conversation
from longlens.data.mixture import mix
from longlens.data.packing import pack_dataset
from longlens.data.recipe import read_mixture
from longlens.errors import LonglensWarning, UserError
from longlens.settings.options import Reading
from tests.tiny import VOCABULARY, byte_tokenizer, tiny_model
from tests.train.runs import LEARNING_RATE, RULE, arguments, losses, trained, weights_of
from tests.train.test_trainer import assert_stepped, naive_step

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header|>' + m.role + '<|/header|>\n\n' }}"
    "{{ m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\n\n' }}{% endif %}"
)
FIRST_LLAMA3 = LLAMA3.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set content = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
STRIPPED = (
    "{% set lines = namespace(text='') %}{% for m in messages %}"
    "{% set lines.text = lines.text + m.role + ': ' + m.content | trim + '\n' %}{% endfor %}"
    "{% if add_generation_prompt %}{% set lines.text = lines.text + 'assistant:' %}{% endif %}{{ lines.text | trim }}"
)
WITHOUT_ROLES = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
# As Qwen3's: reasoning is written in the last answer alone, and an empty one where there is none.
FORGETFUL = CHATML.replace(
    "m.content", "('<think>' if loop.last and m.role == 'assistant' else '') + m.content.split('</think>')[-1]"
)
# What each writes of an answer, and whether it is the last one, written down by hand.
ANSWER = {
    CHATML: lambda text, last: text + "<|im_end|>",
    MARKED: lambda text, last: text + "<|im_end|>",
    LLAMA3: lambda text, last: text.strip() + "<|eot|>",
    LLAMA2: lambda text, last: f" {text.strip()} </s>",
    STRIPPED: lambda text, last: f" {text.strip()}".rstrip(),  # the newline is no part of a last answer
    WITHOUT_ROLES: lambda text, last: text + "</s>",
}
NAMES = ["chatml", "marked", "llama-3", "llama-2", "stripped", "without-roles"]


def tokenizer_of(template):
    made = byte_tokenizer(adds_bos=False)
    made.add_special_tokens({"additional_special_tokens": CONTROLS})
    made.pad_token = "</s>"
    made.chat_template = template
    assert len(made) <= VOCABULARY
    return made


TOKENIZERS = {template: tokenizer_of(template) for template in (*ANSWER, FORGETFUL, FIRST_LLAMA3)}


def dialogue(*contents, system=None):
    """User and assistant in turn."""
    roles = [("user", "assistant")[at % 2] for at in range(len(contents))]
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def encoded(messages, template, **options):
    return ChatEncoder(TOKENIZERS[template], **options).encode(Conversation(messages, None, "here"))


def learned(row, template):
    """The runs of tokens that are learned, as text."""
    ids, labels = row["input_ids"], row["labels"]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    runs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != -100)
    return [TOKENIZERS[template].decode([token for token, _ in run]) for is_learned, run in runs if is_learned]


def written(folder, rows, name="chat.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / name)]


def data(folder, rows, template=CHATML, max_length=10_000, **options):
    return chat_dataset(written(folder, rows), TOKENIZERS[template], max_length=max_length, **options)


TEXTS = st.lists(
    st.sampled_from(["yes", "No.", " ", "\n", "é🙂", "e\u0301", "assistant", "<s>", "[/INST]", "</s>", *CONTROLS])
    | st.text(st.characters(blacklist_categories=["Cs"]), max_size=4),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("template", ANSWER, ids=NAMES)
@given(contents=st.lists(TEXTS, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0), system=st.none() | TEXTS)
@settings(max_examples=40, deadline=None)
def test_what_is_learned_is_each_answer_and_its_end(template, contents, system):
    messages = dialogue(*contents, system=system)
    answers = contents[1::2]
    row = encoded(messages, template).columns
    expected = [ANSWER[template](text, at + 1 == len(answers)) for at, text in enumerate(answers)]
    assert learned(row, template) == [text for text in expected if text]
    whole = TOKENIZERS[template].apply_chat_template(messages, tokenize=True)["input_ids"]
    assert row["input_ids"].tolist() == whole


@pytest.mark.parametrize("template", ANSWER, ids=NAMES)
@given(contents=st.lists(TEXTS, min_size=4, max_size=4))
@settings(max_examples=15, deadline=None)
def test_answers_apart_are_the_last_turns_of_shorter_conversations(template, contents, tmp_path_factory):
    assume(contents[1].strip() or contents[3].strip())
    folder = tmp_path_factory.mktemp("chat")
    rows = list(
        chat_rows(
            written(folder, [{"messages": dialogue(*contents)}]),
            TOKENIZERS[template],
            ChatSettings(max_length=10_000, turns="apart"),
        )
    )
    last = [ANSWER[template](contents[at], True) for at in (1, 3)]
    assert [text for row in rows for text in learned(row, template)] == [text for text in last if text]


def test_marks_of_the_template_decide(tmp_path):
    """Here the end of the turn is not marked; and an answer that ends with white space does not open the rest."""
    template = MARKED.replace("{{ m.content + '<|im_end|>' }}{% endgen", "{{ m.content }}{% endgen", 1)
    template = template.replace("{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    TOKENIZERS[template] = tokenizer_of(template)
    row = encoded(dialogue("a", "b \n", "c", "d"), template).columns
    assert learned(row, template) == ["b \n", "d"]
    apart = encoded(dialogue("a", "b \n", "c", "d"), template, turns="apart").columns
    assert learned(apart, template) == ["d"]


def test_a_template_that_forgets_reasoning_is_refused_and_works_apart(tmp_path):
    rows = [{"messages": dialogue("a", "why</think>b", "c", "so</think>d")}]
    with pytest.raises(
        UserError, match=r"chat.jsonl:1'?: the chat template writes message 2 differently once other messages fol"
    ):
        data(tmp_path, rows, FORGETFUL)
    made = data(tmp_path, rows, FORGETFUL, turns="apart")
    assert [learned(row, FORGETFUL) for row in made] == [["<think>b<|im_end|>"], ["<think>d<|im_end|>"]]
    before = TOKENIZERS[FORGETFUL].decode(made[1]["input_ids"])
    assert "assistant\nb<|im_end|>" in before
    single = data(tmp_path, [{"messages": dialogue("a", "b")}], FORGETFUL)
    assert learned(single[0], FORGETFUL) == ["<think>b<|im_end|>"]


def test_a_template_that_always_asks_for_an_answer_is_refused():
    """As the first one of Llama-3-Instruct: of the conversation's last answer it would be learned to ask again."""
    for turns in ("together", "apart"):
        with pytest.raises(UserError, match=r"ends a finished conversation with .* set tokenizer.chat_template"):
            encoded(dialogue("a", "b"), FIRST_LLAMA3, turns=turns)


def test_a_template_whose_prompt_is_no_beginning_is_refused():
    template = CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>model\n' }}")
    TOKENIZERS[template] = tokenizer_of(template)
    with pytest.raises(
        UserError, match=r"the prompt for message 2 differently than .*'model\\n' against 'assistant\\n"
    ):
        encoded(dialogue("a", "b"), template)


def test_what_a_template_cannot_write_is_said_with_its_place(tmp_path):
    with pytest.raises(
        UserError, match=r"chat.jsonl:2'?: the chat template cannot write messages of user, user, assistan"
    ):
        data(tmp_path, [{"messages": dialogue("a", "b")}, {"messages": [*dialogue("a"), *dialogue("c", "d")]}], LLAMA2)
    with pytest.raises(UserError, match="has no chat template: use the tokenizer of the model's instruct version"):
        chat_dataset(["chat.jsonl"], byte_tokenizer(), max_length=10)
    several = tokenizer_of({"one": CHATML, "two": LLAMA2})
    with pytest.raises(
        UserError, match=r"multiple chat templates with no default.* set tokenizer.chat_template to one of them"
    ):
        chat_dataset(["chat.jsonl"], several, max_length=10)


def test_formats_of_rows_are_one(tmp_path):
    same = [
        {"messages": dialogue("a", "b"), "prompt": "other", "completion": "other"},
        {"prompt": "a", "completion": "b"},
        {"prompt": dialogue("a"), "completion": dialogue("a", "b")[1:]},
        {"messages": [*dialogue("a", "b"), {"role": "user", "content": "unanswered"}], "id": 4},
        {"messages": [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b"}]},
    ]
    made = data(tmp_path, same)
    assert len({str(row) for row in made}) == 1
    assert made.features["labels"] == made.features["input_ids"] == datasets.List(datasets.Value("int32"))
    datasets.Dataset.from_list(same[3:4]).to_parquet(tmp_path / "chat.parquet")
    assert chat_dataset([str(tmp_path / "chat.parquet")], TOKENIZERS[CHATML], max_length=99)[0] == made[0]
    assert len(data(tmp_path, same, reading=Reading(samples=2))) == 2


def test_tools_and_further_keys_reach_the_template(tmp_path):
    template = "{{ tools[0].name if tools }}" + CHATML.replace("m.content", "(m.content or m.call)")
    TOKENIZERS[template] = tokenizer_of(template)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "call": "f()"}]
    (row,) = data(tmp_path, [{"messages": messages, "tools": [{"name": "f"}]}], template)
    assert TOKENIZERS[template].decode(row["input_ids"]).startswith("f<|im_start|>")
    assert learned(row, template) == ["f()<|im_end|>"]


def test_too_long_conversations_are_cut_at_whole_turns_or_left_out_and_counted(tmp_path):
    short, long = dialogue("a", "b"), dialogue("a", "b" * 20, "c", "d" * 20, "e", "f")
    rows = [
        {"messages": short},
        {"messages": long},
        {"messages": dialogue("x" * 100, "y")},
        {"messages": dialogue("z")},
    ]
    length = len(data(tmp_path, [{"messages": long[:2]}])[0]["input_ids"])
    counts = ChatCounts()
    told = (
        r"4 conversations 1 were truncated to .* tokens \(2 answers\), 1 were left out because .*, 1 were .* to learn"
    )
    with pytest.warns(LonglensWarning, match=told):
        made = data(tmp_path, rows, max_length=length, counts=counts)
    assert [learned(row, CHATML) for row in made] == [["b<|im_end|>"], ["b" * 20 + "<|im_end|>"]]
    assert counts.to_json() == {
        "conversations": 4,
        "rows": 2,
        "tokens": sum(len(row["input_ids"]) for row in made),
        "learned_tokens": 2 + 21,
        "cut_conversations": 1,
        "cut_answers": 2,
        "long_conversations": 1,
        "unanswered_conversations": 1,
        "merged_turns": 0,
    }
    apart = ChatCounts()
    with pytest.warns(LonglensWarning, match="1 were truncated"):
        assert data(tmp_path, rows, max_length=length, turns="apart", counts=apart).to_list() == made.to_list()
    assert apart == counts
    for turns in ("together", "apart"):
        counts = ChatCounts()
        with pytest.warns(LonglensWarning, match="2 were left out because they are longer"):
            made = data(tmp_path, rows, max_length=length, too_long="drop", turns=turns, counts=counts)
        assert (len(made), counts.cut_conversations, counts.long_conversations) == (1, 0, 2)
    with pytest.raises(
        UserError, match="no row was made of 4 conversations: 3 are longer than 5 tokens, 1 have no turn"
    ):
        data(tmp_path, rows, max_length=5)


def test_a_first_message_of_the_assistant_is_context(tmp_path):
    messages = [{"role": "assistant", "content": "Hello!"}, *dialogue("a", "b")]
    assert learned(data(tmp_path, [{"messages": messages}])[0], CHATML) == ["b<|im_end|>"]


def test_answers_that_begin_inside_a_token_are_told(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: at for at, symbol in enumerate([*symbols, "Ġb"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    rows = written(tmp_path, [{"messages": dialogue("a", "b")}, {"messages": dialogue("a", "c")}])
    with pytest.warns(LonglensWarning, match="1 answers begin inside a token that begins in the prompt"):
        made = chat_dataset(rows, tokenizer, max_length=99)
    first, second = ([label for label in row["labels"] if label != -100] for row in made)
    assert (tokenizer.decode(first), tokenizer.decode(second)) == (" b\n", "c\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "has 'text': expected messages (a list of role and content), or prompt and completion"),
        ({"prompt": "a", "completion": []}, "are a str and a list: expected two strings, or two lists of messages"),
        ({"messages": []}, "is [], expected a list of role and content"),
        ({"messages": "a"}, "is 'a', expected a list of role and content"),
        ({"messages": ["a"]}, "has the message 'a': expected an object with role and content"),
        ({"messages": [{"from": "human", "value": "a"}]}, "expected an object with role and content, such as"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "has a message of 'user' with a int as content: expected a str",
        ),
        ({"messages": [{"role": "user"}]}, "has a message of 'user' with a NoneType as content: expected a string"),
        ({"messages": dialogue("a", "b"), "tools": "f"}, "is a str, expected a list of functions as JSON objects"),
        ({"messages": dialogue("a", "\ud800")}, "text has a lone surrogate"),
    ],
)
def test_rows_that_are_no_conversation_are_named(row, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        data(tmp_path, [row])
    assert "chat.jsonl:1" in str(raised.value)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([], {}, "no conversations: pass JSON Lines"),
        ("chat.jsonl", {}, "expected a list of them: pass ['chat.jsonl']"),
        (["chat.jsonl"], {"max_length": 1}, "`max_length` is 1; a row needs at least 2 tokens"),
        (["chat.jsonl"], {"too_long": "split"}, "`too_long` is 'split'; expected cut or drop"),
        (["chat.jsonl"], {"turns": "all"}, "`turns` is 'all'; expected together or apart"),
        (["nosuch.jsonl"], {}, "no such file or folder: 'nosuch.jsonl'"),
    ],
)
def test_arguments_that_cannot_be(sources, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        chat_dataset(sources, TOKENIZERS[CHATML], **({"max_length": 10} | options))


def test_a_mixture_takes_chat_rows_by_their_share_of_tokens(tmp_path):
    """As docs/sft.md says: the labels and the boundaries of conversations stay."""
    for name, size in (("short", 10), ("long", 60)):
        rows = [{"messages": dialogue(f"{name} {at}", "b" * size)} for at in range(40)]
        folder = tmp_path / name
        data(tmp_path, rows).to_parquet(folder / "train.parquet")
    page = (Path(__file__).parents[2] / "docs" / "sft.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert "{weight: 97, path: ultrachat," in recipe
    recipe = recipe.replace("65536", "128").replace("1e9", "1280").replace("97,", "70,").replace("3,", "30,")
    for name, path in (("ultrachat", "short"), ("qa", "long")):
        recipe = recipe.replace(f"path: {name},", f"path: {tmp_path / path},")
    (tmp_path / "sft.yaml").write_text(recipe)
    counts = mix(read_mixture(tmp_path / "sft.yaml"), TOKENIZERS[CHATML], tmp_path / "out")
    assert [source["rows"] for source in counts["sources"].values()] == [7, 3]
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    for row in rows:
        assert row["position_ids"].count(0) == TOKENIZERS[CHATML].decode(row["input_ids"]).count("user\n")
        assert set(learned(row, CHATML)) == {"b" * (10 if row["source"] == "ultrachat" else 60) + "<|im_end|>"}


trl = pytest.importorskip("trl")

CHATS = [
    dialogue("a", "b" * 30),
    dialogue("a" * 25, "b", "c", "d" * 12),
    dialogue("words", "to say"),
    dialogue("a" * 9, "b" * 21, system="s"),
]


def naive_ce_step(documents):
    """Loss and parameters after one step of SGD on the mean over all learned tokens, from all logits."""
    model = tiny_model("llama").train()
    total, number = torch.zeros(()), 0
    for ids, labels in documents:
        losses = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="none")
        total = total + losses[labels[1:] != -100].sum()
        number += int((labels[1:] != -100).sum())
    (total / number).backward()
    return (total / number).item(), {n: p.detach() - LEARNING_RATE * p.grad for n, p in model.named_parameters()}


def sft(folder, rows, longce, **args):
    from longlens.train import LongCESFTTrainer

    changes = {"gradient_checkpointing": False, "bf16": False, "max_length": None, **args}
    trainer = LongCESFTTrainer(
        model=tiny_model("llama"),
        args=trl.SFTConfig(**arguments(folder, **changes)),
        train_dataset=rows,
        processing_class=TOKENIZERS[CHATML],
        longce=longce,
    )
    trainer.train()
    return trainer


HOW = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "half": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "joined": {"padding_free": True},
    "packed": {"packing": True, "max_length": 160, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
}


@pytest.mark.parametrize("how", HOW)
def test_the_loss_is_the_mean_over_the_assistants_tokens_of_the_step(how, tmp_path):
    rows = data(tmp_path, [{"messages": messages} for messages in CHATS])
    documents = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows]
    loss, expected = naive_ce_step(documents)
    trainer = sft(tmp_path / "ce", rows, None, **HOW[how])
    if how == "packed":
        assert len(trainer.train_dataset) == 2
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    for name, weight in weights_of(trainer.model).items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
    # The same rows with LongCE: what is not learned is context.
    assert_stepped(sft(tmp_path / "longce", rows, RULE, **HOW[how]), naive_step(tiny_model("llama"), documents))


def test_conversations_that_were_packed_before_train_as_apart(tmp_path):
    rows = data(tmp_path, [{"messages": messages} for messages in CHATS])
    loss, expected = naive_ce_step([(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows])
    packed, _ = pack_dataset(rows, 160)
    assert len(packed) == 2
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, train_dataset=packed, data_collator=None, longce=None, args=args)
    assert losses(trainer)[0] == pytest.approx(loss, rel=1e-5)
    for name, weight in weights_of(trainer.model).items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name


def test_the_code_in_the_docs_trains(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "sft.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LongCESFTTrainer(" in block)
    monkeypatch.chdir(tmp_path)
    written(tmp_path, [{"messages": messages} for messages in CHATS], "instructions.jsonl")
    TOKENIZERS[CHATML].save_pretrained("MODEL")
    tiny_model("llama").save_pretrained("MODEL")
    (tmp_path / "sft.py").write_text(code.replace("SFTConfig(", "SFTConfig(use_cpu=True, max_steps=2, report_to=[], "))
    trainer = runpy.run_path("sft.py")["trainer"]
    assert trainer.state.global_step == 2
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


def test_tool_calls_and_tools_are_learned_as_they_were_written_whatever_the_file(tmp_path):
    def row(name, arguments):
        schema = {"type": "object", "properties": {key: {"type": type(arguments[key]).__name__} for key in arguments}}
        call = {"function": {"name": name, "arguments": arguments}}
        return {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}],
            "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
        }

    rows = [row("weather", {"city": "Bergen"}), row("add", {"a": 2, "b": [{"x": 1}, {"y": 2}]}), row("none", {"n": 1})]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d" / "train.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "s")
    datasets.Dataset.from_list(rows, on_mixed_types="use_json").save_to_disk(tmp_path / "j")

    def texts(source):
        return [
            tokenizer.decode(row["input_ids"]) for row in chat_rows([source], tokenizer, ChatSettings(max_length=999))
        ]

    expected = texts(f"{tmp_path}/t.jsonl")
    assert '{"name": "weather", "arguments": {"city": "Bergen"}}' in expected[0]
    for source in ("{}/d/train.parquet", "{}/d", "hf:{}/d", "hf:{}/s", "hf:{}/j"):
        assert texts(source.format(tmp_path)) == expected
