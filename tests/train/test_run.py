"""Training runs: what they compute and leave, how they resume, and what they refuse before they write."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

import longlens
from longlens.data.mixture import pack_folder
from longlens.data.packing import BestFit, packing_of
from longlens.data.weigh import weigh_folder
from longlens.errors import LonglensWarning, UserError
from longlens.losses.longce import weighted_nll
from longlens.models import load_scorer
from longlens.progress import Progress
from longlens.rope import load_model
from longlens.scoring.reader import open_scores
from longlens.train.folder import WHOLE, RunFolder, read_log
from longlens.train.recipe import parse_recipe, read_recipe
from longlens.train.rows import load_rows, prepare_rows
from longlens.train.run import run, run_file
from longlens.train.setup import load_for_training, plan_config
from tests.tiny import byte_tokenizer, tiny_model

BASE = {
    "model": "llama",
    "data": {"documents": ["a.txt"], "length": 32, "packing": "fill"},
    "loss": {"longce": {"context": 8, "stride": 4, "gamma": 1.5}},
    "training": {"steps": 5, "batch_size": 2, "learning_rate": 1e-3, "save_every": 2, "arguments": {"use_cpu": True}},
}
EVALUATION = {"documents": ["b.txt"], "every": 2, "max_length": 60}
EVALUATION |= {"evaluator": {"model": "other", "context": 16, "stride": 8, "alpha": 0.1, "beta": -9}}


def recipe(**changes):
    """`BASE` with other sections, or other keys in one of them."""
    content = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        merged = isinstance(value, dict) and key in ("training", "data") and "packed" not in value
        content[key] = {**content[key], **value} if merged and "chat" not in value else value
    return parse_recipe(content, "recipe")


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in Path(folder).rglob("*") if path.name != ".lock"}


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="session")
def dropping(tmp_path_factory):
    """A model that draws random numbers in training."""
    folder = tmp_path_factory.mktemp("dropping")
    tiny_model("llama", attention_dropout=0.3, num_hidden_layers=2).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def fill(folder, models, dropping):
    """Texts and links to models."""
    for name in ("llama", "other", "headless", "bert"):
        (folder / name).symlink_to(models / name)
    (folder / "dropping").symlink_to(dropping)
    (folder / "a.txt").write_text(" ".join(f"w{i * 7 % 53}" for i in range(90)))
    (folder / "b.txt").write_text(" ".join(f"v{i * 5 % 13}" for i in range(40)))
    return folder


@pytest.fixture
def place(tmp_path, models, dropping, monkeypatch):
    """The current folder, filled."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(fill(folder, models, dropping))
    return folder


def test_a_run_and_what_it_leaves(place, caplog):
    start = load_file(place / "llama" / "model.safetensors")
    result = run(recipe(evaluation=EVALUATION), "out")
    assert result == json.loads(Path("out/result.json").read_text())
    log = read_log(Path("out/log.jsonl"))
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in log if "eval_longppl" in line] == [0, 2, 4, 5]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5]
    assert (result["steps"], result["loss"]) == (5, {"first": log[1]["loss"], "last": log[5]["loss"]})
    assert result["evaluation"]["first"]["loss"] > result["evaluation"]["last"]["loss"]
    assert [path.name for path in Path("out/checkpoints").iterdir()] == ["checkpoint-5"]
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert {"weights_sha256", "tokenizer_sha256", "rows_sha256", "processes"} <= manifest["run"].keys()
    assert not same(start, weights("out"))
    model = transformers.AutoModelForCausalLM.from_pretrained("out/model")
    assert same(dict(model.state_dict()), dict(load_model("out/model").state_dict()))
    assert model.config.use_cache
    assert transformers.AutoTokenizer.from_pretrained("out/model")("ab")["input_ids"]

    # LongPPL of the log is that of the trained model, scored as every model is.
    cut = [longlens.Document(id=row.id, text=row.text) for row in open_scores("out/evaluation/scores")]
    scores = longlens.score(cut, load_scorer("out/model"), context=None)
    found = longlens.perplexity(scores, keys=longlens.read_keys("out/evaluation/keys.jsonl"))
    assert found.longppl == pytest.approx(result["evaluation"]["last"]["longppl"], rel=1e-5)
    assert found.num_key_tokens == result["evaluation"]["last"]["num_key_tokens"] > 3

    before = everything("out")
    with caplog.at_level("INFO", logger="longlens"):
        assert run(recipe(evaluation=EVALUATION), "out") == result
    assert caplog.messages[-1] == "out: done already, nothing was changed"
    assert everything("out") == before


