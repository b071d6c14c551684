"""Bad input: one line that names the thing and says a next step, exit code 2, no traceback, nothing written."""

import errno
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from longlens.corpus import text_sha256
from longlens.scoring.scores import ShortContext
from longlens.scoring.store import RunWriter, read_manifest
from tests.toys import manifest

RULE = ("--context", 32, "--stride", 16)
SCORE = ("score", "a.txt", "--model", "llama", *RULE, "-o", "out")


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def score_of(file, **options):
    model = options.get("model", "llama")
    return ("score", file, "--model", model, *RULE, "-o", "out")


FILES = {
    "empty.txt": b"",
    "blank.txt": b" \n\t\n",
    "binary.txt": bytes(range(256)),
    "broken.jsonl": b'{"text": "fine"}\n{"text": \n',
    "other.jsonl": b'{"body": "fine"}\n',
    "empty.jsonl": b"",
    "fake.parquet": b"no parquet",
}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nosuch.txt", "no such file or folder: 'nosuch.txt'; a dataset on the Hub is written hf:NAME"),
        ("empty.txt", "'empty.txt' is empty: exclude it, or add text to it"),
        ("blank.txt", "'blank.txt' is empty, it has only whitespace: exclude it, or add text to it"),
        ("binary.txt", "'binary.txt' is binary: byte 0x80 at offset 128 is not valid UTF-8: convert it, for example"),
        ("broken.jsonl", "'broken.jsonl:2' is broken (not JSON: "),
        ("other.jsonl", "the field 'text' is missing in 'other.jsonl:1', which has 'body': pass --text-field"),
        ("empty.jsonl", "'empty.jsonl' is empty: exclude it"),
        ("fake.parquet", "cannot read 'fake.parquet' as Parquet, from row 1 on: "),
        ("texts", "folder 'texts' has no text, Markdown, source, .jsonl or .parquet file, it has 1 .xyz"),
    ],
)
def test_documents(file, message, work, run):
    for name, content in FILES.items():
        (work / name).write_bytes(content)
    (work / "texts").mkdir()
    (work / "texts" / "a.xyz").touch()
    before = everything(work)
    assert run(*score_of(file)).error.startswith(f"error: {message}")
    assert everything(work) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nosuch", "no such model: './nosuch' is neither a folder, a .gguf file nor a Hub id (owner/name)"),
        ("a.txt", "a.txt is a file, but not .gguf: pass the model's directory, a Hub id or a .gguf file"),
        (
            "nothing",
            "the folder 'nothing' contains no model (no config.json): expected a directory written by save_pretrained",
        ),
        ("headless", "headless lacks weights of LlamaForCausalLM, such as 'lm_head.weight' (1 in all), which would be"),
        ("bert", "bert lacks weights of BertLMHeadModel, such as 'cls.predictions.bias' (6 in all), which would be"),
        ("bert-lm", "BertLMHeadModel is not causal: hidden states of the first 24 tokens moved by"),
        ("pickled", "cannot load the model 'pickled' (local folder): "),
        ("custom", "cannot load the model 'custom' (local folder): "),
        ("http://localhost:1/v1#m", "the server localhost:1 failed (attempt 1 of 5): ConnectError"),
        (
            "http://u:sesame@localhost:1/v1#m",
            "--model has a user name, a password or a query in",
        ),
    ],
)
def test_models(model, message, work, run, models):
    before = everything(work)
    error = run(*score_of("a.txt", model=model)).error
    assert error.startswith(f"error: {message}")
    if model == "pickled":
        assert error.endswith(": its weights are pickles, which are read only with --allow-pickle")
    if model == "custom":
        assert error.endswith(": it contains custom code, which runs only with --trust-remote-code")
        assert not (models / "RAN").exists()
    assert everything(work) == before


