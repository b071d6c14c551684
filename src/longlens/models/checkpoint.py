"""Loads a model with transformers: finds its configuration, dtype and quantization once each, then its weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.errors import LonglensWarning, UserError, shown
from longlens.models.files import (
    config_in_force,
    find_adapter,
    hash_files,
    load_config,
    load_tokenizer,
    loading_errors,
)
from longlens.models.gguf import is_whole, keep, kept
from longlens.models.quantized import Quantization, dtype_note, plan_quantization
from longlens.models.resolve import Source, resolve
from longlens.models.tensor_parallel import sharing
from longlens.rope.config import check_decoder
from longlens.runs.identity import ModelIdentity, functional_config
from longlens.settings.options import Loading

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """A model's files and loading settings. Each fact about the files is read once.

    Args:
        source: Location of the model.
        loading: Loading settings; the model is put on ``device`` unless ``device_map`` is set.
        config: Configuration to use instead of the model's own.
    """

    def __init__(self, source: Source, loading: Loading, *, config: Any = None) -> None:
        self.source, self.loading, self._given = source, loading, config

    @cached_property
    def config(self) -> Any:
        """The transformers configuration.

        Raises:
            UserError: The configuration cannot be loaded.
        """
        if self._given is not None:
            return self._given
        return load_config(self.source, trust_remote_code=self.loading.trust_remote_code)

    @cached_property
    def plan(self) -> Quantization:
        """The dtype of the weights, and their quantization, if any.

        Raises:
            UserError: The dtype or the quantization is not available on this machine.
        """
        plain = Quantization("", _wanted_dtype(self.loading))
        if self.source.gguf is not None:
            return plain
        is_asked, name = self.loading.dtype != "auto", self.source.name
        return plan_quantization(name, self.config, plain.dtype, self._device_map, is_asked=is_asked) or plain

    @property
    def _device_map(self) -> Any:
        return self.loading.device_map or {"": resolve_device(self.loading.device)}

    def identify(self, tokenizer: Any = None) -> ModelIdentity | None:
        """The model's identity, without reading its weights; None if they are not on this machine.

        Args:
            tokenizer: The model's tokenizer, if it is already loaded.

        Raises:
            UserError: A local model has no configuration or no weights.
        """
        from longlens.tokenization import TextEncoder

        source, trust = self.source, self.loading.trust_remote_code
        _wanted_dtype(self.loading)
        adapter = find_adapter(source)
        try:
            encoder = TextEncoder(
                load_tokenizer(source.name, trust_remote_code=trust) if tokenizer is None else tokenizer
            )
            return ModelIdentity(
                weights_sha256=hash_files(source),
                config=functional_config(config_in_force(self.config), [] if adapter is None else [adapter.config]),
                tokenizer_sha256=encoder.sha256,
                bos_token_id=encoder.bos_token_id,
                own_prefix=encoder.own_prefix,
                dtype=dtype_note(self.plan.dtype, self.plan.note),
            )
        except FileNotFoundError:
            return None
        except UserError:
            if Path(source.path).is_dir():
                raise
            return None

    def load(self, loader: Any = None) -> tuple[Any, dict[str, Any]]:
        """Loads the model with its weights, and returns it with transformers' loading info.

        Args:
            loader: A function like ``from_pretrained``; by default a causal language model is loaded.

        Raises:
            UserError: The model cannot be loaded.
        """
        from transformers import GgufConfig

        from longlens.rope.load import load_model

        source, loading = self.source, self.loading
        is_gguf, path, unkept = source.gguf is not None, source.path, None
        if loader is None and not is_gguf:
            check_decoder(self.config)
        options: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code, "dtype": self.plan.dtype}
        config = self._given
        if is_gguf:
            file = Path(source.path) / str(source.gguf)
            folder = kept(file, "model")
            if is_whole(folder):
                path, options["use_safetensors"] = str(folder), True
            else:
                options |= {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}
                config = vars(self).get("config", config)  # reuse it if loaded, because reading it takes seconds
                is_exact = loader is None and self._given is None and str(self.plan.dtype) == "torch.float32"
                unkept = folder if is_exact and loading.device_map is None else None
        else:
            options["use_safetensors"] = None if loading.allow_pickle else True
        # Some quantization methods place and pack weights while they load, and cannot be moved afterwards.
        is_shared = (loading.tensor_parallel or 1) > 1
        device_map = self._device_map if self.plan.note and not is_shared else loading.device_map
        chosen = {"config": config, "attn_implementation": loading.attention, "device_map": device_map}
        options |= {name: value for name, value in chosen.items() if value is not None}
        with loading_errors(source, "model"):
            options |= sharing(self.config, loading) if is_shared else {}
            model, loading_info = (loader or load_model)(path, output_loading_info=True, **options)
            if not any(loading_info.get(key) for key in ("missing_keys", "unexpected_keys")):
                keep(unkept, model.save_pretrained)
            if device_map is None and not is_shared:
                model = model.to(resolve_device(loading.device))
        return model, loading_info


def identify(name: str, loading: Loading | None = None, *, tokenizer: Any = None) -> ModelIdentity | None:
    """`Checkpoint.identify` for a model's name.

    Args:
        name: Hub id, directory, ``.gguf`` file or embedded model.
        loading: Loading settings.
        tokenizer: The model's tokenizer, if it is already loaded.

    Raises:
        UserError: The model does not exist, or as in `Checkpoint.identify`.
    """
    return Checkpoint(resolve(name), loading or Loading()).identify(tokenizer)


def check_loading_info(name: str, model: Any, loading_info: Mapping[str, Any], step: str) -> None:
    """Compares a model's files with the model that its configuration describes.

    Args:
        name: Name or path of the model.
        model: The loaded model.
        loading_info: Loading info of transformers.
        step: Next step for missing weights, for the message.

    Raises:
        UserError: Weights are missing, which transformers would initialize randomly.

    Warns:
        LonglensWarning: The model does not use all weights, such as those of layers beyond ``num_hidden_layers``.
    """
    missing, unused = (sorted(loading_info.get(key, ())) for key in ("missing_keys", "unexpected_keys"))
    if model.base_model_prefix == "language_model" or model.config.base_config_key == "text_config":
        # A multimodal model, whose other parts are not loaded.
        unused = [weight for weight in unused if not {"language_model", "text_model"}.isdisjoint(weight.split("."))]
    if missing:
        raise UserError(
            f"{name} lacks weights of {type(model).__name__}, such as {missing[0]!r} ({len(missing)} in all), which "
            f"would be initialized randomly: {step}"
        )
    if unused:
        warnings.warn(
            f"{shown(name)} has weights that {type(model).__name__} does not use, such as {shown(unused[0])} "
            f"({len(unused)} in all): if they are layers of the model, config.json belongs to another model",
            LonglensWarning,
            stacklevel=3,
        )


def resolve_device(device: str) -> torch.device:
    """The device of a model: ``auto`` is the first GPU (under torchrun, that of this process), or the CPU.

    Raises:
        UserError: The device is not available.
    """
    import torch

    if device == "auto":
        gpu = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
        return torch.device(gpu if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).cpu()  # only a computation shows whether the device works
    except (RuntimeError, AssertionError) as error:  # the latter if torch is built without it
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"`device` is {device!r}, which is not available: {reason}. Use auto, cpu or cuda") from error
    return torch.device(device)


def _wanted_dtype(loading: Loading) -> torch.dtype:
    """Dtype of the weights: ``auto`` is bfloat16 on a GPU that supports it, else float32.

    Raises:
        UserError: The dtype is not auto, ``float32``, ``bfloat16`` or ``float16``; or the device is not available.
    """
    import torch

    device = resolve_device(loading.device)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if loading.dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if loading.dtype not in known:
        raise UserError(f"`dtype` is {loading.dtype!r}; expected auto, {', '.join(known)}")
    return known[loading.dtype]
