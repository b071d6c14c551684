"""Identifies the model of a run. Does not import torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from longlens.errors import shown_value

_NAMES = (
    "_name_or_path name_or_path transformers_version architectures auto_map custom_pipelines _commit_hash "
    "base_model_name_or_path revision peft_version auto_mapping longlens_requires"
)
_WAYS_TO_RUN = (
    "dtype torch_dtype use_cache return_dict output_attentions output_hidden_states chunk_size_feed_forward "
    "pretraining_tp inference_mode runtime_config _attn_implementation _attn_implementation_internal "
    "attn_implementation _experts_implementation experts_implementation distributed_config "
    "quantization_config"
)
_OTHER_USES = (
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id id2label label2id problem_type "
    "initializer_range init_lora_weights task_type"
)
NOT_FUNCTION = frozenset(f"{_NAMES} {_WAYS_TO_RUN} {_OTHER_USES}".split())
"""Keys of a configuration, at any depth, that do not change the function that a model computes."""
PROBE = "probe"
"""Key of a server's `config`: log-probabilities of a fixed text, which distinguish weights with the same name."""
PROBE_NATS = 0.1
"""Maximum mean difference between two probes of the same weights; in bfloat16 it is about 0.03."""
MAX_DIFFERENCES = 4
_ROUNDING = ("dtype", "engine")
"""Fields that change a model's numbers slightly but not its identity."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Identity of a model.

    A server has no weights and is identified by the facts that it reports, its `config`. Runs of schema version 1
    recorded no `config`; it is compared only if both identities have it.

    Attributes:
        weights_sha256: Hash of the weights, adapters and their base included; None if there are none here.
        config: The configuration in force, see `functional_config`; None if it is unknown.
        tokenizer_sha256: Hash of the tokenizer.
        bos_token_id: The tokenizer's BOS; None if it has none.
        own_prefix: Ids that the tokenizer adds before a text.
        cache: Policy of the KV cache; None if it keeps everything.
        dtype: Dtype of the weights.
        engine: Engine and its version, such as ``vllm 0.32.0``; empty for transformers. The version is not compared.
    """

    weights_sha256: str | None = None
    config: Mapping[str, Any] | None = None
    tokenizer_sha256: str | None = None
    bos_token_id: int | None = None
    own_prefix: tuple[int, ...] = ()
    cache: str | None = None
    dtype: str | None = None
    engine: str = ""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> ModelIdentity:
        """Reads the ``model`` of a manifest, or any record that contains the fields of `to_json`."""
        known = {field.name: record[field.name] for field in fields(cls) if record.get(field.name) is not None}
        prefix = known.get("own_prefix", ())
        known["own_prefix"] = tuple(prefix) if isinstance(prefix, (list, tuple)) else (prefix,)
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return content | {"own_prefix": list(self.own_prefix)}

    @property
    def sha256(self) -> str | None:
        """Hash of all fields but dtype and engine, which affect only rounding; None without weights and config."""
        if self.weights_sha256 is None and self.config is None:
            return None
        content = {name: value for name, value in self.to_json().items() if name not in _ROUNDING}
        if self.config is not None:
            content["config"] = {name: value for name, value in self.config.items() if name != PROBE}
        return canonical_sha256(content)

    def is_same_model(self, other: ModelIdentity) -> bool:
        """Whether both are known to be the same model, regardless of dtype and engine."""
        is_known = self.sha256 is not None and other.sha256 is not None
        return is_known and not [name for name, _, _ in self._different_parts(other) if name not in _ROUNDING]

    def _different_parts(self, other: ModelIdentity) -> Iterator[tuple[str, Any, Any]]:
        for field in fields(self):
            one, another = getattr(self, field.name), getattr(other, field.name)
            if field.name == "engine":
                one, another = (str(engine).partition(" ")[0] or "transformers" for engine in (one, another))
            if field.name != "config":
                if one != another:
                    yield field.name, one, another
            elif one is not None and another is not None:
                flat = [dict(_flat(part, "config")) for part in (one, another)]
                if _is_one_probe(*(part.get(f"config.{PROBE}") for part in flat)):
                    flat = [{name: part for name, part in one.items() if name != f"config.{PROBE}"} for one in flat]
                for name in {**flat[0], **flat[1]}:
                    if flat[0].get(name) != flat[1].get(name):
                        yield name, flat[0].get(name), flat[1].get(name)


