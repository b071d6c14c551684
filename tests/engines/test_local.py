"""Engines in the process, as far as they go without the engine: what is refused, and which run is whose."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from longlens import UserError, load_scorer, rope
from longlens.runs.identity import ModelIdentity, model_differences


@pytest.mark.parametrize(
    ("engine", "name", "settings", "said"),
    [
        ("llama-cpp", "llama", {}, "runs .gguf files, but .* is a local folder: pass the file"),
        ("llama-cpp", "llama", {"tensor_parallel": 2}, "`tensor_parallel` would have no effect"),
        ("vllm", "smollm2", {}, "is a .gguf file: use `engine=llama-cpp`"),
        ("vllm", "no-weights", {}, "contains no weights"),
        ("vllm", "llama", {"device": "cpu"}, "`device` would have no effect with `engine=vllm`"),
        ("vllm", "adapter", {}, "is an adapter: merge it"),
    ],
)
def test_what_an_engine_cannot_run_is_refused_before_it_is_imported(
    models: Path, engine, name, settings, said, tmp_path
):
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": str(models / "llama")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    path = name if name == "smollm2" else str((tmp_path if name == "adapter" else models) / name)
    with pytest.raises(UserError, match=said) as caught:
        load_scorer(path, engine=engine, **settings)
    assert "\n" not in str(caught.value)


def test_vllm_starts_its_own_processes(models: Path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(UserError, match="use `tensor_parallel` instead of torchrun"):
        load_scorer(str(models / "llama"), engine="vllm")


def test_vllm_does_not_have_the_embeddings_of_longlens(models: Path, tmp_path):
    rope.extend(str(models / "llama"), rope.EABF(factor=2), tmp_path / "eabf")
    with pytest.raises(
        UserError, match="of the type 'longlens_eabf', which vLLM does not have: use `engine=transformers`"
    ):
        load_scorer(str(tmp_path / "eabf"), engine="vllm")


def test_a_run_has_one_engine_and_the_model_may_have_several():
    recorded = {"weights_sha256": "w", "config": {"a": 1}, "tokenizer_sha256": "t", "dtype": "float32"}
    there, here = ({**recorded, "engine": engine} for engine in ("", "vllm 0.32.0"))
    assert model_differences(there, here) == ["engine is 'transformers' there and 'vllm' here"]
    assert model_differences(here, {**here, "engine": "vllm 0.33.0"}) == []
    assert model_differences(recorded, here) == []  # of a version that recorded none
    one, other = ModelIdentity.read(there), ModelIdentity.read(here)
    assert one.is_same_model(other)
    assert one.sha256 == other.sha256 == replace(one, engine="").sha256