def test_pickles_and_code_are_used_when_allowed(work, run, models):
    assert run(*score_of("a.txt", model="pickled"), "--allow-pickle").code == 0
    assert run(*score_of("a.txt", model="custom"), "-o", "out2", "--trust-remote-code").code == 0
    assert (models / "RAN").exists()
    (models / "RAN").unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--context", 4095],
            "--context 4095 is not less than the maximum length, 4095 tokens (llama supports 4096): no token",
        ),
        (["--context", 50, "--max-length", 50], "--context 50 is not less than the maximum length, 50 tokens"),
        (["--context", 0], "--context is 0; the short context K must be at least 1 token, such as --context 4096"),
        (["--context", -1], "--context is -1; the short context K must be at least 1 token"),
        (
            ["--context", "x"],
            "--context is 'x'; expected numbers of tokens, such as --context 4096 or --context 64,256,4096",
        ),
        (["--context", "1,"], "--context is '1,'; expected numbers of tokens"),
        (["--stride", 0], "--stride is 0; d must be at least 1 token, such as --stride 1024"),
        (
            ["--context", "8,16", "--stride", "1,2,3"],
            "3 strides for 2 contexts: pass one --stride, or one per --context",
        ),
        (["--dtype", "nonsense"], "--dtype is 'nonsense'; expected auto, float32, bfloat16, float16"),
        (["--device", "nonsense"], "--device is 'nonsense', which is not available: "),
        (["--device", "cuda:99"], "--device is 'cuda:99', which is not available: "),
        (["--attention", "nonsense"], "cannot load the model 'llama' (local folder): "),
        (["--batch-tokens", 0], "--batch-tokens is 0; expected at least 1, or leave it out"),
        (["--bos", "nonsense"], "--bos is 'nonsense'; expected 'window' or 'published'"),
        (["--shard", "nonsense"], "--shard is 'nonsense'; expected RANK/WORLD with RANK below WORLD, such as 0/4"),
        (["--shard", "2/2"], "--shard is '2/2'; expected RANK/WORLD with RANK below WORLD"),
        (["--shard", "-1/2"], "--shard is '-1/2'; expected RANK/WORLD"),
        (["--max-length", 1], "--max-length is 1; expected at least 2"),
        (["--max-length", 0, "--truncate-with", "other"], "--max-length is 0; expected at least 2"),
        (["--max-length", 9999], "--max-length is 9999; llama supports 4095 tokens and BOS. Use a smaller one, or"),
        (
            ["--max-length", 99, "--max-characters", 9],
            "--max-characters and --max-length (or --truncate-with) are both set",
        ),
        (["--max-characters", 0], "--max-characters is 0; expected at least 1"),
        (["--samples", 0], "--samples is 0, expected at least 1"),
        (["--min-tokens", 5], "--min-tokens counts the input_ids of tokenized rows: pass --tokenized-with"),
        (["--samples", "x"], "Invalid value for '--samples': "),
        (["--nosuch"], "No such option: --nosuch"),
        (["-o", "a.txt"], "a.txt is a file; expected a directory for the run, such as --out scores"),
        (
            ["-o", "a.txt/in"],
            "cannot write a.txt/in: Not a directory; what was committed before is kept: check the folder",
        ),
        (
            ["-o", "x" * 300],
            f"cannot write {'x' * 300}: File name too long; what was committed before is kept: check the",
        ),
        (["-o", "llama"], "llama is not empty and contains no run (it has 'config.json'): use a new folder"),
    ],
)
def test_options_of_score(options, message, work, run):
    before = everything(work)
    assert run(*SCORE, *options).error.startswith(f"error: {message}")
    assert everything(work) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "No such command 'nosuch'. See longlens --help"),
        (["--nosuch"], "No such option: --nosuch. See longlens --help"),
        (["score"], "Missing argument "),
        (["score", "a.txt"], "Missing option '--model' / '-m'. See longlens score --help"),
        (["score", "a.txt", "--model", "llama"], "Missing option '--out' / '-o'. See longlens score --help"),
        (["perplexity"], "Missing argument "),
        (
            ["perplexity", "nosuch"],
            "no such directory: nosuch. Create scores with: longlens score DOCS --model M -o nosuch",
        ),
        (
            ["perplexity", "llama"],
            "llama contains no scores (no manifest.json): expected a run directory of longlens score",
        ),
        (
            ["perplexity", "a.txt"],
            "a.txt contains no scores (no manifest.json): expected a run directory of longlens score",
        ),
        (["perplexity", "x" * 300], f"{'x' * 300}: File name too long. Check the name, the permissions and the free"),
        (["compare", "nosuch", "nosuch"], "no such directory: nosuch. Create scores with"),
        (["keys", "nosuch", "-o", "keys.jsonl"], "no such directory: nosuch. Create scores with"),
        (
            ["keys", "a", "b", "-o", "k"],
            "got 2 run directories, expected one: use longlens keys SCORES -o keys.jsonl",
        ),
        (
            ["keys", "--from-upstream", "nosuch", "a.txt", "-o", "k"],
            "nosuch is not a folder: expected one with slice_0",
        ),
        (
            ["keys", "--from-upstream", "nothing", "a.txt", "--max-length", "9", "-o", "k"],
            "--max-length counts tokens: pass the model whose tokenizer counts them as --truncate-with",
        ),
        (["longppl", "a.txt", "--model", "llama", "-o", "out"], "LongPPL needs key tokens: pass either --evaluator or"),
        (
            ["longppl", "a.txt", "--model", "llama", "--evaluator", "self", "--keys", "k", "-o", "out"],
            "LongPPL needs key tokens: pass either --evaluator or --keys",
        ),
        (
            ["longppl", "a.txt", "--model", "llama", "--evaluator", "other", "--stride", "0", "-o", "out"],
            "--stride is 0; d must be at least 1 token",
        ),
        (
            ["longppl", "a.txt", "--model", "llama", "--keys", "nosuch.jsonl", "-o", "out"],
            "nosuch.jsonl does not exist: write it with longlens keys SCORES -o nosuch.jsonl",
        ),
        (["demo", "-o"], "Option '-o' requires an argument. See longlens --help"),
    ],
)
def test_other_commands(arguments, message, work, run):
    before = everything(work)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert everything(work) == before


