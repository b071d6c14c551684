"""Quantized checkpoints in training: dequantized, or frozen under adapters that are merged without loss; or refused.

Those whose library is a package of its own run under `make test-quantized`; nothing here runs on a GPU.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import longlens
from longlens.errors import UserError
from longlens.models import load_scorer
from longlens.rope import load_model
from longlens.rope.model import text_config
from longlens.train.folder import read_log
from longlens.train.recipe import parse_recipe
from longlens.train.run import run
from tests.quantized import FORMATS, compressed, fp8, quantized, save_base, written
from tests.tiny import byte_tokenizer
from tests.train.runs import trained

LORA = {"r": 4, "alpha": 8}


def recipe(model, **changes):
    text = Path("a.txt")
    text.write_text(" ".join(f"w{i * 7 % 53}" for i in range(90)))
    content = {
        "model": str(model),
        "data": {"documents": [str(text)], "length": 48, "packing": "fill"},
        "loss": {"longce": {"context": 8, "stride": 4}},
        "training": {"steps": 3, "batch_size": 2, "learning_rate": 0.01, "arguments": {"use_cpu": True}},
    }
    return parse_recipe(content | changes, "recipe")


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_base(tmp_path / "base")


def saved_plain(base, model):
    """The same model without quantization."""
    plain = base.with_name("plain")
    config = transformers.AutoConfig.from_pretrained(base, dtype=model.dtype)
    config.save_pretrained(plain)
    start = load_file(base / "model.safetensors")
    weights = {name: model.get_parameter(name).data.contiguous() for name in start}
    for name, weight in weights.items():
        step = 0.2 * start[name].abs().max().item()
        torch.testing.assert_close(weight.float(), start[name].float(), atol=step, rtol=0)
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    byte_tokenizer().save_pretrained(plain)
    return plain


def check_dequantized(base, folder, **changes):
    """Trained as the unquantized model is, and saved as one."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    plain = saved_plain(base, model)
    assert run(recipe(folder, **changes), "out")["loss"] == run(recipe(plain, **changes), "other")["loss"]
    one, other = (load_file(Path(out) / "model" / "model.safetensors") for out in ("out", "other"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "quantization_config" not in json.loads(Path("out/model/config.json").read_text())


@pytest.mark.parametrize("lora", [None, LORA])
def test_fp8_is_dequantized(base, lora):
    check_dequantized(base, fp8(base), lora=lora)


@pytest.mark.parametrize("form", FORMATS)
def test_compressed_tensors_are_dequantized(base, form):
    pytest.importorskip("compressed_tensors")
    check_dequantized(base, compressed(base, form))


@pytest.mark.parametrize("method", ["gptq", "awq", "torchao", "hqq", "abacus"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_others_are_refused_before_their_library_is_asked_for(base, method, lora):
    folder = written(base, load_file(base / "model.safetensors"), {"quant_method": method, "bits": 4})
    with pytest.raises(UserError, match=rf"is quantized \({method}.*\), which longlens train does not support: use"):
        run(recipe(folder, lora=lora), "out")
    assert not any(path.is_file() for path in Path("out").rglob("*.safetensors"))


BITS = {
    "4-bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8-bit": {"load_in_8bit": True},
}


def bitsandbytes(base, bits):
    pytest.importorskip("bitsandbytes")
    return quantized(base, transformers.BitsAndBytesConfig(**BITS[bits]))


def test_weights_of_bitsandbytes_are_not_trained_themselves(base):
    folder = written(base, load_file(base / "model.safetensors"), {"quant_method": "bitsandbytes", **BITS["4-bit"]})
    with pytest.raises(UserError, match=r"and such weights can only be trained with adapters: add lora: {r: 16, "):
        run(recipe(folder), "out")


@pytest.mark.parametrize("bits", BITS)
def test_adapters_of_bitsandbytes_are_merged_into_dequantized_weights(base, bits):
    folder = bitsandbytes(base, bits)
    with pytest.raises(UserError, match=r"load.dtype is float32, .* in bfloat16: set load.dtype: bfloat16"):
        run(recipe(folder, lora=LORA), "out")
    made = recipe(folder, lora=LORA | {"modules_to_save": ["embed_tokens"]}, load={"dtype": "bfloat16"}, loss="ce")
    extend = {"method": "yarn", "factor": 2.0}
    run(parse_recipe(made.resolved() | {"extend": extend}, "recipe"), "out")
    dequantized = transformers.AutoModelForCausalLM.from_pretrained(folder).dequantize()
    run(
        parse_recipe(made.resolved() | {"model": str(saved_plain(base, dequantized)), "extend": extend}, "recipe"),
        "other",
    )
    first, other = (read_log(Path(out) / "log.jsonl")[0] for out in ("out", "other"))
    assert [first[name] for name in ("loss", "grad_norm")] == pytest.approx(
        [other[name] for name in ("loss", "grad_norm")], rel=0.05
    )
    start = dequantized.state_dict()
    adapters = load_file("out/checkpoints/checkpoint-3/adapter_model.safetensors")
    saved = load_file("out/model/model.safetensors")
    name, largest = "model.layers.{}.mlp.up_proj.weight", 0.0
    for layer in range(3):
        before, key = start[name.format(layer)].float(), f"base_model.model.{name.format(layer)}"
        down, up = (adapters[key.replace(".weight", f".lora_{part}.weight")].float() for part in "AB")
        change, after = 2 * up @ down, saved[name.format(layer)].float()
        torch.testing.assert_close(after, before + change, rtol=2**-8, atol=1e-6)
        largest = max(largest, (change.norm() / change.numel() ** 0.5).item())
    assert largest > 1e-3, "else a merge that loses everything would pass"
    assert not torch.equal(saved["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    model = load_model("out/model")
    assert not hasattr(model.config, "quantization_config")
    assert text_config(model.config).rope_parameters["rope_type"] == "yarn"
    scorer = load_scorer("out/model")
    longlens.score([longlens.Document(id="a", text="words " * 20)], scorer, context=16, stride=8)


def test_four_bits_that_a_pass_has_packed_are_not_trained(base, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    if not bnb.functional.has_avx512bf16():
        pytest.skip("weights are not packed on this CPU")
    model = transformers.AutoModelForCausalLM.from_pretrained(bitsandbytes(base, "4-bit"))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(UserError, match=r"were packed for inference by a pass on the CPU, and have no gradients: load"):
        trained(tmp_path, model)
