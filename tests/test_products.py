"""float32 products by oneDNN: they equal torch's, and replace plain products on the CPU alone."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import longlens
from longlens.models import products
from longlens.models.forward import Forward, running
from longlens.models.products import fast_products, linear
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
