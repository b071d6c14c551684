"""What several folders of tests share: tiny models on disk, made once a session."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

collect_ignore = ["plugin_package"]  # a package of its own, which tests/cli/test_add_your_own.py installs

# Tiny models are computed in one thread sooner than in several; set before anything imports torch, here or in a child.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As the command line sets them, which is too late where transformers is imported already.
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders: `llama` can be scored with, the others are each wrong in one way.

    `other` is a second model with the same tokenizer; `headless` lacks its vocabulary head, `bert` is no language
    model and `bert-lm` one that is not causal; `pickled` has .bin weights, `custom` code of its own (which would leave
    a file `RAN` beside it), `nothing` contains no model and `no-weights` none of its weights.
    """
    import torch
    from transformers import BertConfig, BertLMHeadModel, BertModel, LlamaModel

    from tests.tiny import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("models")
    llama = tiny_model("llama")
    torch.manual_seed(1)
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertConfig(**small, intermediate_size=48)
    made = {
        "llama": llama,
        "other": tiny_model("llama", num_hidden_layers=2),
        "headless": LlamaModel(llama.config),
        "bert": BertModel(bert),
        "bert-lm": BertLMHeadModel(bert),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    for name in ("pickled", "custom", "no-weights"):
        shutil.copytree(folder / "llama", folder / name)
    for name in ("pickled", "no-weights"):
        (folder / name / "model.safetensors").unlink()
    torch.save(llama.state_dict(), folder / "pickled" / "pytorch_model.bin")
    config = json.loads((folder / "custom" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "custom" / "config.json").write_text(json.dumps(config))
    (folder / "custom" / "mine.py").write_text(
        f"import pathlib\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"pathlib.Path({str(folder / 'RAN')!r}).touch()\n"
        "class C(LlamaConfig):\n    model_type = 'mine'\nclass M(LlamaForCausalLM):\n    config_class = C\n"
    )
    (folder / "nothing").mkdir()
    (folder / "nothing" / "notes.txt").write_text("no model")
    return folder
