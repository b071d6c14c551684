"""What each method computes, against oracles from the papers and transformers' own functions; settings refused."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens import UserError
from longlens.rope import CLEX, EABF, NTK, DynamicNTK, Llama3, LongRoPE, PositionInterpolation, YaRN
from longlens.rope.frequencies import Rope, clex_start, eabf_query_scale
from longlens.rope.methods import METHODS
from tests.reference import rope as oracle

dims = st.sampled_from([4, 6, 16, 20, 64, 128])
bases = st.floats(100, 1e7)
factors = st.floats(1.01, 64)
lengths = st.integers(16, 100_000)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@settings(deadline=None)
@given(dims, bases, factors, lengths)
def test_position_interpolation_divides_every_frequency(d, base, s, length):
    rope = Rope(dim=d, theta=base, length=length)
    ours, factor = PositionInterpolation(factor=s).frequencies(rope)
    close(ours, oracle.position_interpolation(d, base, s))
    assert factor == 1


@settings(deadline=None)
@given(dims, bases, factors)
def test_ntk_keeps_the_highest_frequency_and_divides_the_lowest_by_the_factor(d, base, s):
    rope = Rope(dim=d, theta=base, length=4096)
    ours = NTK(factor=s).frequencies(rope).inv_freq
    assert ours[0] == 1
    close(ours[-1], rope.inv_freq[-1] / s)
    close(ours, oracle.plain(d, oracle.ntk_base(d, base, s)))


@settings(deadline=None)
@given(dims, bases, st.floats(2, 100))
def test_a_given_base_is_used_as_it_is_and_so_is_that_of_eabf(d, base, times):
    rope = Rope(dim=d, theta=base, length=4096)
    for method in (NTK(theta=base * times), NTK(theta=base * times, factor=2), EABF(theta=base * times, factor=2)):
        close(method.frequencies(rope).inv_freq, oracle.plain(d, base * times))


@settings(deadline=None)
@given(dims, bases, factors, lengths, st.integers(1, 1_000_000))
def test_dynamic_ntk(d, base, s, length, n):
    rope = Rope(dim=d, theta=base, length=length)
    close(DynamicNTK(factor=s).frequencies(rope, n).inv_freq, oracle.dynamic_ntk(d, base, s, length, n))


@settings(deadline=None)
@given(dims, bases, factors, lengths)
def test_dynamic_ntk_is_ntk_at_twice_the_factor_less_one(d, base, s, length):
    rope = Rope(dim=d, theta=base, length=length)
    at_twice = DynamicNTK(factor=s).frequencies(rope, 2 * length).inv_freq
    close(at_twice, NTK(factor=s + 1).frequencies(rope).inv_freq)


@settings(deadline=None)
@given(dims, bases, factors, lengths, st.floats(2, 64), st.floats(0.1, 1.9))
def test_yarn(d, base, s, length, fast, slow):
    rope = Rope(dim=d, theta=base, length=length)
    ours, factor = YaRN(factor=s, beta_fast=fast, beta_slow=slow).frequencies(rope)
    theirs, wanted = oracle.yarn(d, base, s, length, fast, slow)
    # Both round a real number to a pair; where it is one but for the last digit they may choose different ones.
    if np.allclose(ours, theirs, rtol=1e-9):
        close(factor, wanted)
    else:
        turns = length * rope.inv_freq / (2 * np.pi)
        assert min(np.abs(turns / fast - 1).min(), np.abs(turns / slow - 1).min()) < 1e-9


def test_yarn_keeps_what_turns_often_and_interpolates_what_does_not_turn_once():
    rope = Rope(dim=128, theta=1e4, length=4096)
    ours, factor = YaRN(factor=8).frequencies(rope)
    turns = rope.length * rope.inv_freq / (2 * np.pi)
    np.testing.assert_array_equal(ours[turns > 34], rope.inv_freq[turns > 34])
    close(ours[turns < 0.8], rope.inv_freq[turns < 0.8] / 8)
    assert (turns > 34).any()
    assert (turns < 0.8).any()
    close(factor, 1.2079441541679836)
    assert YaRN(factor=8, attention_factor=1).frequencies(rope).attention_factor == 1


@settings(deadline=None)
@given(st.data(), bases, factors, lengths)
def test_longrope(data, base, s, length):
    d = 8
    short, long = (data.draw(st.lists(st.floats(1, 64), min_size=4, max_size=4)) for _ in range(2))
    rope = Rope(dim=d, theta=base, length=length)
    method = LongRoPE(factor=s, short_factors=short, long_factors=long)
    for n in (1, length, length + 1):
        ours, factor = method.frequencies(rope, n)
        theirs, wanted = oracle.longrope(d, base, s, length, short, long, n)
        close(ours, theirs)
        close(factor, wanted)


@settings(deadline=None)
@given(dims, bases, factors, lengths, st.floats(0.1, 2), st.floats(2.1, 64))
def test_llama3(d, base, s, length, low, high):
    rope = Rope(dim=d, theta=base, length=length)
    ours = Llama3(factor=s, low_freq_factor=low, high_freq_factor=high).frequencies(rope).inv_freq
    close(ours, oracle.llama3(d, base, s, length, low, high))


def test_queries_of_eabf_are_scaled_beyond_the_original_length_alone():
    ours = eabf_query_scale(np.arange(40_000), length=4096)
    close(ours, [oracle.eabf_scale(position, 4096) for position in range(40_000)])
    assert (ours[:4096] == 1).all()
    assert (ours[4096:] > 1).all()


def test_an_untrained_clex_is_on_the_ntk_trajectory():
    rope = Rope(dim=16, theta=1e4, length=4096)
    close(CLEX(max_factor=4).frequencies(rope, 4096).inv_freq, rope.inv_freq)
    close(clex_start(rope, t=3).inv_freq, NTK(factor=5).frequencies(rope).inv_freq)
    close(CLEX(max_factor=4).frequencies(rope, 999_999).inv_freq, clex_start(rope, t=4).inv_freq)


TYPES = {
    "linear": PositionInterpolation(factor=3.5),
    "dynamic": DynamicNTK(factor=3.5),
    "yarn": YaRN(factor=4, beta_fast=20, beta_slow=2),
    "yarn-attention": YaRN(factor=4, attention_factor=1.5),
    "longrope": LongRoPE(factor=4, short_factors=[1.0] * 8, long_factors=np.linspace(1, 9, 8).tolist()),
    "llama3": Llama3(factor=8),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("num_tokens", [1, 4096, 4097, 30_000])
def test_transformers_computes_the_same_from_what_a_method_writes(name, num_tokens):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from longlens.rope import extend_config

    method, rope = TYPES[name], Rope(dim=16, theta=1e4, length=4096)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=4096)
    new = extend_config(config, method)
    theirs, factor = ROPE_INIT_FUNCTIONS[name.partition("-")[0]](new, seq_len=num_tokens)
    ours = method.frequencies(rope, num_tokens)
    np.testing.assert_allclose(ours.inv_freq, theirs.numpy(), rtol=2e-6)
    assert ours.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            PositionInterpolation,
            {"factor": 1},
            "`factor` is 1; expected more than 1, such as 8 to go from 4,096",
        ),
        (DynamicNTK, {"factor": 0.5}, "`factor` is 0.5; expected more than 1"),
        (YaRN, {"factor": float("nan")}, "`factor` is nan; expected more than 1"),
        (YaRN, {"factor": float("inf")}, "`factor` is inf; expected more than 1"),
        (Llama3, {"factor": "8"}, "`factor` is 8; expected more than 1"),
        (NTK, {}, "NTK needs a factor (factor=8), a base (theta=8e6), or both"),
        (NTK, {"theta": 0}, "`theta` is 0; expected a base above 1, such as 500000"),
        (EABF, {"factor": 8, "theta": -1}, "`theta` is -1; expected a base above 1"),
        (EABF, {"factor": 8, "first_layer": -1}, "`first_layer` is -1; expected 0 (the published code) or 2"),
        (
            YaRN,
            {"factor": 8, "beta_fast": 1, "beta_slow": 2},
            "`beta_slow` is 2 and `beta_fast` is 1; expected 0 < b",
        ),
        (YaRN, {"factor": 8, "attention_factor": 0}, "`attention_factor` is 0; expected more than 0"),
        (Llama3, {"factor": 8, "low_freq_factor": 4}, "`low_freq_factor` is 4 and `high_freq_factor` is 4.0; expected"),
        (
            LongRoPE,
            {"factor": 8, "short_factors": [1, 0], "long_factors": [1, 1]},
            "`short_factors` has 0; expected positive numbers",
        ),
        (
            LongRoPE,
            {"factor": 8, "short_factors": [1, 1], "long_factors": []},
            "`long_factors` has no value; expected positive numbers",
        ),
        (CLEX, {"max_factor": 2.5}, "`max_factor` is 2.5; expected an integer of at least 2, such as 16"),
        (CLEX, {"max_factor": 1}, "`max_factor` is 1; expected an integer of at least 2"),
        (CLEX, {"max_factor": 4, "step": 0}, "`step` is 0; expected a number in (0, 1], such as 0.01"),
        (CLEX, {"max_factor": 4, "width": 0}, "`width` is 0; expected an integer of at least 1"),
        (
            PositionInterpolation,
            {"factor": 2, "original_length": 0},
            "`original_length` is 0; expected the context length in training",
        ),
    ],
)
def test_settings_that_cannot_be(kind, settings, message):
    with pytest.raises(UserError) as refused:
        kind(**settings)
    assert str(refused.value).startswith(message)


def test_methods_are_frozen_and_named():
    assert list(METHODS) == ["pi", "ntk", "dynamic-ntk", "yarn", "longrope", "llama3", "eabf", "clex"]
    for kind in METHODS.values():
        assert kind.__dataclass_params__.frozen
        assert all(field.kw_only for field in dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("module", "heavy"), [("longlens", True), ("longlens.rope.methods", False), ("longlens.rope", False)]
)
def test_methods_need_no_torch_and_the_package_does_not_import_them(module, heavy):
    program = f"import sys, {module}; print('torch' in sys.modules, 'longlens.rope' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(not heavy)]