def model_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Differences between the model of a directory and that of this process, each as ``NAME is X there and Y here``.

    Args:
        there: The model's record in a manifest; missing parts are not compared.
        here: The record of this process.
    """
    one, other = ModelIdentity.read(there), ModelIdentity.read({n: v for n, v in here.items() if n in there})
    said = [f"{name} is {_short(a)} there and {_short(b)} here" for name, a, b in one._different_parts(other)]
    return said if len(said) <= MAX_DIFFERENCES else [*said[:MAX_DIFFERENCES], f"{len(said) - MAX_DIFFERENCES} more"]


def two_models(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, str] | None:
    """Names of two models if their records (see `model_differences`) have different weights; else None."""
    weights = [record.get("weights_sha256") for record in (there, here)]
    if None in weights or weights[0] == weights[1]:
        return None
    one, other = (str(record.get("name") or record.get("model")) for record in (there, here))
    return one, other


def _is_one_probe(one: Any, other: Any) -> bool:
    """Whether both are lists of numbers that differ only by rounding, or one of them was not recorded."""
    if one is None or other is None:
        return True
    are_lists = all(isinstance(part, list) and all(isinstance(x, int | float) for x in part) for part in (one, other))
    if not are_lists or len(one) != len(other):
        return False
    return bool(sum(abs(a - b) for a, b in zip(one, other, strict=True)) <= PROBE_NATS * len(one))


def _short(value: object) -> str:
    """A part of an identity for a message; long values, such as hashes and lists, are abbreviated in the middle."""
    text = shown_value(value)
    return text if len(text) <= 50 else f"{text[:12]}…{text[-12:]}"


def functional_config(model: Any, adapters: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The part of a model's configuration in force that determines its function, as plain JSON values.

    `NOT_FUNCTION` and values that are None or False are omitted, so that a new library version with an additional
    option that is off does not change a model's identity.

    Args:
        model: A transformers model, with ``config`` and optional PEFT adapters; or only a configuration.
        adapters: Contents of adapter_config.json, if the model is only a configuration.
    """
    config: dict[str, Any] = _plain(getattr(model, "config", model))
    described: list[Any] = list(adapters)
    if getattr(model, "peft_config", None):
        # Read from the adapted layers: transformers' own method of that name rejects some versions of peft.
        layers = (m for m in model.modules() if isinstance(getattr(type(m), "active_adapters", None), property))
        active: list[str] = next((layer.active_adapters for layer in layers), [])
        described = [model.peft_config[name] for name in sorted(active)]
    return config | ({"adapters": [_plain_adapter(adapter) for adapter in described]} if described else {})


def canonical_sha256(content: Any) -> str:
    """SHA-256 of JSON values with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        parts = {str(key): _plain(part) for key, part in value.items() if str(key) not in NOT_FUNCTION}
        return {key: part for key, part in parts.items() if part is not None and part is not False}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, float):
        # JSON has no infinity; 10000.0 and 10000 are the same value.
        return str(value) if not math.isfinite(value) else int(value) if value.is_integer() else value
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(getattr(value, "value", value))


def _plain_adapter(adapter: Any) -> dict[str, Any]:
    """An adapter's configuration in canonical order: peft stores module names as sets and writes them unordered."""
    content: dict[str, Any] = _plain(adapter)
    is_names = {key: isinstance(part, list) and all(isinstance(n, str) for n in part) for key, part in content.items()}
    return {key: sorted(part) if is_names[key] else part for key, part in content.items()}


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _flat(part, f"{prefix}.{name}")
    else:
        yield prefix, value
