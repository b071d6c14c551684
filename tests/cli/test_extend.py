"""`longlens extend`: folders that every command takes, settings that do nothing refused, nothing left behind."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers

from longlens.rope import CLEX, EABF, NTK, DynamicNTK, Llama3, LongRoPE, PositionInterpolation, YaRN
from longlens.rope.settings import parse_method
from longlens.scoring.reader import open_scores
from tests.cli.conftest import TEXT

FACTORS = {"short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0]}
METHODS = {
    "pi": (["--factor", 4], PositionInterpolation(factor=4)),
    "ntk": (["--factor", 4], NTK(factor=4)),
    "dynamic-ntk": (["--factor", 4], DynamicNTK(factor=4)),
    "yarn": (["--factor", 4, "--beta-fast", 16, "--beta-slow", 2], YaRN(factor=4, beta_fast=16, beta_slow=2)),
    "longrope": (
        ["--factor", 4, "--factors", "factors.json", "--attention-factor", 1.5],
        LongRoPE(
            factor=4,
            short_factors=FACTORS["short_factor"],
            long_factors=FACTORS["long_factor"],
            attention_factor=1.5,
        ),
    ),
    "llama3": (
        ["--factor", 4, "--low-freq-factor", 2, "--high-freq-factor", 8],
        Llama3(factor=4, low_freq_factor=2, high_freq_factor=8),
    ),
    "eabf": (
        ["--factor", 4, "--theta", 1e6, "--first-layer", 2, "--original-length", 1024],
        EABF(factor=4, theta=1e6, first_layer=2, original_length=1024),
    ),
    "clex": (["--factor", 4, "--width", 2, "--step", 0.1], CLEX(max_factor=4, width=2, step=0.1)),
}


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def folder(work):
    (work / "factors.json").write_text(json.dumps(FACTORS))
    return work


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_of_every_method_is_made_and_scored(method, folder, run):
    options, wanted = METHODS[method]
    made = run.json("extend", "llama", "--method", method, *options, "-o", "out")
    assert list(made) == ["schema_version", "out", "method", "before", "after", "notes"]
    assert (made["out"], made["method"]) == ("out", method)
    assert made["before"] == {"rope_theta": 10000.0, "rope_type": "default", "max_position_embeddings": 4096}
    config = transformers.AutoConfig.from_pretrained("out")
    assert made["after"] == config.rope_parameters | {"max_position_embeddings": config.max_position_embeddings}
    length = {"dynamic-ntk": 4096, "eabf": 4096}.get(method, 16384)
    assert config.max_position_embeddings == length
    pairs = zip(options[::2], options[1::2], strict=True)
    parsed = {option.removeprefix("--").replace("-", "_"): value for option, value in pairs}
    if "factors" in parsed:
        parsed["factors"] = folder / "factors.json"
    assert parse_method(method, parsed) == wanted

    scored = run("score", "a.txt", "--model", "out", "--context", 32, "--stride", 16, "-o", "scores")
    assert scored.code == 0, scored.err
    plain = run("score", "a.txt", "--model", "llama", "--context", 32, "--stride", 16, "-o", "plain")
    assert plain.code == 0
    ours, theirs = (open_scores(name)[0].long_logprobs for name in ("scores", "plain"))
    assert len(ours) == len(TEXT)
    assert np.isfinite(ours).all()
    unchanged = method in ("dynamic-ntk", "clex")  # up to the original length
    assert np.allclose(ours, theirs, atol=1e-4) == unchanged


def test_what_changed_is_printed(work, run):
    ended = run("extend", "llama", "--method", "eabf", "--factor", 8, "-o", "out")
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines == [
        ["setting", "before", "after"],
        ["rope_theta", "10,000", "500,000"],
        ["rope_type", "default", "longlens_eabf"],
        ["max_position_embeddings", "4,096", "32,768"],
        ["original_max_position_embeddings", "-", "4,096"],
        ["first_layer", "-", "0"],
    ]
    assert ended.err == (
        "note: transformers without longlens rejects this directory (rope_type 'longlens_eabf')\n"
        "next: longlens score DOCS --model out -o SCORES\n"
    )


@pytest.mark.parametrize(
    ("method", "options", "note"),
    [
        ("dynamic-ntk", ["--factor", 4], "max_position_embeddings stays 4,096: longer documents need longlens"),
        ("ntk", ["--theta", 1e6], "max_position_embeddings stays 4,096: longer documents need longlens score --ext"),
        ("clex", ["--factor", 4], "CLEX starts on the ntk-aware trajectory and must be trained"),
    ],
)
def test_notes(method, options, note, work, run):
    notes = run.json("extend", "llama", "--method", method, *options, "-o", "out")["notes"]
    assert notes[-1].startswith(note)


def test_layers_with_a_window_are_told(work, run):
    from tests.tiny import tiny_model

    tiny_model("mistral-sliding").save_pretrained("mistral")
    notes = run.json("extend", "mistral", "--method", "pi", "--factor", 4, "-o", "out")["notes"]
    assert notes == ["layers with a sliding window still attend to 24 tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "abf"], "--method is 'abf'; expected one of pi, ntk, dynamic-ntk, yarn, longrope, llama3, eabf,"),
        (["--method", "pi"], "--method pi needs --factor; its settings are --factor, --original-length"),
        (["--method", "eabf"], "--method eabf needs --factor; its settings are --factor, --theta, --first-layer, "),
        (["--method", "clex"], "--method clex needs --factor; its settings are --factor, --original-length, --width"),
        (["--method", "ntk"], "NTK needs a factor (factor=8), a base (theta=8e6), or both"),
        (["--method", "longrope", "--factor", 4], "--method longrope needs --factors; its settings are "),
        (
            ["--method", "pi", "--factor", 4, "--theta", 1e6],
            "--theta is not a setting of --method pi, which has --factor, --original-length: leave it out",
        ),
        (["--method", "yarn", "--factor", 4, "--first-layer", 2], "--first-layer is not a setting of --method yarn, "),
        (
            ["--method", "eabf", "--factor", 4, "--factors", "x"],
            "--factors is not a setting of --method eabf, which has",
        ),
        (["--method", "pi", "--factor", 1], "--factor is 1.0; expected more than 1, such as 8 to go from 4,096 tokens"),
        (["--method", "clex", "--factor", 2.5], "--factor is 2.5; expected an integer of at least 2"),
        (
            ["--method", "pi", "--factor", 1.0001],
            "--factor 1.0001 times 4096 tokens is 4096.41; expected an integer",
        ),
        (["--method", "pi", "--factor", "x"], "Invalid value for '--factor': "),
        (["--method", "longrope", "--factor", 4, "--factors", "nosuch"], "cannot read 'nosuch': "),
        (["--method", "longrope", "--factor", 4, "--factors", "a.txt"], "a.txt is broken (not JSON: "),
        (
            ["--method", "longrope", "--factor", 4, "--factors", "list"],
            "list is broken (no JSON object): --factors: ",
        ),
        (["--method", "longrope", "--factor", 4, "--factors", "short"], "`long_factors` has 3 values; expected 4, one"),
        (["--method", "pi", "--factor", 4, "-o", "llama"], "llama exists: use a new folder for the extended model"),
        (["--method", "pi", "--factor", 4, "-o", "a.txt"], "a.txt exists: use a new folder for the extended model"),
        (["--method", "pi", "--factor", 4, "-o", "no/out"], "no is not a folder: create it first"),
        (["--method", "pi", "--factor", 4, "-o", "x" * 300], f"cannot write {'x' * 300}: File name too long"),
        (["--nosuch"], "No such option: --nosuch"),
    ],
)
def test_settings(arguments, message, folder, run):
    (folder / "list").write_text("[1]")
    (folder / "short").write_text(json.dumps(FACTORS | {"long_factor": [1, 2, 3]}))
    before = everything(folder)
    assert run("extend", "llama", "-o", "out", *arguments).error.startswith(f"error: {message}")
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nosuch", "no such model: './nosuch' is neither a folder, a .gguf file nor a Hub id (owner/name)"),
        (
            "nothing",
            "the folder 'nothing' contains no model (no config.json): expected a directory written by save_pretrained",
        ),
        ("pickled", "pickled has no weights in safetensors, and longlens does not copy pickles: convert them first"),
        ("gpt2", "gpt2 has no rotary position embedding (RoPE), which these methods modify: use a model"),
        (
            "extended",
            "llama is already extended (rope_type 'linear' with factor 2): yarn must be applied to its base model",
        ),
    ],
)
def test_models(model, message, work, run):
    from tests.tiny import tiny_model

    tiny_model("gpt2").save_pretrained("gpt2")
    assert run("extend", "llama", "--method", "pi", "--factor", 2, "-o", "extended").code == 0
    before = everything(work)
    assert run("extend", model, "--method", "yarn", "--factor", 4, "-o", "out").error.startswith(f"error: {message}")
    assert everything(work) == before


def test_an_adapter_is_scored_and_not_extended(work, run):
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained("llama")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, settings).save_pretrained("adapter")
    transformers.AutoTokenizer.from_pretrained("llama").save_pretrained("adapter")
    for model in ("llama", "adapter"):
        assert run("score", "a.txt", "--model", model, "--context", 8, "--stride", 8, "-o", f"of-{model}").code == 0
    one, other = (open_scores(f"of-{model}")[0].long_logprobs for model in ("llama", "adapter"))
    assert not np.allclose(one, other, equal_nan=True)
    refused = run("extend", "adapter", "--method", "pi", "--factor", 2, "-o", "out").error
    assert refused.startswith("error: adapter is an adapter: extend its base model, or merge both")


def edited(model, values):
    """A copy of a model's folder, ``edited``, with other values in its config.json."""
    shutil.copytree(model, "edited")
    config = Path("edited/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.mark.parametrize(
    "values",
    [{"vocab_size": -1}, {"vocab_size": 10**30}, {"head_dim": 0}, {"hidden_act": "x"}, {"num_key_value_heads": 0}],
)
def test_a_shape_that_cannot_be_built_is_one_line(values, work, run):
    edited("llama", values)
    said = run("extend", "edited", "--method", "pi", "--factor", 2, "-o", "out").error
    assert said.endswith(": check its config.json")
    assert len(said) < 600


def test_a_window_that_is_no_number_is_not_told_of(work, run):
    edited("llama", {"sliding_window": "x"})
    assert run("extend", "edited", "--method", "pi", "--factor", 2, "-o", "out").code == 0


def test_a_full_disk(work, run, monkeypatch):
    before = everything(work)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr("shutil.copyfile", full)
    error = run("extend", "llama", "--method", "pi", "--factor", 4, "-o", "out").error
    assert error == "error: cannot write out: No space left on device: make room"
    assert everything(work) == before


def test_an_option_for_every_setting_of_every_method():
    import dataclasses
    import inspect

    from longlens.cli.command import expanded
    from longlens.cli.commands.extend import extend
    from longlens.rope.methods import METHODS as KINDS
    from longlens.rope.settings import SETTINGS

    fields = {field.name for kind in KINDS.values() for field in dataclasses.fields(kind)}
    assert fields - {"short_factors", "long_factors", "max_factor"} == set(SETTINGS)
    assert set(SETTINGS) < inspect.signature(expanded(extend)).parameters.keys()
