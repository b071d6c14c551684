"""Quantized checkpoints of a tiny model, as their makers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny import byte_tokenizer, tiny_model

FORMATS = {"int-quantized": (8, "int"), "float-quantized": (8, "float"), "pack-quantized": (4, "int")}
"""Of compressed-tensors."""


def save_base(folder: Path) -> Path:
    """A model in bfloat16 whose products fill blocks of 32."""
    tiny_model("llama", torch.bfloat16, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def written(base: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> Path:
    """A folder as a maker of quantized checkpoints writes it."""
    folder = base.with_name("quantized")
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return folder


def quantized(base: Path, settings: Any) -> Path:
    """A folder that transformers quantized and saved."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(base, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"})
    folder = base.with_name("quantized")
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def fp8(base: Path) -> Path:
    """A folder of weights in blocks of fp8, as DeepSeek-V3 has them."""
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.float().view(rows // 32, 32, columns // 32, 32)
        scales = blocks.abs().amax((1, 3), keepdim=True) / 448
        tensors[name] = (blocks / scales).view(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales[:, 0, :, 0].contiguous()
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    return written(base, tensors, settings)


def compressed(base: Path, form: str) -> Path:
    """A folder in a format of compressed-tensors."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    bits, kind = FORMATS[form]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    size = {"strategy": "group", "group_size": 32} if bits == 4 else {"strategy": "channel"}
    parts = {"weights": QuantizationArgs(num_bits=bits, type=kind, symmetric=True, **size)}
    if bits == 8:
        parts["input_activations"] = QuantizationArgs(
            num_bits=8, type=kind, strategy="token", dynamic=True, symmetric=True
        )
    scheme = QuantizationScheme(targets=["Linear"], format=form, **parts)
    settings = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], quantization_status="compressed", format=form
    )
    apply_quantization_config(model, settings)
    largest = {"int-quantized": 127, "float-quantized": 448, "pack-quantized": 7}[form]
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.float().reshape(*module.weight_scale.shape, -1)
            module.weight_scale.data.copy_(groups.abs().amax(-1) / largest)
    ModelCompressor(quantization_config=settings).compress_model(model)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    described = settings.model_dump(mode="json") | {"quant_method": "compressed-tensors", "format": form}
    return written(base, tensors, described)
