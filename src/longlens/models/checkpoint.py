"""A model's files as transformers loads them: configuration, dtype, quantization, each found once, and weights."""

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
    """A model's files, and how they are loaded; what they say is read once.

    Args:
        source: Where the model is.
        loading: How; it is put on ``device`` unless there is a ``device_map``.
        config: Instead of the model's own.
    """

    def __init__(self, source: Source, loading: Loading, *, config: Any = None) -> None:
        self.source, self.loading, self._given = source, loading, config

    @cached_property
    def config(self) -> Any:
        """Of transformers.

        Raises:
            UserError: It cannot be loaded.
        """
        if self._given is not None:
            return self._given
        return load_config(self.source, trust_remote_code=self.loading.trust_remote_code)

    @cached_property
    def plan(self) -> Quantization:
        """The dtype that it is loaded in, and how it is quantized, if it is.

        Raises:
            UserError: Neither can be had here.
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
        """Which model it is, its weights not being read; None while they are not on this machine.

        Args:
            tokenizer: The model's, if it is loaded already.

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
        """The model with its weights, and what transformers says of the loading.

        Args:
            loader: A function as ``from_pretrained``; a causal language model is loaded by default.

        Raises:
            UserError: It cannot be loaded.
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
                config = vars(self).get("config", config)  # reading it takes seconds, so not again where it was
                is_exact = loader is None and self._given is None and str(self.plan.dtype) == "torch.float32"
                unkept = folder if is_exact and loading.device_map is None else None
        else:
            options["use_safetensors"] = None if loading.allow_pickle else True
        # Some methods put weights in their place and form while they are loaded, and refuse to be moved afterwards.
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
    """`Checkpoint.identify` of a model by its name.

    Args:
        name: Hub id, folder, ``.gguf`` file or embedded model.
        loading: How it is loaded.
        tokenizer: The model's, if it is loaded already.

    Raises:
        UserError: As there; no such model.
    """
    return Checkpoint(resolve(name), loading or Loading()).identify(tokenizer)


def check_loading_info(name: str, model: Any, loading_info: Mapping[str, Any], step: str) -> None:
    """Compares a model's files with the model that its configuration describes.

    Args:
        name: Name or path of the model.
        model: What was loaded.
        loading_info: What transformers says of the loading.
        step: What to do about missing weights, for the message.

    Raises:
        UserError: Weights are missing, which transformers fills with random ones.

    Warns:
        LonglensWarning: There are weights that the model does not use, as those of layers beyond ``num_hidden_layers``.
    """
    missing, unused = (sorted(loading_info.get(key, ())) for key in ("missing_keys", "unexpected_keys"))
    if model.base_model_prefix == "language_model" or model.config.base_config_key == "text_config":
        # Of a multimodal model, whose other parts are not loaded.
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
    """Where a model is put: ``auto`` is the first GPU, that of this process where torchrun started several, or the CPU.

    Raises:
        UserError: It cannot be used.
    """
    import torch

    if device == "auto":
        gpu = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
        return torch.device(gpu if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).cpu()  # only use shows whether it can be used
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"`device` is {device!r}, which is not available: {reason}. Use auto, cpu or cuda") from error
    return torch.device(device)


def _wanted_dtype(loading: Loading) -> torch.dtype:
    """Type of the weights: ``auto`` is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: Neither that nor one of ``float32``, ``bfloat16`` and ``float16``; or no such device.
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
