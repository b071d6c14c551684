"""The exact text that a model gets: templates, BOS, samples that are too long, and continuations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from longlens.bench.engine import EngineSettings, ModelRequest, PromptLimit, prompt_tokens
from longlens.bench.lm_eval.backends import open_engine
from longlens.bench.prompts import MODES, TEMPLATES, PromptBuilder, PromptSettings
from longlens.errors import UserError
from longlens.models.forward import Forward
from longlens.tasks import get_task
from longlens.tasks.truncation import POLICIES
from longlens.tokenization import own_bos
from tests.bench.conftest import CHAT
from tests.bench.fakes import ASK, PREFIX, Toy, split
from tests.tiny import byte_tokenizer

BOS = 256
CHAT_WITHOUT_BOS = CHAT.removeprefix("{{ bos_token }}")


def tokenizer_with(template, **options):
    made = byte_tokenizer(**options)
    made.chat_template = template
    return made


def builder(tokenizer=None, **changes):
    prompts, others = split(PromptSettings, {"template": "none"} | changes)
    limit = PromptLimit(tokenizer or byte_tokenizer(), others.pop("max_length", 4096))
    return PromptBuilder(prompts, limit, **others)


def samples(task, tokenizer=None, count=1):
    return task.build(samples=count, tokenizer=tokenizer or byte_tokenizer(), overlong="error")


def asked(changes, task=None, tokenizer=None):
    task = task or Toy(words=3)
    made = builder(tokenizer, **changes)
    (sample,) = samples(task)
    return made.build(task, sample), sample


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("none", f"{{prompt}}{PREFIX}"),
        ("chat", "[user]{prompt}\n[assistant]"),
        ("chat-prefix", f"[user]{{prompt}}{PREFIX}\n[assistant]"),
        ("prefill", f"[user]{{prompt}}\n[assistant]{PREFIX}"),
    ],
)
def test_a_template_puts_prompt_and_prefix_where_it_says(template, expected):
    found, sample = asked({"template": template}, tokenizer=tokenizer_with(CHAT))
    assert found.text == expected.format(prompt=sample.prompt)
    (request,) = found.requests
    assert (request.key, request.prompt, request.continuation) == (sample.id, found.text, None)
    assert (request.max_new_tokens, request.stop) == (10, ("\n",))


class OwnWay(Toy):
    template = "chat-prefix"


@pytest.mark.parametrize(
    ("task", "chat", "messages", "expected"),
    [
        (Toy(), CHAT, False, "prefill"),
        (OwnWay(), CHAT, False, "chat-prefix"),
        (OwnWay(), None, False, "none"),
        (get_task("json_kv"), CHAT, False, "none"),
        (Toy(), None, True, "chat-prefix"),
    ],
)
def test_auto_is_the_benchmarks_own_way_with_chat_models(task, chat, messages, expected):
    assert builder(tokenizer_with(chat), template="auto", is_chat=messages).template_of(task) == expected


def test_arguments_of_the_chat_template_reach_it():
    tokenizer = tokenizer_with(CHAT + "{% if not enable_thinking %}<think></think>{% endif %}")
    found, _ = asked({"template": "chat", "template_arguments": {"enable_thinking": False}}, tokenizer=tokenizer)
    assert found.text.endswith("[assistant]<think></think>")
    found, _ = asked({"template": "chat", "template_arguments": {"enable_thinking": True}}, tokenizer=tokenizer)
    assert found.text.endswith("[assistant]")


@pytest.mark.parametrize("template", ["none", "chat", "chat-prefix", "prefill"])
@pytest.mark.parametrize(
    ("chat", "options"),
    [
        (CHAT, {}),
        (CHAT_WITHOUT_BOS, {}),
        (CHAT, {"adds_bos": False}),
        (CHAT_WITHOUT_BOS, {"adds_bos": False}),
        (CHAT_WITHOUT_BOS, {"bos": False}),
    ],
    ids=["both add BOS", "tokenizer adds BOS", "template adds BOS", "none adds BOS", "there is no BOS"],
)
def test_bos_is_never_there_twice(template, chat, options):
    tokenizer = tokenizer_with(chat, **options)
    found, sample = asked({"template": template}, tokenizer=tokenizer)
    ids = prompt_tokens(tokenizer, found.text)
    assert found.num_tokens == len(ids)
    adds = options.get("adds_bos", True) and options.get("bos", True)
    if template == "none":
        text = tokenizer(sample.prompt + PREFIX, add_special_tokens=False)["input_ids"]
        assert ids == [BOS] * adds + text
        return
    messages = [{"role": "user", "content": sample.prompt + (PREFIX if template == "chat-prefix" else "")}]
    own = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    prefill = tokenizer(PREFIX, add_special_tokens=False)["input_ids"] if template == "prefill" else []
    expected = own + prefill
    assert ids == ([BOS] if adds and own[:1] != [BOS] else []) + expected
    assert ids.count(BOS) == (adds or chat == CHAT)


@pytest.mark.parametrize("adds", [True, False])
def test_a_raw_prompt_that_begins_with_bos_has_it_once(adds):
    tokenizer, task = byte_tokenizer(adds_bos=adds), Toy(words=3)
    (sample,) = samples(task, tokenizer)
    begun = replace(sample, prompt="<s>" + sample.prompt, length=sample.length + 1)
    for own_tokens in (True, False):
        found = builder(tokenizer, mode="teacher-forced").build(task, begun, own_tokens=own_tokens)
        (request,) = found.requests
        for text in (found.text, request.prompt + request.continuation):
            ids = prompt_tokens(tokenizer, text)
            assert (ids[0], ids.count(BOS)) == (BOS, 1)
        assert found.num_tokens == len(prompt_tokens(tokenizer, found.text))


def test_bos_in_the_middle_of_a_template_stays():
    tokenizer = tokenizer_with("[system]{{ bos_token }}{{ messages[0]['content'] }}")
    found, sample = asked({"template": "chat"}, tokenizer=tokenizer)
    assert found.text == f"[system]<s>{sample.prompt}"


@pytest.mark.parametrize("template", ["none", "chat", "prefill"])
def test_the_model_gets_the_tokens_that_were_counted(chat_model, template, monkeypatch):
    settings = EngineSettings(model=chat_model)
    tokenizer = tokenizer_with(CHAT)
    found, _ = asked({"template": template, "mode": "teacher-forced"}, tokenizer=tokenizer)
    wanted = prompt_tokens(tokenizer, found.text)
    made = open_engine(settings, PromptLimit(tokenizer, 4096))
    seen = []
    generate = Forward.generate
    monkeypatch.setattr(
        Forward, "generate", lambda self, rows, *a, **o: seen.append(list(rows)) or generate(self, rows, *a, **o)
    )
    made.answer([ModelRequest("k", found.text, None, 2)], lambda answer: None)
    assert seen == [[wanted]]
    score = made.lm._loglikelihood_tokens
    monkeypatch.setattr(
        made.lm, "_loglikelihood_tokens", lambda rows, *a, **o: seen.append(rows[0][1:]) or score(rows, *a, **o)
    )
    made.answer(found.requests, lambda answer: None)
    assert wanted.count(BOS) == 1
    target = tokenizer(found.requests[0].continuation, add_special_tokens=False)["input_ids"]
    assert tuple(map(list, seen[1])) == (wanted, target)


@pytest.mark.parametrize("template", ["none", "chat", "chat-prefix", "prefill"])
def test_a_template_takes_what_is_reserved_for_it(template):
    tokenizer, task = tokenizer_with(CHAT), Toy(words=5)
    made = builder(tokenizer, template=template)
    (sample,) = samples(task)
    found = made.build(task, sample)
    prefix = len(PREFIX) if template == "chat" else 0  # counted in a sample's length, and not in the text
    assert found.num_tokens + prefix == sample.length - task.max_new_tokens + made.reserve(task)
    assert made.reserve(task) == (0 if template == "none" else len("[user]\n[assistant]"))


def test_messages_are_json():
    found, sample = asked({"template": "auto", "is_chat": True})
    assert json.loads(found.text) == [{"role": "user", "content": sample.prompt + PREFIX}]
    found, sample = asked({"template": "chat", "is_chat": True})
    assert json.loads(found.text) == [{"role": "user", "content": sample.prompt}]


# --- too long ---------------------------------------------------------------------------------------------------------


def cut(policy, max_length, task=None, **changes):
    return asked({"max_length": max_length, "overlong": policy} | changes, task or Toy(words=40))


WHOLE = 1 + len(f"Task 0. {' '.join(f'w{n:03d}' for n in range(40))}\n{ASK}{PREFIX}")  # BOS, and a byte a token


@pytest.mark.parametrize("policy", POLICIES)
def test_what_just_fits_is_as_it_is(policy):
    found, sample = cut(policy, WHOLE + 10)
    assert (found.text, found.num_tokens, found.skipped) == (sample.prompt + PREFIX, WHOLE, False)
    assert "cut" not in found.sample.metadata


def test_a_token_too_many_is_an_error_that_says_what_to_do():
    message = f"toy-whole-42-0 has {WHOLE} tokens plus 10 for the answer, but the model supports {WHOLE + 9}: "
    with pytest.raises(UserError, match=message):
        cut("error", WHOLE + 9)
    with pytest.raises(UserError, match=message):
        cut(None, WHOLE + 9)  # the task's own policy


class CutsItself(Toy):
    overlong = "left"


def test_a_tasks_own_policy_is_the_default():
    found, sample = cut(None, WHOLE + 9, CutsItself(words=40))
    assert found.text == sample.prompt[1:] + PREFIX


def test_a_sample_that_is_left_out_is_asked_nothing():
    found, sample = cut("skip", WHOLE + 9)
    assert (found.skipped, found.requests) == (True, ())
    assert (found.sample, found.text) == (sample, sample.prompt + PREFIX)
    assert not cut("skip", WHOLE + 10)[0].skipped


@pytest.mark.parametrize("removed", [1, 2, 7, 100])
def test_cuts_are_the_smallest_that_fit(removed):
    room = WHOLE + 10 - removed
    for policy in ("left", "middle", "context-only"):
        found, sample = cut(policy, room)
        start, end = sample.context_span
        kept = len(sample.prompt) - removed
        expected = {
            "left": sample.prompt[removed:],
            "middle": sample.prompt[: kept // 2] + sample.prompt[len(sample.prompt) - kept // 2 :],
            "context-only": sample.prompt[: end - removed] + sample.prompt[end:],
        }[policy]
        assert found.text == expected + PREFIX
        assert found.num_tokens == prompt_count(found.text) <= WHOLE - removed
        assert found.sample.metadata["cut"] == {
            "policy": policy,
            "characters": len(sample.prompt) - len(expected),
            "tokens": WHOLE - found.num_tokens,
        }
        assert found.sample.context_span is not None
        assert start <= found.sample.context_span[1]


def prompt_count(text):
    return len(prompt_tokens(byte_tokenizer(), text))


class Omits(Toy):
    omission = " [cut]"


def test_what_stands_for_the_cut_has_to_fit_too():
    found, sample = cut("context-only", WHOLE + 10 - 8, Omits(words=40))
    end = sample.context_span[1]
    assert found.text == sample.prompt[: end - 14] + " [cut]" + sample.prompt[end:] + PREFIX


@pytest.mark.parametrize(("policy", "room"), [("context-only", 46), ("middle", 20), ("left", 20)])
def test_what_must_stay_and_does_not_fit_is_an_error(policy, room):
    with pytest.raises(UserError, match=f"cannot be truncated to .* with `overlong={policy}`"):
        cut(policy, room)


def bpe_tokenizer(text, size=400, template=CHAT):
    """Byte-pair encoding with merges, also across words, learnt from a text; puts BOS before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        max_token_length=4,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", ["none", "chat", "chat-prefix", "prefill"])
