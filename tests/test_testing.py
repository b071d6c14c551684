"""The conformance checks: our own engines, methods and policies pass, and each broken rule is named."""

from __future__ import annotations

import pytest

from longlens.models.caches import FullCache
from longlens.scoring.transformers import TransformersScorer
from longlens.testing import check_cache, check_rope_method, check_scorer
from tests.rope.conftest import METHODS
from tests.scoring.test_caches import BY_LENGTH, Recent
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_of_transformers_passes(family):
    check_scorer(
        TransformersScorer(tiny_model(family), byte_tokenizer(), batch_tokens=200), by_length=family in BY_LENGTH
    )


@pytest.mark.parametrize("name", METHODS)
def test_our_rope_methods_pass(name):
    check_rope_method(METHODS[name])


@pytest.mark.parametrize("policy", [FullCache(), Recent(8), Recent(500)])
def test_our_cache_policies_pass(policy):
    check_cache(policy)
