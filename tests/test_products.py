"""float32 products by oneDNN: they equal torch's, and replace plain products on the CPU alone."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import longlens
from longlens.models import products
from longlens.models.forward import Forward, running
from longlens.models.products import attention, fast_products, linear
from longlens.scoring.transformers import TransformersScorer
from tests.tiny import byte_tokenizer, tiny_model
from tests.train.runs import trained, weights_of

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this build of torch has no oneDNN")
OPERATION = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As on a processor where oneDNN is the faster one."""
    monkeypatch.setattr(products, "has_faster_products", lambda: True)


def operations(call):
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    return {event.key for event in found.key_averages()}


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_float64(shape, bias):
    torch.manual_seed(0)
    wide = [torch.randn(shape, dtype=torch.float64), torch.randn(11, 7, dtype=torch.float64)]
    wide += [torch.randn(11, dtype=torch.float64)] if bias else []
    sides = []
    for dtype, function in ((torch.float64, torch.nn.functional.linear), (torch.float32, linear)):
        parts = [part.detach().to(dtype, copy=True).requires_grad_() for part in wide]
        found = function(*parts)
        found.square().sum().backward()
        sides.append([found.detach(), *(part.grad for part in parts)])
    for wanted, found in zip(*sides, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-4 if found.numel() else True


def test_strided_operands_and_frozen_ones_keep_their_gradients():
    torch.manual_seed(0)
    states = torch.randn(7, 6).T.requires_grad_()
    weight = torch.randn(7, 5).T
    linear(states, weight).sum().backward()
    assert torch.allclose(states.grad, weight.sum(0).expand(6, -1), atol=1e-5)
    assert weight.grad is None


def test_other_dtypes_devices_classes_and_autocast_are_left_to_torch():
    states, weight = torch.randn(3, 7), torch.randn(5, 7)
    assert OPERATION in operations(lambda: linear(states, weight))
    assert OPERATION not in operations(lambda: linear(states.bfloat16(), weight.bfloat16()))
    assert OPERATION not in operations(lambda: linear(states.double(), weight.double()))
    assert linear(states.to("meta"), weight.to("meta")).device.type == "meta"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(states, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert OPERATION not in operations(lambda: linear(states, weight))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(states, weight[:, :6])


@pytest.mark.parametrize("weight", [torch.randn(512, 1024)[:, :512], torch.randn(1024, 512)[::2]])
def test_weights_with_gaps_between_rows_are_not_multiplied_by_reference_code(weight):
    states, strides = torch.randn(64, 512), []

    class Strides(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == OPERATION:
                strides.append(args[1].stride())
            return func(*args, **(kwargs or {}))

    with Strides():
        found = linear(states, weight)
    assert strides == [(512, 1)]  # of others, oneDNN has reference code alone: 1,000 times as slow
    assert torch.allclose(found, states @ weight.T, atol=1e-3)


def masked(kind, batch, length, keys):
    """What query i sees: ``(batch or 1, 1, length, keys)``."""
    row, column = torch.arange(length)[:, None] + keys - length, torch.arange(keys)
    causal = column <= row
    if kind == "window":
        return (causal & (column > row - 100))[None, None]
    if kind == "sink":
        return (causal & ((column > row - 100) | (column < 4)))[None, None]
    if kind == "left padding":
        begins = torch.arange(batch)[:, None, None] * 150
        return (causal & (column >= begins))[:, None]
    return (torch.rand(batch, 1, length, keys) < 0.3) if kind == "random" else causal[None, None]


def naive_attention(query, key, value, allowed, scale):
    """Float64, one query at a time: 0 where nothing is seen."""
    group = query.shape[1] // key.shape[1]
    query, key, value = (part.double() for part in (query, key, value))
    found = torch.zeros(*query.shape[:3], value.shape[-1], dtype=torch.float64)
    for b in range(len(query)):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                sees = allowed[b if len(allowed) > 1 else 0, 0, i]
                if bool(sees.any()):
                    shares = (key[b, h // group][sees] @ query[b, h, i] * scale).softmax(0)
                    found[b, h, i] = shares @ value[b, h // group][sees]
    return found


@pytest.mark.parametrize("kind", ["causal", "window", "sink", "left padding", "random", "is_causal"])
@pytest.mark.parametrize(
    ("keys", "group", "width", "scale"), [(300, 1, 64, None), (300, 3, 64, 0.3), (420, 2, 48, None), (300, 1, 64, 0.0)]
)
def test_attention_is_that_of_float64(monkeypatch, kind, keys, group, width, scale):
    torch.manual_seed(0)
    query = torch.randn(2, 300, 2 * group, width).transpose(1, 2)
    key, value = torch.randn(2, keys, 2, width).transpose(1, 2), torch.randn(2, 2, keys, width)
    allowed = masked(kind, 2, 300, keys)
    if kind == "is_causal":
        options, allowed = {"is_causal": True}, torch.ones(1, 1, 300, keys, dtype=torch.bool).tril()
    else:
        options = {"attn_mask": allowed}
    wanted = naive_attention(query, key, value, allowed, width**-0.5 if scale is None else scale)
    for rows in (7, 128):
        monkeypatch.setattr(products, "ATTENTION_ROWS", rows)
        with fast_products(torch.device("cpu")):
            call = partial(torch.nn.functional.scaled_dot_product_attention, query, key, value, **options)
            found = call(scale=scale, enable_gqa=True)
        # One query that saw a key too many would be off by 0.1 and more; float32 by torch's own is as far off as this.
        assert (found - wanted).abs().max() < 5e-6
    assert OPERATION in operations(lambda: attention(query, key, value, scale=scale, enable_gqa=True, **options))


def test_attention_that_is_not_plain_is_left_to_torch():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 300, 64)
    bias = torch.randn(1, 1, 300, 300)

    def is_ours(*parts, **options):
        return OPERATION in operations(lambda: attention(*parts, **options))

    assert is_ours(query, key, value)
    assert not is_ours(query, key, value, bias)
    assert not is_ours(query, key, value, torch.ones(1, 2, 300, 300, dtype=torch.bool))
    assert not is_ours(query, key, value, torch.ones(300, 300, dtype=torch.bool))
    assert not is_ours(query, key, value, dropout_p=0.1)
    assert not is_ours(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert not is_ours(query.requires_grad_(), key, value)
    query = query.detach()
    assert not is_ours(query[:, :, :1], key, value)
    assert not is_ours(query[:, :, :20], *torch.randn(2, 1, 2, products.MOST_KEYS + 1, 64))
    assert not is_ours(query[:, :, :20], key[:, :, :20], value[:, :, :20])
    with pytest.raises(RuntimeError):
        attention(query, key[..., :32], value)


def test_layers_of_a_running_model_use_them_and_scores_stay_the_same(monkeypatch):
    model = tiny_model("llama")
    ids = torch.arange(40)[None]

    def run():
        with running(model):
            Forward(model).hidden(ids)

    assert OPERATION in operations(run)
    assert OPERATION not in operations(lambda: model(ids))  # nothing is left behind
    document = [longlens.Document(id="a", text="To be, or not to be, that is the question. " * 6)]

    def scored():
        scorer = TransformersScorer(model, byte_tokenizer(), name="tiny", weights_sha256="0")
        return longlens.score(document, scorer, context=64, stride=32)[0]

    found = scored()
    monkeypatch.setattr(products, "has_faster_products", lambda: False)
    wanted = scored()
    assert OPERATION not in operations(run)
    assert np.allclose(found.long_logprobs, wanted.long_logprobs, atol=1e-4)
    assert np.allclose(found.short_logprobs, wanted.short_logprobs, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_takes_the_same_steps(tmp_path, monkeypatch, checkpointing):
    options = {"args": {"gradient_checkpointing": checkpointing}}
    found = None

    def train():
        nonlocal found
        found = weights_of(trained(tmp_path / "fast", **options).model)

    assert OPERATION in operations(train)
    monkeypatch.setattr(products, "has_faster_products", lambda: False)
    wanted = weights_of(trained(tmp_path / "plain", **options).model)
    for name, weight in found.items():
        assert torch.allclose(weight, wanted[name], atol=1e-6, rtol=1e-5), name


def test_a_gpu_has_no_mode_for_each_operation():
    with fast_products(torch.device("cuda")) as mode:
        assert mode is None