def rows_of(*texts):
    return [
        {
            "id": id,
            "text_sha256": text_sha256(text),
            "text": text,
            "total_tokens": len(text),
            "token_ids": np.arange(len(text)),
            "char_start": np.arange(len(text)),
            "char_end": np.arange(len(text)) + 1,
            "logprobs": np.full(len(text), -1, np.float32),
        }
        for id, text in texts
    ]


def write_run(folder, *texts):
    with RunWriter(Path(folder), manifest(str(folder))) as writer:
        for row in rows_of(*texts):
            writer.add(None, row)
            short = np.where(np.arange(len(row["logprobs"])) < 2, np.nan, row["logprobs"] - 9)
            writer.add(ShortContext(2, 1), {"id": row["id"], "logprobs": short})


def test_two_runs_into_one_folder_at_once(work, run):
    assert run(*SCORE).code == 0
    with RunWriter(work / "out", read_manifest(work / "out")):
        error = run(*SCORE).error
    assert error == "error: another process is writing to out: wait for it, or use another directory"
    assert run(*SCORE).code == 0


def test_a_run_with_other_settings(work, run, monkeypatch):
    """Before weights are loaded."""
    longppl = ("longppl", *SCORE[1:-2], "-o", "two")
    assert run(*SCORE).code == run(*longppl, "--evaluator", "other").code == 0
    assert run(*SCORE).code == run(*longppl, "--evaluator", "other").code == 0
    before = everything(work)
    monkeypatch.setattr(
        "longlens.models.checkpoint.Checkpoint.load", lambda *_, **__: pytest.fail("weights are loaded")
    )
    error = run(*SCORE, "--dtype", "bfloat16", "--max-length", 100).error
    assert error == (
        "error: out contains a different run: dtype is 'float32' there and "
        "'bfloat16' here; max_length is 4095 there and 100 here. Use another folder, or the same settings"
    )
    assert run("score", "a.txt", "--model", "other", *SCORE[4:]).error == (
        "error: out contains a different run: its model is 'llama', but 'other' was given. Use another folder, or the "
        "same model"
    )
    for name, options in {
        "evaluator": ["--evaluator", "llama"],
        "model": ["--evaluator", "other", "--model", "other"],
    }.items():
        error = run(*longppl, *options).error
        assert f"error: two/{name} contains a different run" in error
    assert everything(work) == before


def test_a_document_that_changed(work, run):
    assert run(*SCORE).code == 0
    (work / "a.txt").write_text("Something else.")
    before = everything(work)
    assert run(*SCORE).error.startswith("error: document 'a.txt' was scored before with a different text: use a new id")
    assert everything(work) == before


@pytest.mark.parametrize("content", [b"", b"random bytes", None])
def test_a_broken_part(content, work, run):
    assert run(*SCORE).code == 0
    part = next((work / "out" / "long").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-100] if content is None else content)
    for arguments in (SCORE, ("perplexity", "out"), ("keys", "out", "-o", "keys.jsonl"), ("compare", "out", "out")):
        error = run(*arguments).error
        assert error.startswith(f"error: {part.relative_to(work)} is corrupt or was not written by longlens (")
        assert error.endswith(
            "delete that file and run the same longlens score command again, which scores the missing documents"
        )


