"""Samples of 128k tokens with a real tokenizer, SmolLM2's."""

from __future__ import annotations

import time

import pytest

from tests.tasks.fixtures import WITH_LENGTH, task

pytestmark = pytest.mark.real
SHORT_DATA = ("longeval_topics", "helmet_asqa", "helmet_qampari")


@pytest.fixture(scope="module")
def tokenizer():
    from longlens.models import load_tokenizer

    return load_tokenizer("smollm2")


@pytest.mark.parametrize("length", [1500, 4096, 131072])
@pytest.mark.parametrize("name", [name for name in WITH_LENGTH if name not in SHORT_DATA])
def test_a_long_sample_fits_and_takes_seconds(name, length, folder, tokenizer):
    made = task(name, folder)
    begin = time.perf_counter()
    (sample,) = made.build(length=length, samples=1, tokenizer=tokenizer)
    assert time.perf_counter() - begin < 60
    assert sample.length == len(tokenizer(sample.prompt + sample.answer_prefix).input_ids) + made.max_new_tokens
    assert length - made.unit_tokens < sample.length <= length
