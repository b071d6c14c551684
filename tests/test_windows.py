"""Every token from K on is scored once, with at least K and at most K + d - 1 tokens of context."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.losses import ChunkedLongCE, LongCE, SampledLongCE
from longlens.windows import Window, chunk_sizes, plan_chunks, plan_windows, window_sizes

sizes = st.integers(1, 40)


@given(st.integers(0, 400), sizes, sizes)
def test_every_token_from_k_on_is_scored_exactly_once(num_tokens, context, stride):
    scored = [token for w in plan_windows(num_tokens, context, stride) for token in range(w.first, w.stop)]
    assert scored == list(range(context, num_tokens))


@given(st.integers(0, 400), sizes, sizes)
def test_scored_tokens_have_between_k_and_k_plus_d_minus_1_tokens_of_context(num_tokens, context, stride):
    for window in plan_windows(num_tokens, context, stride):
        assert 0 <= window.start < window.first < window.stop <= num_tokens
        for token in range(window.first, window.stop):
            assert context <= token - window.start <= context + stride - 1


def test_the_picture_of_the_docstring():
    assert plan_windows(9, 4, 2) == [Window(0, 4, 6), Window(2, 6, 8), Window(4, 8, 9)]


def test_a_document_no_longer_than_k_has_no_windows():
    assert plan_windows(4, 4, 2) == []
    assert plan_windows(0, 4, 2) == []


@pytest.mark.parametrize(
    ("context", "stride", "named"), [(0, 1, "`context` is 0"), (1, 0, "`stride` is 0"), (1, -3, "-3")]
)
def test_settings_that_no_window_can_be_made_of(context, stride, named):
    with pytest.raises(UserError, match=named):
        plan_windows(10, context, stride)


def sizes_of(windows):
    return Counter((window.stop - window.start, window.stop - window.first) for window in windows)


@given(st.integers(0, 400), sizes, sizes)
def test_windows_that_are_counted_are_those_that_are_listed(num_tokens, context, stride):
    assert window_sizes(num_tokens, context, stride) == sizes_of(plan_windows(num_tokens, context, stride))
    assert chunk_sizes(num_tokens, context, stride) == sizes_of(plan_chunks(num_tokens, context, stride, 0))


@pytest.mark.parametrize("kind", [LongCE, SampledLongCE, ChunkedLongCE])
@pytest.mark.parametrize("num_tokens", [5, 64, 65, 300, 1001])
def test_a_loss_counts_the_windows_of_its_steps(kind, num_tokens):
    longce = kind(context=64, stride=16)
    windows = longce.windows(torch.zeros(num_tokens, dtype=torch.int64), 0)
    assert sum(longce.window_sizes(num_tokens).values()) == len(windows)
