"""Quantized checkpoints: loaded as transformers loads them, scored as its own forward pass, told apart by their dtype.

Those whose library is a package of its own run under `make test-quantized`; nothing here runs on a GPU.
"""

import importlib
import logging

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import longlens
from longlens.logprobs import find_head
from longlens.models import identify
from longlens.models.quantized import quantization_note
from longlens.rope import YaRN
from longlens.rope.folder import extend
from longlens.runs.folder import read_manifest
from longlens.settings.options import Loading
from tests.quantized import FORMATS, compressed, fp8, quantized, save_base, written
from tests.reference.scoring import naive_scores
from tests.tiny import tiny_model

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
DOCUMENTS = [longlens.Document(id=str(n), text=TEXT[n : n + length]) for n, length in enumerate((80, 37, 80, 5))]
DOCUMENTS += [longlens.Document(id="long", text=TEXT * 2)]


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


def check(folder, note, *, dtype="auto", atol=1e-4):
    """Scores of unequal lengths against the pass of each sequence alone; who it is before and after it is loaded."""
    scorer = longlens.load_scorer(str(folder), dtype=dtype)
    assert scorer.info.dtype == note
    assert identify(str(folder), Loading(dtype=dtype)) == scorer.info.identity
    own = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=scorer.model.dtype).eval()
    for row in longlens.score(DOCUMENTS, scorer, context=64, stride=32):
        long, short = naive_scores(own, row.token_ids.tolist(), context=64, stride=32, bos=256)
        np.testing.assert_allclose(row.long_logprobs, long, atol=atol)
        np.testing.assert_allclose(row.short_logprobs, short, atol=atol)
    return scorer


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its products are of fp8")
def test_fp8_is_widened_without_a_gpu_and_the_manifest_says_so(base, tmp_path):
    folder = fp8(base)
    scorer = check(folder, "float32, fp8 dequantized")
    check(folder, "bfloat16, fp8 dequantized", dtype="bfloat16", atol=0.1)
    longlens.score(DOCUMENTS, scorer, context=64, out=tmp_path / "run")
    assert read_manifest(tmp_path / "run")["model"]["dtype"] == "float32, fp8 dequantized"
    # And goes on in another process, which finds the same model.
    longlens.score(DOCUMENTS, longlens.load_scorer(str(folder)), context=64, out=tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its products are of MXFP4")
def test_mxfp4_experts_of_gpt_oss_are_widened_without_a_gpu(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8, "num_local_experts": 4}
    base = tmp_path / "base"
    tiny_model("gpt-oss-sinks", torch.bfloat16, **sizes).save_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = weight
            continue
        shape = (weight.shape[0], weight.shape[2], weight.shape[1] // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    folder = written(base, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": skipped})
    check(folder, "float32, mxfp4 dequantized")


def torchao(base):
    config = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
    return quantized(base, transformers.TorchAoConfig(config))


def four_bits(base):
    pytest.importorskip("bitsandbytes")
    return quantized(base, transformers.BitsAndBytesConfig(load_in_4bit=True))


def packed(base):
    pytest.importorskip("compressed_tensors")
    return compressed(base, "pack-quantized")


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (fp8, "float32, fp8"),
        (four_bits, "bfloat16, bitsandbytes 4-bit"),
        (torchao, "float32, torchao"),
        (packed, "float32"),
    ],
)
def test_an_extended_folder_keeps_its_quantization(make, dtype, base, tmp_path):
    folder = make(base)
    before = longlens.score(DOCUMENTS, longlens.load_scorer(str(folder)), context=64, stride=32)
    extend(str(folder), YaRN(factor=2), tmp_path / "long")
    note = longlens.load_scorer(str(folder)).info.dtype
    assert note.startswith(dtype)
    scorer = check(tmp_path / "long", note, atol=0.1 if make is four_bits else 1e-4)
    assert scorer.info.max_length == 8192
    after = longlens.score(DOCUMENTS, scorer, context=64, stride=32)
    assert np.nanmax(np.abs(after[4].long_logprobs - before[4].long_logprobs)) > 0.2