def test_keys_and_scores_of_other_documents(work, run):
    write_run("model", ("a", "some text"), ("b", "more text"))
    write_run("evaluator", ("a", "some text"))
    write_run("changed", ("a", "other text"), ("b", "more text"))
    for name in ("evaluator", "changed"):
        assert run("keys", name, "-o", f"{name}.jsonl").code == 0
    before = everything(work)
    told = {
        ("--evaluator-scores", "evaluator"): "document 'b' was scored with model, and has no scores of the evaluator "
        "evaluator: score the same documents with both",
        ("--evaluator-scores", "changed"): "document 'a': model and the evaluator have different texts (sha256 ",
        ("--keys", "evaluator.jsonl"): "document 'b' was scored with model, and has no keys: select them for all",
        ("--keys", "changed.jsonl"): "document 'a': model and the keys have different texts (sha256 ",
        ("--keys", "a.txt"): "'a.txt:1' is broken (not JSON: ",
        ("--keys", "nothing"): "cannot read 'nothing': Is a directory: check the file",
        ("--keys", "changed.jsonl", "--alpha", 1): "--alpha cannot be set with keys, whose tokens are already selected",
        ("--keys", "changed.jsonl", "--evaluator-scores", "changed"): "both evaluator scores and keys were passed",
        ("--evaluator-scores", "evaluator", "--context", 9): "no scores at K=9; scored short contexts: K=2, d=1",
        ("--evaluator-scores", "evaluator", "--stride", 9): "no scores at d=9; scored short contexts: K=2, d=1. Score "
        "with --stride 9",
        ("--answers", "nosuch"): "cannot read 'nosuch': ",
        ("--answers", "a.txt"): "'a.txt:1' is broken (not JSON: ",
        ("--gamma", -1, "--evaluator-scores", "changed"): "--gamma is -1.0",
    }
    for options, message in told.items():
        assert run("perplexity", "model", *options).error.startswith(f"error: {message}"), options
    assert run("compare", "model").error.startswith("error: 1 run to compare, expected at least two")
    assert run("compare", "model", "evaluator").error.startswith(
        "error: document 'b' was scored with model and not with"
    )
    assert run("compare", "model", "changed").error.startswith("error: document 'a': model and changed were scored on")
    assert everything(work) == before


def test_a_file_of_keys_is_not_overwritten(work, run):
    write_run("scores", ("a", "some text"))
    (work / "keys.jsonl").write_text("precious")
    before = everything(work)
    assert run("keys", "scores", "-o", "keys.jsonl").error.startswith(
        "error: keys.jsonl exists: choose another file, or"
    )
    imported = run("keys", "a.txt", "--from-upstream", "scores", "--truncate-with", "nothing", "-o", "keys.jsonl")
    assert imported.error.startswith("error: keys.jsonl exists: choose another file, or"), (
        "a tokenizer was loaded first"
    )
    assert run("keys", "scores", "-o", "nosuch/keys").error.startswith("error: nosuch is not a folder: create it")
    assert run("keys", "scores", "-o", "scores", "--overwrite").error.startswith(
        "error: cannot write scores: Is a directory: check"
    )
    assert everything(work) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(work, run):
    (work / "closed").mkdir(mode=0o500)
    error = run(*SCORE, "-o", "closed/run").error
    assert error.startswith(
        "error: cannot write closed/run: Permission denied; what was committed before is kept: check"
    )
    write_run("scores", ("a", "some text"))
    assert "closed" in run("keys", "scores", "-o", "closed/keys.jsonl").error


