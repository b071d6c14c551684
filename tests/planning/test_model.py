"""The arithmetic and the memory that are planned, against those of real models that run."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from longlens.errors import UserError
from longlens.logprobs import Head, token_logprobs
from longlens.losses.longce import weighted_nll
from longlens.planning.model import TracedModel
from longlens.planning.trace import AttentionCall, HeadStandIn, Tracer, tracing
from tests.families import family_model
from tests.tiny import FAMILIES, tiny_model

LENGTH = 40


def counted(model, length):
    """FLOPs of torch's own counter on a real forward pass with eager attention, which is the whole square."""
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # torch does not count its grouped product
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(1, length + 1)[None], use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_arithmetic_are_those_of_the_real_model(family):
    model = tiny_model(family)
    traced = TracedModel(model.config, dtype=torch.float32, attention="eager")
    assert traced.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert traced.weight_bytes >= 4 * traced.num_parameters
    assert traced.work(1, LENGTH, LENGTH).total == counted(model, LENGTH)


@pytest.mark.parametrize(
    ("q", "kv", "window"), [(7, 7, None), (7, 7, 3), (1, 9, 4), (4, 9, 3), (4, 9, None), (5, 5, 8)]
)
def test_pairs_of_a_kernel_that_skips_what_is_masked(q, kv, window):
    seen = sum(kv - q + i >= j and (window is None or kv - q + i - j < window) for i in range(q) for j in range(kv))
    call = AttentionCall(layer=0, batch=2, heads=3, kv_heads=1, q=q, kv=kv, key_dim=5, value_dim=4, window=window)
    assert call.pairs("flash_attention_2") == seen
    assert call.flops("flash_attention_2") == 2 * 2 * 3 * seen * 9
    assert call.pairs("eager") == q * kv


def test_sliding_windows_in_chunks_cost_as_the_scorer_cuts_them():
    config = transformers.MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=128,
    )  # fmt: skip
    traced = TracedModel(config, dtype=torch.float32)
    work, plain = traced.work(1, 2500, 2499), traced.work(1, 128, 127)
    pairs = 1024 * 1024 + 1024 * (127 + 1024) + 452 * (127 + 452)  # masks: whole rectangles
    assert work.attention == 2 * 2 * 4 * 16 * pairs
    assert work.linear == pytest.approx(plain.linear * 2500 / 128)
    assert traced.peak_bytes(1, 2500, 2499) < traced.peak_bytes(1, 5000, 4999)


class RealTracer(Tracer):
    """Live bytes of real tensors, beside parameters and what is there already."""

    def __init__(self, *known):
        super().__init__("sdpa", False, {}, list(known))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [100, 5000])
def test_the_head_makes_what_its_code_makes(dtype, rows, monkeypatch):
    monkeypatch.setattr("longlens.planning.trace.BLOCK_BYTES", 2**20)
    weight = torch.randn(300, 16).to(dtype).requires_grad_()
    hidden = torch.randn(rows, 16).to(dtype).requires_grad_()
    targets = torch.zeros(rows, dtype=torch.int64)
    peaks = []
    for stands_in in (False, True):
        weight.grad = hidden.grad = None
        tracer = RealTracer(weight, hidden, targets)
        tracing.append(tracer)
        with tracer:
            if stands_in:
                out = HeadStandIn.apply(hidden, weight, False, None)
            else:
                out = token_logprobs(hidden, targets, Head(weight=weight), block_bytes=2**20)
            torch.autograd.backward(out.sum())
            del out
        tracing.pop()
        peaks.append(tracer.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3-tied"])
def test_memory_of_a_training_step_is_that_of_real_tensors(family, checkpointing):
    model = tiny_model(family).train()
    ids = torch.arange(512)[None] % 250 + 1
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    weighted_nll(model, ids[:, :32], longce=None)  # the head is probed once
    tracer = RealTracer(*model.parameters(), *model.buffers(), ids)
    with tracer:
        torch.autograd.backward(weighted_nll(model, ids, longce=None).total)
    traced = TracedModel(model.config, dtype=torch.float32)
    planned = traced.train(1, 512, 511, checkpointing=checkpointing)
    assert planned.peak_bytes == pytest.approx(tracer.peak, rel=0.1)


def test_checkpointing_computes_the_layers_again_and_adapters_save_gradients_of_weights():
    config = tiny_model("llama").config
    traced = TracedModel(config, dtype=torch.float32)
    forward = traced.work(1, 64, 63)
    plain, again = traced.train(1, 64, 63), traced.train(1, 64, 63, checkpointing=True)
    assert plain.work.linear == pytest.approx(3 * forward.linear, rel=1e-3)
    # Not the last product of a layer, which keeps nothing.
    assert 3.7 * forward.linear < again.work.linear <= 4 * forward.linear
    assert plain.work.wide_head == 4 * forward.wide_head
    assert plain.work.attention == forward.attention * 3.5
    number = traced.num_parameters
    traced.add_adapters(2)
    adapted = traced.train(1, 64, 63)
    assert traced.num_trained < number / 4 < traced.num_parameters
    assert adapted.work.wide_head == 3 * forward.wide_head
    assert 2 * forward.linear < adapted.work.linear < 2.7 * forward.linear


def test_attention_of_a_models_own_code_is_counted_at_its_length():
    config = transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.BloomForCausalLM(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(1, 101)[None], use_cache=False)
    traced = TracedModel(config, dtype=torch.float32)
    assert traced.work(1, 100, 100).total == pytest.approx(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_next", "gemma3n_text"])
def test_latent_attention_and_hybrids(kind):
    model = family_model(kind)
    traced = TracedModel(model.config, dtype=torch.float32, attention="eager")
    assert traced.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert traced.work(1, LENGTH, LENGTH).total == counted(model, LENGTH)


def test_a_model_whose_code_asks_for_values_is_refused():
    config = family_model("jetmoe").config
    traced = TracedModel(config, dtype=torch.float32)
    with pytest.raises(UserError, match="JetMoeForCausalLM cannot be planned: its code reads values"):
        traced.work(1, 10, 10)