@pytest.mark.parametrize("policy", ["left", "middle", "context-only"])
def test_a_cut_prompt_fits_whatever_the_tokenizer_merges(policy, template):
    task = Toy(words=40)
    (sample,) = samples(task)
    tokenizer = bpe_tokenizer((sample.prompt + PREFIX + "[user]\n[assistant]") * 3)
    whole = builder(tokenizer, template=template).build(task, sample).num_tokens
    assert whole < len(sample.prompt) / 2
    for room in range(whole + 9, whole - 20, -1):
        found = builder(tokenizer, template=template, overlong=policy, max_length=room).build(task, sample)
        assert found.num_tokens == len(prompt_tokens(tokenizer, found.text))
        assert found.num_tokens + task.max_new_tokens <= room, room
        assert found.text.endswith(PREFIX) or template.startswith("chat")


def test_messages_are_cut_so_that_they_fit():
    found, _ = cut("context-only", WHOLE, is_chat=True, template="auto")
    (message,) = json.loads(found.text)
    assert found.num_tokens + 10 <= WHOLE
    assert message["content"].endswith(ASK + PREFIX)
    assert found.sample.metadata["cut"]["policy"] == "context-only"


@pytest.mark.parametrize("tokens", [0, 50])
def test_reasoning_has_tokens_of_its_own_and_no_stop(tokens):
    found, _ = asked({"think_tokens": tokens})
    (request,) = found.requests
    assert (request.max_new_tokens, request.stop) == (10 + tokens, () if tokens else ("\n",))
    assert cut("left", WHOLE + 10 + tokens, think_tokens=tokens)[0].num_tokens == WHOLE
    assert cut("left", WHOLE + 9 + tokens, think_tokens=tokens)[0].num_tokens == WHOLE - 1