def test_a_disk_that_is_read_only(work, run):
    """This one stops root as well."""
    disk = work / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a read-only disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        for folder in ("disk", "disk/run"):
            assert run(*SCORE, "-o", folder).error == (
                f"error: cannot write {folder}: Read-only file system; what was committed before is kept: check the "
                "folder and its permissions and run the same command again, it resumes from there"
            )
        write_run("scores", ("a", "some text"))
        error = run("keys", "scores", "-o", "disk/keys.jsonl").error
        assert error == (
            "error: cannot write disk/keys.jsonl: Read-only file system: check the folder and its permissions"
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unknown_model_is_refused_at_once_when_offline_is_set(work, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.monotonic()
    error = run(*score_of("a.txt", model="nosuch/model")).error
    assert time.monotonic() - start < 15  # nothing is retried; without the setting it takes 2 times 23 s
    assert error.startswith("error: 'nosuch/model' is not in the Hub cache of this machine, and HF_HUB_OFFLINE is set")
    assert not (work / "out").exists()


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "Disk quota exceeded"), OSError("no number, no name")])
def test_an_error_of_the_system_without_a_name_is_one_line(error, work, run, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("longlens.scoring.reader.open_scores", fail)
    monkeypatch.setattr("longlens.cli.console.drop", lambda stream: None)
    reason = error.strerror or "no number, no name"
    assert run("perplexity", "out").error == (
        f"error: the output: {reason}. Check the name, the permissions and the free disk space"
    )


def test_an_interrupt_while_modules_are_imported_is_one_line(run, monkeypatch):
    class Interrupted(types.ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "longlens.cli.app", Interrupted("longlens.cli.app"))
    ended = run("bench", "list")
    assert (ended.code, ended.err) == (
        130,
        "interrupted; finished work is kept, and the same command resumes from there\n",
    )


def test_what_is_for_a_closed_stderr_does_not_go_to_stdout(tmp_path):
    command = f"{sys.executable} -m longlens perplexity nosuch 2>&-"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")


@pytest.mark.parametrize("command", ["score", "longppl", "demo"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.txt"], "a.txt is a file; expected a directory for the"),
        (["-o", "llama"], "llama is not empty and contains no run (it has 'config.json'): use a new folder"),
        (["--context", 60, "--max-length", 50], "--context 60 is not less than the maximum length, 50 tokens"),
        (["--max-length", 9999], "--max-length is 9999; llama supports 4095 tokens and BOS"),
        (["--max-length", 99, "--max-characters", 9], "--max-length (or --truncate-with) are both set"),
        (["--bos", "nonsense"], "--bos is 'nonsense'; expected 'window' or 'published'"),
        (["--model", "nothing"], "the folder 'nothing' contains no model (no config.json): expected a dir"),
    ],
)
def test_what_needs_no_weights_is_checked_before_they_are_loaded(command, options, message, work, run, monkeypatch):
    def load(*_, **__):
        pytest.fail("weights are loaded")

    monkeypatch.setattr("longlens.models.checkpoint.Checkpoint.load", load)
    if command == "demo" and options[0] != "-o":
        pytest.skip("demo has no such option")
    # The evaluated model of longppl comes second and is checked first as well.
    evaluator = ["--evaluator", "other"] if command == "longppl" and options[0] == "--model" else []
    evaluator = evaluator or (["--evaluator", "self"] if command == "longppl" else [])
    basic = ("demo",) if command == "demo" else (command, *SCORE[1:], *evaluator)
    if command == "longppl" and options == ["-o", "llama"]:
        options, message = ["-o", "texts"], "texts/model is a file; expected a directory for the"
        (work / "texts").mkdir()
        (work / "texts" / "model").touch()
    if command == "longppl" and options == ["-o", "a.txt"]:
        message = "cannot write a.txt/model: Not a directory"
    before = everything(work)
    error = run(*basic, *options).error
    assert message in error
    assert everything(work) == before


def test_documents_shorter_than_the_context_are_told_before_the_model_is_loaded(work, run):
    err = run("score", "a.txt", "--model", "llama", "--context", 2000, "--stride", 500, "-o", "out").err
    told, loaded = err.index("warning: no document has more than "), err.index("llama: LlamaForCausalLM")
    assert told < loaded
    assert "K = 2000, and there will be no key tokens at that K: use a smaller --context, such as" in err
    err = run(*SCORE, "-o", "out2").err
    assert "no document has more" not in err


def test_what_a_folder_leaves_out_is_said_once_though_it_is_read_again(work):
    folder = work / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text((work / "a.txt").read_text())
    (folder / "b.csv").write_text("a,b\n")
    score = ["score", "texts", "--model", "llama", "--context", "32", "--stride", "16", "-o", "out"]
    # A process of its own: the first import of transformers makes Python forget which warnings were shown.
    ended = subprocess.run([sys.executable, "-m", "longlens", *score], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr.count("skipped 1 (1 .csv)")) == (0, 1), ended.stderr


def test_a_model_that_names_no_length_takes_one(work, run):
    import transformers

    config = transformers.MambaConfig(vocab_size=300, hidden_size=32, state_size=8, num_hidden_layers=2)
    transformers.MambaForCausalLM(config).save_pretrained(work / "mamba")
    for file in (work / "llama").glob("tokenizer*"):
        (work / "mamba" / file.name).write_bytes(file.read_bytes())
    ended = run(*score_of("a.txt", model="mamba"), "--max-length", 50)
    assert ended.code == 0, ended.err
    assert "mamba: documents are truncated to 50 tokens\n" in ended.err


def test_a_bug_of_ours_keeps_its_traceback(work, run, monkeypatch):
    monkeypatch.setattr("longlens.scoring.reader.open_scores", lambda *_, **__: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        run("perplexity", "out")