MISSING = {
    "awq": ({"bits": 4, "group_size": 128}, "awq 4-bit", "gptqmodel"),
    "bitsandbytes": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4-bit nf4", "bitsandbytes"),
    "compressed-tensors": ({"format": "pack-quantized"}, "compressed-tensors pack-quantized", "compressed-tensors"),
    "gptq": ({"bits": 4, "group_size": 128}, "gptq 4-bit", "gptqmodel optimum"),
    "hqq": ({"quant_config": {}}, "hqq", "hqq"),
    "torchao": ({"quant_type": {"default": {"_type": "Int4"}}}, "torchao Int4", "torchao"),
}
MODULES = {"awq": "gptqmodel", "compressed-tensors": "compressed_tensors", "gptq": "optimum"}


@pytest.mark.parametrize("method", MISSING)
def test_a_missing_library_is_one_line_before_weights_are_read(method, base):
    if importlib.util.find_spec(MODULES.get(method, method)) is not None:
        pytest.skip("it is installed")
    settings, note, packages = MISSING[method]
    folder = written(base, {"nothing": torch.zeros(1)}, {"quant_method": method, **settings})
    with pytest.raises(
        longlens.UserError, match=rf"is quantized \({note}\), and a library .*: pip install {packages}$"
    ):
        longlens.load_scorer(str(folder))


def test_an_unknown_method_is_refused_where_transformers_would_go_on_without_it(base):
    folder = written(base, load_file(base / "model.safetensors"), {"quant_method": "abacus"})
    with pytest.raises(longlens.UserError, match=r"is quantized \(abacus\), which transformers does not know"):
        longlens.load_scorer(str(folder))


def test_what_needs_a_gpu_says_so(base):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    folder = written(base, load_file(base / "model.safetensors"), settings)
    with pytest.raises(
        longlens.UserError, match=r"is quantized \(fbgemm_fp8\) and cannot be run here|is not installed"
    ):
        longlens.load_scorer(str(folder))


def test_a_quantized_head_is_refused():
    model = tiny_model("llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(longlens.UserError, match=r"vocabulary head of LlamaForCausalLM is quantized \(torch.int8\)"):
        find_head(model, torch.zeros(1, 32), torch.zeros(1, 300))


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
        ({"quant_method": "gptq", "bits": 8}, "gptq 8-bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes 8-bit"),
        ({"quant_method": "quanto", "weights": "int4"}, "quanto int4"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao int4_weight_only"),
        ({}, "unknown"),
    ],
)
def test_notes(settings, note):
    assert quantization_note(settings) == note


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"load_in_4bit": True}, "bfloat16, bitsandbytes 4-bit fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bfloat16, bitsandbytes 4-bit nf4"),
        ({"load_in_8bit": True}, "bfloat16, bitsandbytes 8-bit"),
    ],
)
def test_bitsandbytes(settings, note, base, caplog):
    pytest.importorskip("bitsandbytes")
    folder = quantized(base, transformers.BitsAndBytesConfig(**settings))
    with caplog.at_level(logging.INFO, "longlens"):
        check(folder, note, atol=0.1)
    # Columns of outliers are those of a whole batch in 8 bits.
    assert ("one sequence at a time" in caplog.text) == ("8-bit" in note)
    # transformers keeps what was saved, whatever is asked for.
    with pytest.raises(longlens.UserError, match=r"`dtype` is float32, and .* whose other weights are bfloat16 here"):
        longlens.load_scorer(str(folder), dtype="float32")


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(kind, base):
    torchao = pytest.importorskip("torchao.quantization")
    folder = quantized(base, transformers.TorchAoConfig(getattr(torchao, kind)()))
    check(folder, f"float32, torchao {kind}")


@pytest.mark.parametrize("form", FORMATS)
def test_compressed_tensors(form, base):
    pytest.importorskip("compressed_tensors")
    # Its weights are widened before the first pass of the whole model, of which longlens runs the decoder.
    check(compressed(base, form), f"float32, compressed-tensors {form}")