# --- continuations ----------------------------------------------------------------------------------------------------


def test_the_right_answer_is_scored_as_it_would_follow():
    found, sample = asked({"mode": "teacher-forced"})
    count = len(byte_tokenizer()(sample.prompt + PREFIX + " 0")["input_ids"])
    assert found.requests == (ModelRequest(f"{sample.id}#0", sample.prompt + PREFIX, " 0", num_tokens=count),)


def test_wrong_answers_stand_where_the_right_one_does():
    found, sample = asked({"mode": "choice"})
    assert [request.continuation for request in found.requests] == [" 0", " 77", " 88"]
    assert [request.key for request in found.requests] == [f"{sample.id}#{number}" for number in range(3)]
    assert {request.prompt for request in found.requests} == {found.text}


def test_what_stands_around_an_answer_stays_with_wrong_ones():
    task = get_task("longeval_lines", lines=4, answer_prefix="\nThe <REGISTER_CONTENT> is")
    found, sample = asked({"mode": "choice"}, task)
    assert found.requests[0].continuation == f" <{sample.answers[0]}>"
    assert [r.continuation for r in found.requests[1:]] == [f" <{text}>" for text in sample.metadata["distractors"]]


@pytest.mark.parametrize(("template", "continuation"), [("chat", "0"), ("chat-prefix", "0"), ("prefill", " 0")])
def test_nothing_stands_before_the_first_word_of_a_reply(template, continuation):
    found, _ = asked({"mode": "teacher-forced", "template": template}, tokenizer=tokenizer_with(CHAT))
    assert found.requests[0].continuation == continuation


