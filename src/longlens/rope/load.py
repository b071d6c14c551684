"""Loads model folders, including those whose position method transformers does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.errors import UserError
from longlens.rope.base import CLEX_TYPE, EABF_TYPE
from longlens.rope.config import auto_class, custom_rope_type, prepare_config

if TYPE_CHECKING:
    from torch import Tensor

COPIED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
"""Files of a model's folder that belong to it."""


def load_model(path: str, *, config: Any = None, **options: Any) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` with support for EABF, CLEX and multimodal models (`auto_class`).

    Args:
        path: Folder or Hub id.
        config: Config to use instead of the folder's, such as from `extend_config`.
        **options: Options of ``from_pretrained``.

    Returns:
        The model; with ``output_loading_info=True`` a pair of it and the information.

    Raises:
        UserError: Weights of CLEX are missing, or its attention cannot be wrapped for EABF.
    """
    from transformers import AutoConfig

    from longlens.rope.model import clex_names, prepare_model

    trained = config is None
    if config is None:
        content = _config_dict(path, options)
        auto = auto_class(content.get("model_type"))
        if not any(kind in json.dumps(content) for kind in (EABF_TYPE, CLEX_TYPE)):
            return auto.from_pretrained(path, **options)
        config = AutoConfig.from_pretrained(path, trust_remote_code=options.get("trust_remote_code"))
    loaded = auto_class(config.model_type).from_pretrained(path, config=prepare_config(config), **options)
    model = loaded[0] if options.get("output_loading_info") else loaded
    weights = None
    if custom_rope_type(config) == CLEX_TYPE:
        names = clex_names(model)
        weights = _read_weights(path, names)
        if set(weights) != set(names):
            if trained or weights:
                raise UserError(f"{path} lacks weights of CLEX, {names[0]!r}: use the directory that longlens wrote")
            weights = None
        if weights and options.get("output_loading_info"):
            loaded[1]["unexpected_keys"] = set(loaded[1]["unexpected_keys"]) - set(names)
    prepare_model(model, config, weights)
    return loaded


def local_folder(path: str) -> Path:
    """The folder, or the cache folder of a Hub model, downloading its files."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=[*COPIED]))


def _config_dict(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Content of config.json; empty if transformers is to report the error, or reads another file."""
    from transformers import PreTrainedConfig

    if "gguf_file" in options:
        return {}
    try:
        content: dict[str, Any] = PreTrainedConfig.get_config_dict(path)[0]
    except (OSError, ValueError):  # such as an adapter's folder
        return {}
    return content


def _read_weights(path: str, names: list[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    found: dict[str, tuple[str, Tensor]] = {}
    for file in sorted(local_folder(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in set(names) & set(tensors.keys()):
                if name in found:
                    raise UserError(f"{path} has {name!r} in {found[name][0]} and in {file.name}: delete the older one")
                found[name] = (file.name, tensors.get_tensor(name))
    return {name: tensor for name, (_, tensor) in found.items()}