@pytest.mark.parametrize("loss", ["ce", BASE["loss"], {"chunked-longce": {"context": 8, "stride": 8}}])
def test_the_first_loss_is_that_of_the_rows(place, loss):
    made = recipe(loss=loss, training={"steps": 1, "batch_size": 11, "per_device_batch_size": 1})
    result = run(made, "out")
    rows = load_rows(Path("out/data"), place / "cache", made)
    model = load_model("llama")
    total = number = 0
    for row in rows:
        ids, labels, positions = (torch.tensor([row[name]]) for name in ("input_ids", "labels", "position_ids"))
        found = weighted_nll(model, ids, labels, longce=made.loss, position_ids=positions)
        total, number = total + found.total.item(), number + len(found.weights)
    assert len(rows) == 11, "one batch holds all rows, so that their order does not matter"
    assert result["loss"]["first"] == pytest.approx(total / number, rel=1e-5)


# Rows are passed over more than once, dropout draws numbers, and a batch is accumulated.
HARD = recipe(
    model="dropping",
    evaluation=EVALUATION,
    training={"steps": None, "epochs": 1.5, "batch_size": 4, "per_device_batch_size": 2, "save_every": 1},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, models, dropping):
    """Log, weights and checkpoints of a run of `HARD` that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(fill(folder, models, dropping))
        run(HARD, "out")
        return (
            read_log(Path("out/log.jsonl")),
            weights("out"),
            [path.name for path in Path("out/checkpoints").iterdir()],
        )


class Killed(BaseException):
    """Stands for a kill: nothing of longlens or transformers catches it."""


def killed_at(monkeypatch, target, name, number):
    """The process dies in the n-th call of a function, before it does anything."""
    original, calls = getattr(target, name), []

    def dying(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(target, name, dying)


@pytest.mark.parametrize(
    ("target", "name", "number"),
    [
        (transformers.Trainer, "training_step", 6),
        (transformers.Trainer, "save_model", 2),
        (transformers.Trainer, "_save_rng_state", 2),
        (RunFolder, "commit_checkpoint", 2),
        (RunFolder, "add_to_log", 4),
        (transformers.PreTrainedModel, "save_pretrained", 4),
        (RunFolder, "finish", 1),
    ],
)
def test_a_run_that_died_goes_on_to_the_same_losses(place, whole, monkeypatch, target, name, number):
    with monkeypatch.context() as patch:
        killed_at(patch, target, name, number)
        with pytest.raises(Killed):
            run(HARD, "out")
    run(HARD, "out")
    log, trained, checkpoints = whole
    assert read_log(Path("out/log.jsonl")) == log
    assert same(weights("out"), trained)
    assert not [path for path in Path("out").rglob("*") if ".tmp" in path.name]
    assert [path.name for path in Path("out/checkpoints").iterdir()] == checkpoints


KILL = """
import os, signal, sys, torch
from longlens.train.recipe import read_recipe
from longlens.train.run import run_file
original, calls = torch.save, []
def dying(content, file, **options):
    calls.append(file)
    if len(calls) == 6:  # the optimizer of the second checkpoint
        open(file, "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    original(content, file, **options)
torch.save = dying
run_file(read_recipe("r.yaml"), "out")
"""


def test_a_kill_while_a_checkpoint_is_written(place):
    (place / "r.yaml").write_text(json.dumps(BASE))
    ended = subprocess.run([sys.executable, "-c", KILL], capture_output=True, text=True, timeout=300)
    assert ended.returncode == -9, ended.stderr[-2000:]
    whole = {path.name for path in Path("out/checkpoints").iterdir() if (path / WHOLE).exists()}
    assert whole == {"checkpoint-2"} < {path.name for path in Path("out/checkpoints").iterdir()}
    run(recipe(), "out")
    run(recipe(), "whole")
    assert read_log(Path("out/log.jsonl")) == read_log(Path("whole/log.jsonl"))
    assert same(weights("out"), weights("whole"))


def died(made, monkeypatch, step=4):
    """A run that died in this step."""
    with monkeypatch.context() as patch:
        killed_at(patch, transformers.Trainer, "training_step", 2 * step - 1)
        with pytest.raises(Killed):
            run(made, "out")


def test_a_configuration_that_was_edited_is_another_run(place, monkeypatch):
    """Its weights are the same; and a run of an older longlens, which recorded none, goes on with a warning."""
    copy = place / "copy"
    shutil.copytree(place / "llama", copy)
    made = recipe(model="copy")
    died(made, monkeypatch)
    config, manifest = (json.loads(path.read_text()) for path in (copy / "config.json", Path("out/manifest.json")))
    edited = config | {"rope_parameters": {**config["rope_parameters"], "rope_theta": 20000.0}}
    (copy / "config.json").write_text(json.dumps(edited))
    with pytest.raises(
        UserError, match=r"out contains a different run: config\.rope_parameters\.rope_theta is 10000 there and"
    ):
        run(made, "out")
    (copy / "config.json").write_text(json.dumps(config))
    shutil.copytree("out", "old")
    parts = ("model", "weights_sha256", "tokenizer_sha256", "rows_sha256", "processes")
    old = manifest | {"schema_version": 1, "run": {name: manifest["run"][name] for name in parts}}
    Path("old/manifest.json").write_text(json.dumps(old))
    shutil.rmtree("old/checkpoints")  # they name a run with a configuration
    with pytest.warns(LonglensWarning, match="was written by an older longlens without the model's configuration"):
        run(made, "old")
    run(made, "out")


def test_what_is_not_of_this_run_is_refused(place, monkeypatch):
    made = recipe()
    died(made, monkeypatch)
    before = everything("out")
    with pytest.raises(
        UserError, match=r"out contains a different run: training.seed is 0 there and 1 here\. Use another"
    ):
        run(recipe(training={"seed": 1}), "out")
    other = recipe(loss="ce")
    with pytest.raises(
        UserError, match=r"out contains a different run: loss.longce.context is 8 there and None here; "
    ):
        run(other, "out")
    (place / "llama").unlink()
    (place / "llama").symlink_to(place / "dropping")
    with pytest.raises(
        UserError, match=r"out contains a different run: weights_sha256 is '\w+' there and .* here; config"
    ):
        run(made, "out")
    assert everything("out") == before
    (place / "llama").unlink()
    (place / "llama").symlink_to((place / "other").resolve())
    run(made, "other-out")
    (place / "llama").unlink()
    (place / "llama").symlink_to((place / "other").resolve().parent / "llama")
    shutil.copytree("other-out/checkpoints/checkpoint-5", "out/checkpoints/checkpoint-5")
    with pytest.raises(UserError, match="checkpoint-5 is a checkpoint of another run: remove it from out/checkpoints"):
        run(made, "out")


def test_key_tokens_of_another_evaluator_under_its_name_are_refused(place, monkeypatch):
    made = recipe(evaluation=EVALUATION)
    died(made, monkeypatch)
    (place / "other").unlink()
    (place / "other").symlink_to(place / "dropping")
    with pytest.raises(UserError, match=r"out/evaluation/keys.jsonl was selected by another model than other is now"):
        run(made, "out")


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_folder_that_is_deleted_in_mid_run_is_not_made_anew(place, step):
    class Deleting(Progress):
        def update(self, done, *, note=""):
            if done == step:
                shutil.rmtree("out")

    with pytest.raises(UserError, match=r"^out was deleted or moved while this process"):
        run(recipe(), "out", progress=Deleting())
    assert not [path for path in Path("out").rglob("*") if path.is_file()]


def flipped(path):
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 3, len(content) // 3 + 40):
        content[at] ^= 0xFF
    path.write_bytes(bytes(content))


DAMAGE = {
    "optimizer.pt": lambda path: path.write_bytes(b"half"),
    "scheduler.pt": flipped,
    "rng_state.pth": lambda path: path.unlink(),
    "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "trainer_state.json": lambda path: path.write_text("{}"),
    "config.json": lambda path: path.write_text('{"model_type": "llama"}'),
    "longlens.json": lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_with_the_cure(place, monkeypatch, name):
    made = recipe(training={"keep": 2, "save_every": 1})
    died(made, monkeypatch)
    newest = Path("out/checkpoints/checkpoint-3")
    DAMAGE[name](newest / name)
    with pytest.raises(UserError) as refused:
        run(made, "out")
    assert str(refused.value).startswith(f"{newest / name} is ")
    assert str(refused.value).endswith(
        f": delete {newest}, and run the same command again, it resumes from checkpoint-2"
    )
    shutil.rmtree(newest)
    assert run(made, "out")["steps"] == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl", '{"step": 1, "loss": 3}\n{"st\n', "log.jsonl:2' is broken ("),
        ("log.jsonl", "[3]\n", "'out/log.jsonl:1' is a JSON list, expected an object with \"step\""),
        ("log.jsonl", '{"loss": 3}\n', "'out/log.jsonl:1' has no number as \"step\": delete the line; nothing but"),
        (
            "manifest.json",
            '{"schema_version": 2, "run": 3, "versions": {}}',
            "out/manifest.json does not describe a run (no key `run`): use ",
        ),
        ("recipe.yaml", b"\xff\xfe", "out/recipe.yaml is "),
        ("recipe.yaml", "3", "out contains a different run: "),
        ("result.json", "{}", "out/result.json is broken (it has no evaluation): delete out/result.json, and run the"),
        ("checkpoints/checkpoint-2/trainer_state.json", '{"global_step": 2}', "trainer_state.json is broken (no glo"),
        ("data/data/train-00000.parquet", flipped, "out/data"),
        ("data/data/train-00000.parquet", b"half", "out/data"),
    ],
)
def test_a_damaged_run_folder_is_one_line(place, monkeypatch, name, content, message):
    died(recipe(), monkeypatch)
    marker = Path("out/checkpoints/checkpoint-2") / WHOLE
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "files": {}}))  # as without hashes
    path = Path("out") / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.rmtree("out/cache", ignore_errors=True)
    with pytest.raises(UserError) as refused:
        run(recipe(), "out")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_versions_are_said(place, monkeypatch):
    died(recipe(), monkeypatch)
    manifest = json.loads(Path("out/manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    Path("out/manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(LonglensWarning, match=r"out was started with other versions \(torch 1.0 -> "):
        run(recipe(), "out")


def test_one_writer(place):
    message = "another process is training in out: wait for it, or use another directory"
    with RunFolder(Path("out"), recipe().resolved()), pytest.raises(UserError, match=message):
        run(recipe(), "out")
    assert not Path("out/model").exists()


def test_a_folder_that_holds_something_else(place):
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="full is not empty and contains no run"):
        run(recipe(), "full")
    with pytest.raises(UserError, match=r"a\.txt is a file; expected a directory for the run"):
        run(recipe(), "a.txt")
    assert [path.name for path in Path("full").iterdir()] == ["notes.txt"]


def gpt2(place):
    tiny_model("gpt2").save_pretrained(place / "gpt2")
    byte_tokenizer().save_pretrained(place / "gpt2")


WRONG = [
    ({"extend": {"method": "pi", "factor": 8}, "model": "gpt2"}, "gpt2 has no rotary position embedding (RoPE), which"),
    ({"after": {"method": "ntk", "theta": 1e3}}, "`theta` is 1000; the model's base is 10000 already; a larg"),
    ({"model": "nosuch.gguf"}, "no such model: 'nosuch.gguf' is neither a folder, a .gguf file nor a Hub id (owner/na"),
    ({"load": {"full_attention": True}}, "load.full_attention: llama has no sliding window to turn off: leave it out"),
    ({"data": {"documents": ["empty.txt"]}}, "'empty.txt' is empty: exclude it, or add text to it"),
    ({"data": {"documents": ["nosuch.txt"]}}, "no such file or folder: 'nosuch.txt'; a dataset on the Hub is written"),
    ({"data": {"packed": "llama"}}, "llama has no rows of longlens data mix or longlens data pack: make them, or se"),
    (
        {"data": {"mixture": "pg19", "documents": None, "length": 64, "packing": None}},
        "recipe: data: unknown key 'packing'",
    ),
    ({"training": {"report_to": ["wandbb"]}}, "training.report_to is 'wandbb' (nearest: 'wandb'); expected one of "),
    ({"training": {"report_to": ["comet_ml"]}}, "training.report_to has 'comet_ml', which is not installed: pip insta"),
    ({"training": {"arguments": {"optm": "sgd"}}}, "training.arguments has 'optm', which TrainingArguments of transfo"),
    *(
        ({"training": {"arguments": {name: value}}}, f"training.arguments has '{name}', which a recipe cannot set (")
        for name, value in {
            "max_steps": 3,
            "save_only_model": True,
            "torch_compile": True,
            "label_smoothing_factor": 0.1,
            "do_train": True,
            "metric_for_best_model": "eval_longppl",
            "accelerator_config": {"split_batches": True},
            "gradient_checkpointing": True,
        }.items()
    ),
    *(
        ({"training": {"arguments": {name: value}}}, f"training.arguments has {name}, which has no effect without ")
        for name, value in {"hub_model_id": "a/b", "eval_delay": 3, "project": "p"}.items()
    ),
    ({"training": {"arguments": {"deepspeed": {}}}}, "training.arguments.deepspeed is {}, which has no effect: leave "),
    (
        {"training": {"arguments": {"fsdp": True}}},
        "training.arguments.fsdp spreads the model over processes, and this ",
    ),
    (
        {"training": {"arguments": {"fsdp_config": {}}}},
        "training.arguments has fsdp_config, which has no effect witho",
    ),
    ({"training": {"sharding": "zero3"}}, "training.sharding spreads the model over processes, and this is one: start"),
    ({"training": {"arguments": {"optim": "sgd"}}}, "training.arguments.optim is 'sgd', and training.betas are of Ada"),
    *(
        ({"training": {"arguments": {name: value}}}, f"training.arguments.{name} is ")
        for name, value in {
            "adam_epsilon": "x",
            "optim_args": 3,
            "neftune_noise_alpha": [1],
            "ddp_timeout": "x",
        }.items()
    ),
    (
        {"training": {"arguments": {"train_sampling_strategy": "x"}}},
        "training.arguments.train_sampling_strategy is 'x'",
    ),
    # What transformers, accelerate or a scheduler raise on a value is one line.
    *(
        ({"training": {"arguments": {name: value}}}, "training: ")
        for name, value in {
            "dataloader_prefetch_factor": 3,
            "debug": "nosuch",
            "log_level": "nosuch",
            "optim_args": "nosuch",
            "optim": "grokadamw",
        }.items()
    ),
    (
        {"training": {"arguments": {"optim": "nosuch"}}},
        "training: nosuch is not a valid OptimizerNames, please select ",
    ),
    ({"loss": {"offline": {}}}, "loss is offline, and out/data has neither token_weights nor short_logprobs: see long"),
    ({"model": "headless"}, "headless lacks weights of LlamaForCausalLM, such as 'lm_head.weight' (1 in all), which w"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_refused_leaves_nothing(place, changes, message):
    gpt2(place)
    (place / "empty.txt").touch()
    before = everything(place)
    with pytest.raises(UserError) as refused:
        run(recipe(**changes), "out")
    assert str(refused.value).startswith(message)
    if "offline" not in changes.get("loss", {}):  # rows that were made are kept for the next try
        assert everything(place) == before


def test_a_model_that_mixes_packed_documents_is_refused_before_it_is_evaluated(place):
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0)
    MambaForCausalLM(config).save_pretrained("mamba")
    byte_tokenizer().save_pretrained("mamba")
    shutil.copy("b.txt", "c.txt")
    made = recipe(model="mamba", data={"documents": ["a.txt", "c.txt"]}, evaluation=EVALUATION)
    with pytest.raises(UserError, match=r"^documents packed into a row are not separated by MambaForCausalLM"):
        run(made, "out")
    assert read_log(Path("out/log.jsonl")) == []
    run(recipe(model="mamba", data={"documents": ["a.txt"]}), "alone")  # one document per row


def test_a_source_without_a_path(place):
    content = {**BASE, "data": {"mixture": "pg19", "tokens": 1e6}}
    with pytest.raises(UserError, match=r"the source pg19 of pg19 has no path: pass `data.sources.pg19=PATH`, "):
        run(parse_recipe(content, "r"), "out")


def test_a_mixture(place):
    data = {"mixture": "pg19", "sources": {"pg19": "a.txt"}, "length": 32, "tokens": 320}
    run(parse_recipe({**BASE, "data": data}, "r"), "out")
    assert json.loads(Path("out/data/counts.json").read_text())["rows"] == 10
    assert read_log(Path("out/log.jsonl"))[-1]["step"] == 5


def test_damaged_rows_are_refused_before_training(place):
    pack_folder(["a.txt"], byte_tokenizer(), "rows", length=32, packing=BestFit())
    (shard,) = Path("rows/data").iterdir()
    whole = bytearray(shard.read_bytes())
    whole[60] ^= 255
    shard.write_bytes(whole)
    with pytest.raises(UserError, match=r"rows/data/train-00000\.parquet is broken: .*: delete rows/data and run the"):
        run(recipe(data={"packed": "rows"}), "out")
    assert not Path("out").exists()
    for damaged in (b"PAR1", bytes(whole[: len(whole) // 2])):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot read the rows of rows: .*: delete it, and run"):
            load_rows(Path("rows"), place / "cache", recipe(data={"packed": "rows"}))


@pytest.mark.parametrize("packing", ["fill", "best-fit"])
def test_documents_are_packed_as_data_pack_does(place, packing):
    prepare_rows(recipe(data={"packing": packing}), byte_tokenizer(), Path("rows"))
    counts = pack_folder(["a.txt"], byte_tokenizer(), "packed", length=32, packing=packing_of(packing))
    assert json.loads(Path("rows/counts.json").read_text()) == counts
    assert counts["row_tokens"] == counts["tokens"]
    assert counts["tokens"] % 32


def test_packed_rows_are_used_where_they_are(place):
    made = recipe(data={"packed": "rows"})
    pack_folder(["a.txt"], byte_tokenizer(), "rows", length=32, packing=BestFit())
    run(made, "out")
    assert not Path("out/data").exists()
    with pytest.raises(UserError, match=r"the context K of the loss is 32 and rows have 32 tokens, so no token"):
        run(recipe(data={"packed": "rows"}, loss={"longce": {"context": 32, "stride": 4}}), "other-out")
    assert not Path("other-out").exists()


def test_offline_weights(place):
    scores = longlens.score(
        longlens.read_documents(["b.txt"]), load_scorer("llama"), context=8, stride=4, out=place / "scores"
    )
    weigh_folder(["b.txt"], scores, "weighed")
    pack_folder(["weighed"], byte_tokenizer(), "rows", length=512, packing=BestFit())
    offline = recipe(data={"packed": "rows"}, loss={"offline": {}}, training={"steps": 1, "batch_size": 1})
    result = run(offline, "out")
    live = recipe(data={"packed": "rows"}, training={"steps": 1, "batch_size": 1})
    with pytest.raises(UserError, match=r"rows has token_weights, which would replace the short-context pass"):
        run(live, "live")
    assert result["loss"]["first"] != run(recipe(**{"data": {"packed": "rows"}, "loss": "ce"}), "ce")["loss"]["first"]
    # gamma of the recipe counts: the weights reach up to 5, and a smaller gamma reduces them.
    content = {"data": {"packed": "rows"}, "training": {"steps": 1, "batch_size": 1}}
    with pytest.warns(LonglensWarning, match="larger weights are clipped to gamma"):
        capped = run(recipe(**content, loss={"offline": {"gamma": 1.0}}), "capped")
    assert capped["loss"]["first"] < result["loss"]["first"]


@pytest.mark.parametrize("pack", [True, False])
def test_conversations(place, pack):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.chat_template = template
    shutil.copytree("llama", "chatty")
    tokenizer.save_pretrained("chatty")
    turns = [[("user", "ab" * n), ("assistant", "c" * n)] for n in range(1, 9)]
    lines = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    Path("chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = {"chat": ["chat.jsonl"], "length": 100, "pack": pack}
    made = recipe(model="chatty", data=data, loss="ce", training={"steps": 1, "batch_size": 8 if not pack else 1})
    result = run(made, "out")
    rows = load_rows(Path("out/data"), place / "cache", made)
    if pack:
        assert ("position_ids" in rows.column_names, len(rows) < 8) == (True, True)
        return
    model, total, number = load_model("chatty"), 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        for at in range(1, ids.shape[1]):
            if labels[0, at] != -100:
                total, number = total - float(logprobs[at - 1, ids[0, at]]), number + 1
    assert number == sum(range(2, 10)), "the answers and their ends"
    assert result["loss"]["first"] == pytest.approx(total / number, rel=1e-5)


def test_a_sliding_window_that_is_turned_off(place):
    tiny_model("mistral-sliding", max_position_embeddings=64).save_pretrained(place / "mistral")
    byte_tokenizer().save_pretrained(place / "mistral")
    extend = {"method": "eabf", "factor": 4, "theta": 5e5, "original_length": 16}
    made = recipe(model="mistral", load={"full_attention": True}, extend=extend)
    model = load_for_training(made, plan_config(made))
    full = load_model("mistral", config=transformers.AutoConfig.from_pretrained("mistral", sliding_window=None))
    sliding = load_model("mistral")
    plain = recipe(model="mistral", load={"full_attention": True})
    off = load_for_training(plain, plan_config(plain))
    ids = torch.arange(60)[None] + 1
    with torch.no_grad():
        assert torch.allclose(off(ids).logits, full(ids).logits, atol=1e-5)
        assert not torch.allclose(off(ids).logits[:, 30:], sliding(ids).logits[:, 30:], atol=1e-2)
        assert not torch.allclose(model(ids).logits, full(ids).logits, atol=1e-2)
    run(made, "out")
    config = load_model("out/model").config
    assert (config.sliding_window, config.rope_parameters["rope_theta"]) == (None, 5e5)
    tiny_model("gemma3").save_pretrained(place / "gemma3")
    byte_tokenizer().save_pretrained(place / "gemma3")
    with pytest.raises(UserError, match=r"has a sliding window only in some layers, and full attention"):
        plan_config(recipe(model="gemma3", load={"full_attention": True}))


def test_a_base_that_is_raised_after_training(place):
    extend = {"method": "eabf", "factor": 2, "theta": 5e5}
    after = {"method": "ntk", "theta": 2e6, "factor": 2}
    run(recipe(extend=extend, after=after), "out")
    trained, raised = (load_model(f"out/{name}") for name in ("model", "model-after"))
    assert trained.config.rope_parameters["rope_theta"] == 5e5
    assert raised.config.rope_parameters["rope_theta"] == 2e6
    lengths = [model.config.max_position_embeddings for model in (trained, raised)]
    assert lengths == [8192, 16384]
    assert same(dict(trained.state_dict()), dict(raised.state_dict()))


def test_adapters_are_merged_into_the_model(place, monkeypatch):
    lora = {"r": 2, "alpha": 4, "target_modules": ["q_proj"]}
    made = recipe(lora=lora, training={"gradient_checkpointing": True, "learning_rate": 0.1})
    run(made, "whole")
    died(made, monkeypatch)
    run(made, "out")
    assert same(weights("out"), weights("whole"))
    start = load_file(place / "llama" / "model.safetensors")
    changed = {name for name, weight in weights("out").items() if not torch.equal(weight, start[name])}
    assert changed == {name for name in start if "q_proj" in name}
    with pytest.raises(UserError, match=r"lora: Target modules .*nosuch.* not found in the base model.*: check target"):
        run(recipe(lora=lora | {"target_modules": ["nosuch"]}), "wrong")


def test_a_sweep_runs_one_after_the_other_on_the_same_rows(place):
    Path("r.yaml").write_text(json.dumps({**BASE, "sweep": {"loss.longce.gamma": [1, 3]}}))
    found = read_recipe("r.yaml", ["training.steps=2"])
    results = run_file(found, "out")
    assert list(results) == ["loss.longce.gamma=1", "loss.longce.gamma=3"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["data", *results]
    losses = [read_log(Path("out", label, "log.jsonl"))[0]["loss"] for label in results]
    assert losses[0] < losses[1]
    before = everything("out")
    assert run_file(found, "out") == results
    assert everything("out") == before


def test_tensorboard(place):
    run(recipe(training={"report_to": ["tensorboard"]}), "out")
    assert list(Path("out/checkpoints").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing")),
        ("transformers.modeling_utils.safe_save_file", SafetensorError("I/O error: No space left on device")),
        ("transformers.modeling_utils.safe_save_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    ],
)
def test_a_disk_that_is_full_while_writing(place, monkeypatch, target, error):
    def full(*arguments, **options):
        raise error

    died(recipe(), monkeypatch)
    kept = everything("out/checkpoints/checkpoint-2")
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(UserError, match=r"; what was committed before is kept: .* and run the same command again"):
            run(recipe(), "out")
    assert [path.name for path in Path("out/checkpoints").iterdir()] == ["checkpoint-2"]
    assert everything("out/checkpoints/checkpoint-2") == kept
    assert run(recipe(), "out")["steps"] == 5


def test_a_disk_that_is_really_full(place):
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(UserError, match=r"cannot write disk/.*: make room and run the same command again"):
            run(recipe(), "disk/out")
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True, capture_output=True)
        run(recipe(), "disk/out")
        run(recipe(), "out")
        assert read_log(Path("disk/out/log.jsonl")) == read_log(Path("out/log.jsonl"))
        assert same(weights("disk/out"), weights("out"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


RANK = """
import json
from longlens.errors import LonglensWarning, UserError
from longlens.train.recipe import read_recipe
from longlens.train.run import run_file
ends = []
for name in ("wrong", "right"):
    try:
        ends.append(run_file(read_recipe(f"{name}.yaml"), name))
    except UserError as error:
        ends.append(str(error))
print(json.dumps(ends))
"""


def started():
    """What two processes printed that torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], [error[-2000:] for _, error in ends]
        return [json.loads(output.splitlines()[-1]) for output, _ in ends]  # before torch 2.11 gloo writes there too
    finally:
        for process in processes:
            process.kill()


def test_two_processes_train_as_one_and_stop_as_one(place):
    content = {**BASE, "evaluation": EVALUATION, "training": {**BASE["training"], "steps": 2, "batch_size": 4}}
    (place / "right.yaml").write_text(json.dumps(content))
    (place / "wrong.yaml").write_text(json.dumps({**BASE, "data": {"documents": ["nosuch.txt"], "length": 32}}))
    (refused, first), (stopped, second) = started()
    assert refused.startswith("no such file or folder: 'nosuch.txt'")
    assert stopped.startswith("rank 0 stopped and reported why")
    assert not Path("wrong").exists()
    found, made = first["."], read_recipe("right.yaml").runs["."]
    alone = run(made, "alone")
    assert second == {".": {}}
    assert found["loss"]["last"] == pytest.approx(alone["loss"]["last"], rel=1e-4)
    assert found["evaluation"]["last"]["longppl"] == pytest.approx(alone["evaluation"]["last"]["longppl"], rel=1e-4)
    assert [line["step"] for line in read_log(Path("right/log.jsonl"))] == [0, 1, 2]
    Path("right/result.json").unlink()
    with pytest.raises(UserError, match=r"right contains a different run: processes is 2 there and 1 here"):
        run(made, "right")