class Several(Toy):
    def target(self, sample):
        return None


class Unlike(Toy):
    def target(self, sample):
        return " zero"


@pytest.mark.parametrize(
    ("task", "mode", "message"),
    [
        (Several(), "teacher-forced", "toy has no single right answer to score: use `mode=generate`"),
        (Several(), "choice", "toy has no single right answer"),
        (Unlike(), "choice", "toy has no wrong answers to choose from: use `mode=generate`"),
        (get_task("niah_multivalue"), "teacher-forced", "niah_multivalue has no single right answer"),
    ],
)
def test_what_has_no_one_right_answer_cannot_be_scored(task, mode, message):
    if isinstance(task, Toy):
        sample = samples(task)[0]
    else:
        (sample,) = task.build(length=2000, samples=1, tokenizer=byte_tokenizer())
    with pytest.raises(UserError, match=message):
        builder(mode=mode).build(task, sample)


def test_without_wrong_answers_there_is_no_choice():
    task = Toy()
    (sample,) = samples(task)
    sample.metadata.pop("distractors")
    with pytest.raises(UserError, match="toy has no wrong answers to choose from"):
        builder(mode="choice").build(task, sample)


@pytest.mark.parametrize(
    ("merge", "prefix", "is_error"),
    [((":", "Ġ"), PREFIX, True), (("Ġ", "0"), PREFIX, False), (("r", ":"), PREFIX, False)],
    ids=["across", "after", "before"],
)
def test_a_token_across_the_border_is_an_error(merge, prefix, is_error):
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(merge)]
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[merge]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    task = Toy(prefix=prefix)
    (sample,) = samples(task)
    made = builder(tokenizer, mode="teacher-forced")
    if is_error:
        message = (
            r"toy-whole-42-0: ' 0' merges with the end of the prompt '.*Answer:' into one token.*use `mode=generate`"
        )
        with pytest.raises(UserError, match=message):
            made.build(task, sample)
        builder(tokenizer).build(task, sample)  # in mode generate it does not matter
    else:
        assert made.build(task, sample).requests[0].continuation == " 0"


def test_a_hash_is_of_all_that_is_asked():
    prompts = {asked({"mode": mode})[0].sha256 for mode in MODES}
    assert len(prompts) == 3
    assert asked({})[0].sha256 == asked({})[0].sha256
    assert asked({}, Toy(words=3))[0].sha256 != asked({}, Toy(words=4))[0].sha256


def test_the_bos_of_its_own_is_the_tokenizers():
    assert own_bos(byte_tokenizer()) == "<s>"
    assert own_bos(byte_tokenizer(adds_bos=False)) == ""
    assert own_bos(byte_tokenizer(bos=False)) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "guess"}, "`mode` is 'guess'; expected one of generate, teacher-forced, choice"),
        ({"template": "chatml"}, f"`template` is 'chatml'; expected one of {', '.join(TEMPLATES)}"),
        ({"think_tokens": -1}, "`think_tokens` is -1; expected 0 or more"),
        ({"template": "chat"}, "`template` is 'chat', and this tokenizer has no chat template: use `template=none`"),
        ({"is_chat": True}, "`template` is 'none', and this backend accepts only messages: use chat-prefix"),
        ({"is_chat": True, "template": "prefill"}, "`template` is 'prefill', and this backend accepts only messages"),
        ({"is_chat": True, "template": "auto", "mode": "choice"}, "`mode=choice` needs log-probabilities"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        builder(**changes)
