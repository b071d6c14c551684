"""Describes quantized checkpoints from config.json, and plans how transformers loads them on this machine."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from longlens.errors import UserError, broken_package, one_line, shown

if TYPE_CHECKING:
    import torch

PACKAGES = {
    "aqlm": "aqlm[gpu,cpu]",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fp8": "kernels",
    "gptq": "gptqmodel optimum",
    "hqq": "hqq",
    "mxfp4": "kernels triton",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "spqr": "spqr_quant[gpu]",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""Packages to install for each ``quant_method``, as in the errors of transformers.quantizers."""


class Quantization(NamedTuple):
    """How a quantized checkpoint is loaded on this machine.

    Attributes:
        note: Addition to the dtype in a manifest, such as ``fp8``, ``bitsandbytes 4-bit nf4`` or, if the weights are
            widened while they are loaded, ``fp8 dequantized``.
        dtype: Dtype of the weights that are not quantized, and of the products.
    """

    note: str
    dtype: torch.dtype


def can_dequantize(method: str) -> bool:
    """Whether transformers can dequantize weights of a ``quant_method`` while they are loaded: fp8, mxfp4, ..."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return kind is not None and "dequantize" in inspect.signature(kind).parameters


def dequantizing_config(config: Any) -> Any:
    """A configuration that dequantizes weights while they are loaded, also on a GPU; see `can_dequantize`."""
    new = copy.deepcopy(config)
    settings = quantization_settings(config)
    assert settings is not None
    part = new if getattr(new, "quantization_config", None) is not None else new.get_text_config(decoder=True)
    part.quantization_config = settings | {"dequantize": True}
    return new


def quantization_settings(config: Any) -> dict[str, Any] | None:
    """``quantization_config`` of a model's configuration, or of its text part; None if it is not quantized."""
    for part in (config, config.get_text_config(decoder=True)):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            return dict(found if isinstance(found, Mapping) else found.to_dict())
    return None


def quantization_note(settings: Mapping[str, Any]) -> str:
    """The method of a ``quantization_config``, and its variant."""
    method = str(settings.get("quant_method") or "unknown")
    if settings.get("load_in_4bit"):
        return f"bitsandbytes 4-bit {settings.get('bnb_4bit_quant_type') or 'fp4'}"
    if settings.get("load_in_8bit"):
        return "bitsandbytes 8-bit"
    if isinstance(settings.get("format"), str):  # of compressed-tensors
        return f"{method} {settings['format']}"
    if isinstance(settings.get("bits"), int):
        return f"{method} {settings['bits']}-bit"
    kind = settings.get("quant_type")
    if isinstance(kind, Mapping):  # of torchao: {"default": {"_type": NAME, ...}}
        first = next(iter(kind.values()), None)
        kind = first.get("_type") if isinstance(first, Mapping) else first
    weights = kind if isinstance(kind, str) else settings.get("weights")
    return f"{method} {weights}" if isinstance(weights, str) else method


def dtype_note(dtype: torch.dtype, note: str = "") -> str:
    """The dtype of a model for a manifest, such as ``bfloat16`` or ``bfloat16, fp8``."""
    return ", ".join([str(dtype).removeprefix("torch."), *([note] if note else [])])


def plan_quantization(
    name: str, config: Any, dtype: torch.dtype, device_map: Any, *, is_asked: bool = False
) -> Quantization | None:
    """Finds how transformers will load a checkpoint, without its weights; None if it is not quantized.

    Args:
        name: Name of the model, for messages.
        config: Its configuration.
        dtype: Requested dtype.
        device_map: Device map of the loading.
        is_asked: Whether the user set the dtype. If it is not possible, it is then rejected; otherwise the dtype of the
            files is used.

    Raises:
        UserError: The method is unknown, its library is not installed, or the model cannot be run on this machine or
            not with the requested dtype.
    """
    settings = quantization_settings(config)
    if settings is None:
        return None
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

    note = quantization_note(settings)
    method = note.split()[0]
    is_known = method == "bitsandbytes" or method in AUTO_QUANTIZATION_CONFIG_MAPPING
    said = f"{shown(name)} is quantized ({note})"
    if not is_known:  # transformers would load the weights unquantized, although their shape and meaning differ
        raise UserError(
            f"{said}, which transformers does not know: use a checkpoint with another method, or the unquantized model"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
        quantizer.validate_environment(device_map=device_map, weights_only=True)
        loaded = quantizer.update_dtype(dtype)
    except ImportError as error:
        if broken := broken_package(error):
            raise UserError(f"{said}: {broken}") from error
        package = PACKAGES.get(method)
        step = f"pip install {package}" if package else one_line(error)
        raise UserError(f"{said}, and a library that it needs is not installed: {step}") from error
    except Exception as error:  # libraries report missing hardware with many kinds of errors
        reason = one_line(error).rstrip(".")
        raise UserError(
            f"{said} and cannot be run here: {reason}. Run it on a GPU, or use the unquantized model"
        ) from error
    if method == "bitsandbytes":  # keeps what is not quantized as it was saved
        saved = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
        loaded = saved or loaded
    if is_asked and loaded != dtype:
        raise UserError(
            f"`dtype` is {dtype_note(dtype)}, but {said}, whose other weights are {dtype_note(loaded)} here: remove "
            "`dtype`"
        )
    is_dequantized = bool(getattr(quantizer.quantization_config, "dequantize", False))
    return Quantization(f"{note} dequantized" if is_dequantized else note, loaded)
