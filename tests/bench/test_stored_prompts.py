"""A run keeps the exact prompts; the sample's own, which its spans count in, is found in them again."""

from __future__ import annotations

import json

import pytest

from longlens.bench.engine import PromptLimit
from longlens.bench.prompts import PromptBuilder, PromptSettings
from longlens.bench.samples import SampleBatch, sample_row, stored_sample
from longlens.tasks import get_task
from longlens.tasks.base import CitedTask
from tests.bench.conftest import CHAT
from tests.tiny import byte_tokenizer


def builder(template, *, chat=CHAT, is_chat=False):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat
    return PromptBuilder(PromptSettings(template=template), PromptLimit(tokenizer, 9000), is_chat=is_chat)


def stored(builder, task, sample, **options):
    prompt = builder.build(task, sample)
    batch = SampleBatch(
        name="b", task=task, ids=[], sample=lambda at: None, recipe=str, order=[], sizes=[], own_tokens=False
    )
    row = sample_row(prompt, batch, builder.template_of(task), **({"recipe": "", "keep_prompt": True} | options))
    return json.loads(json.dumps(row))


@pytest.mark.parametrize(
    ("template", "is_chat"),
    [
        ("none", False),
        ("chat", False),
        ("chat-prefix", False),
        ("prefill", False),
        ("chat", True),
        ("chat-prefix", True),
    ],
)
def test_the_own_prompt_comes_back(data, template, is_chat):
    task = get_task("niah_multikey_2")
    (sample,) = task.build(length=4000, samples=1, tokenizer=byte_tokenizer())
    row = stored(builder(template, is_chat=is_chat), task, sample)
    assert stored_sample(row, "here", with_prompt=True) == sample
    assert stored_sample(row, "here", with_prompt=False).prompt == ""
    row = stored(builder(template), task, sample, keep_prompt=False)
    assert stored_sample(row, "here", with_prompt=True).prompt == ""


def test_a_template_that_changes_the_prompt_leaves_none():
    task = get_task("niah_single_1")
    (sample,) = task.build(length=2000, samples=1, tokenizer=byte_tokenizer())
    row = stored(builder("chat", chat=CHAT.replace("m['content']", "m['content'] | upper")), task, sample)
    assert row["own_prompt_span"] is None
    assert stored_sample(row, "here", with_prompt=True).prompt == ""


def test_cited_documents_are_those_of_the_sample_whatever_the_template(data):
    task = get_task("helmet_asqa", data_dir=data, docs=3)
    assert isinstance(task, CitedTask)
    (sample,) = task.build(samples=1, tokenizer=byte_tokenizer())
    again = stored_sample(stored(builder("chat"), task, sample), "here", with_prompt=True)
    assert premises(task, again) == premises(task, sample)
    assert all(premise.startswith("Title: ") and len(premise) > 20 for premise in premises(task, again))


def premises(task, sample) -> list[str]:
    found: list[str] = []
    task.cited(sample, "It is so, they say [1]. And so is this [2].", lambda premise, claim: found.append(premise))
    return found
