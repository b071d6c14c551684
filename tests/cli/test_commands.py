"""Every command: its help, what it prints where, and its exit code."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import longlens
from tests.tiny import byte_tokenizer, tiny_model

COMMANDS = [
    *("demo", "score", "perplexity", "longppl", "keys", "compare", "reach", "cost", "diverge", "report", "export"),
    *("extend", "train"),
]
RULE = ("--context", 32, "--stride", 16)
JSON_KEYS = {
    "schema_version",
    *("model", "evaluator", "ppl", "longppl", "longppl_soft", "bits_per_character"),
    *("num_tokens", "num_key_tokens", "num_documents", "truncated_documents", "intervals", "settings"),
}
SETTINGS = {"context", "stride", "alpha", "beta", "gamma", "lcl", "bos", "max_length", "dtype"}


def test_the_commands_are_these():
    from longlens.cli.app import app

    words = [command.callback.__name__ for command in app.registered_commands]
    assert words == [*COMMANDS, "train_list", "train_show", "train_schema"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, run):
    ended = run(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert f"Example: longlens {command} " in ended.out


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_an_example_has_the_options_that_there_are(command, run):
    shown = run(command, "--help").out
    example = shown[shown.index("Example:") : shown.index("Arguments:")].split()
    for option in (word for word in example if word.startswith("-")):
        assert f" {option} " in shown.split("Options:")[1].replace(",", " "), option


def test_help_and_version(run):
    ended = run("--help")
    assert (ended.code, ended.err) == (0, "")
    assert all(f"\n  {command} " in ended.out for command in COMMANDS)
    assert run("--version") == (0, f"longlens {longlens.__version__}\n", "")


def test_score_says_what_it_does_and_the_next_steps_on_stderr(work, run):
    arguments = ("score", "a.txt", "b.txt", "--model", "llama", *RULE, "-o", "run")
    quiet = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    command = [sys.executable, "-m", "longlens", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (0, "")
    first, cut, scored, last, *steps = ended.stderr.splitlines()
    assert first == "llama: LlamaForCausalLM from local folder, float32 on cpu"
    assert cut == "llama: documents are truncated to 4,095 tokens (model maximum: 4,096)"
    took = r"score llama: [\d,]+ characters in [\d.]+ s, [\d,]+ tokens of model input, [\d,]+/s"
    assert re.fullmatch(took, scored)
    assert last == "2 documents in run"
    assert steps == ["next: longlens perplexity run", "      longlens report run -o report.html"]
    again = run(*arguments)
    assert again == (0, ended.stdout, "\n".join([first, cut, last, *steps]) + "\n")


def test_score_as_json(work, run):
    found = run.json("score", "a.txt", "b.txt", "--model", "llama", "--context", "16,32", "--stride", "8", "-o", "run")
    assert found == {
        "schema_version": 1,
        "out": "run",
        "num_documents": 2,
        "short_contexts": [[16, 8], [32, 8]],
        "model": "llama",
        "settings": {
            "bos": "window",
            "dtype": "float32",
            "max_length": 4095,
            "max_length_counted_by": "own",
            "text": True,
        },
    }
    manifest = json.loads((work / "run" / "manifest.json").read_text())
    assert manifest["settings"] == found["settings"]
    assert manifest["model"]["dtype"] == "float32"
    assert len(manifest["model"]["weights_sha256"]) == len(manifest["model"]["tokenizer_sha256"]) == 64
    assert {"longlens", "torch", "transformers", "python"} <= manifest["versions"].keys()


def test_options_of_score_reach_the_run(work, run):
    (work / "rows.jsonl").write_text('{"name": "x", "body": "one two three"}\n{"name": "y", "body": "four"}\n')
    run.json(
        *("score", "rows.jsonl", "--model", "llama", "--long-only", "--no-text", "--max-length", 9, "-o", "run"),
        *("--text-field", "body", "--id-field", "name", "--samples", 1, "--dtype", "bfloat16", "--bos", "published"),
    )
    scores = longlens.open_scores("run")
    assert list(scores.ids) == ["x"]
    assert (scores[0].text, len(scores[0].token_ids), scores[0].total_tokens) == (None, 9, 13)
    assert scores.short_contexts == []
    assert scores.manifest["settings"] == {
        "bos": "published",
        "bos_role": "evaluated",
        "dtype": "bfloat16",
        "max_length": 9,
        "max_length_counted_by": "own",
        "text": False,
    }


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--max-characters", 40], {"max_length": 40, "max_length_counted_by": "characters"}),
        (["--truncate-with", "other", "--max-length", 40], {"max_length": 40, "max_length_counted_by": "other"}),
        (["--extrapolate", "--max-length", 5000], {"max_length": 5000, "max_length_counted_by": "own"}),
    ],
)
def test_documents_are_cut_as_asked(options, settings, work, run):
    found = run.json("score", "a.txt", "--model", "llama", *RULE, "-o", "run", *options)
    assert found["settings"] | settings == found["settings"]
    assert len(longlens.open_scores("run")[0].text) == min(settings["max_length"], 212)


def test_shards_fill_one_folder(work, run):
    for shard, number in (("0/2", 1), ("1/2", 2)):
        arguments = ("score", "a.txt", "b.txt", "--model", "llama", *RULE, "--shard", shard, "-o", "run")
        assert run.json(*arguments)["num_documents"] == number


def test_perplexity(scored, run):
    found = run.json("perplexity", scored / "llama", "--evaluator-scores", scored / "other", "--no-lcl")
    assert found.keys() >= JSON_KEYS
    assert found["settings"].keys() >= SETTINGS
    assert found["settings"] | {"context": 32, "stride": 16, "lcl": False} == found["settings"]
    assert found["intervals"].keys() == {"ppl", "longppl", "longppl_soft"}
    assert "documents" not in found
    assert found["num_documents"] == 2
    table = run("perplexity", scored / "llama", "--evaluator-scores", scored / "other", "--no-lcl")
    assert f"{found['ppl']:,.3f}" in table.out
    assert table.code == 0
    both = run.json("perplexity", scored / "llama", scored / "other")
    assert [result["model"].rsplit("/")[-1] for result in both["results"]] == ["llama", "other"]
    assert both["results"][0]["longppl"] is None


def test_runs_of_one_model_are_told_apart(scored, run, tmp_path):
    shutil.copytree(scored / "llama", tmp_path / "again")
    ended = run("perplexity", scored / "llama", tmp_path / "again", "--per-document")
    model = run.json("perplexity", scored / "llama")["model"]
    for name in (f"{model} (llama)", f"{model} (again)"):
        assert name in ended.out.splitlines()[0]
        assert f"document ({name})" in ended.out


def test_perplexity_per_document(scored, run):
    found = run.json("perplexity", scored / "llama", "--per-document")
    assert [document["id"] for document in found["documents"]] == ["a.txt", "b.txt"]
    assert found["documents"][0].keys() == {"id", "ppl", "longppl", "num_tokens", "num_key_tokens"}
    shown = run("perplexity", scored / "llama", "--per-document").out
    assert f"{found['documents'][0]['ppl']:,.3f}" in shown


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("answers.jsonl", '{"id": "a.txt", "answer_spans": [[2, 6]]}\n\n{"id": "b.txt", "answer_spans": null}\n'),
        ("answers.json", '[{"id": "a.txt", "answer_spans": [[2, 6]], "text": "beside"}]'),
        ("answers", '{"id": "a.txt", "answer_spans": [[2, 6]]}\n'),
    ],
)
def test_answers_reach_every_command(file, content, scored, run, tmp_path):
    (tmp_path / file).write_text(content)
    answers = ("--answers", tmp_path / file)
    found = run.json("perplexity", scored / "llama", *answers)
    assert found["num_answer_tokens"] == 4
    assert found["ppl_answers"] > 1
    both = (scored / "llama", scored / "other")
    for runs in (both[:1], both):
        printed = run.json("report", *runs, *answers, "-o", tmp_path / "r.html")
        assert printed["results"][0]["ppl_answers"] == found["ppl_answers"]
    assert run.json("compare", *both, *answers)["results"][0]["ppl_answers"] == found["ppl_answers"]


def test_answers_of_rows_are_stored_with_their_scores(work, run):
    (work / "rows.jsonl").write_text(json.dumps({"id": "a", "text": "It is 42. " * 20, "answer_spans": [[6, 8]]}))
    assert run("score", "rows.jsonl", "--model", "llama", *RULE, "-o", "out").code == 0
    found = run.json("perplexity", "out")
    assert found["num_answer_tokens"] == 2
    assert found == run.json("perplexity", "out", "--answers", "rows.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        *(
            ({"id": "a.txt", "answer_spans": spans}, "expected [start, end) in characters with 0 <= start <= end")
            for spans in ([[3]], 5, ["a", "b"], [[1, 2, 3]], [[5, 2]], "ab", [[True, 3]])
        ),
        ({"id": [1], "answer_spans": [[1, 2]]}, "has a list in the field 'id'"),
        ({"answer_spans": [[1, 2]]}, "has answer_spans without an id"),
        ([1], "is [1], expected an object with id and answer_spans"),
        ({"id": "a.txt"}, "has no answer_spans: expected rows such as"),
        ({"id": "nosuch", "answer_spans": [[1, 2]]}, "none of these documents was scored"),
    ],
    ids=str,
)
def test_answers_that_are_none(row, message, scored, run, tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    for command in ("perplexity", "compare", "report"):
        runs = (scored / "llama", scored / "other") if command == "compare" else (scored / "llama",)
        page = ("-o", tmp_path / "r.html") if command == "report" else ()
        assert message in run(command, *runs, "--answers", tmp_path / "answers.jsonl", *page).error


def test_answers_that_are_twice_there_or_nested_too_deeply(scored, run, tmp_path):
    rows = [{"id": "a.txt", "answer_spans": [[1, end]]} for end in (2, 3)]
    for content, message in (
        ("\n".join(map(json.dumps, rows)), "has other answer_spans for document 'a.txt' than a row before"),
        ('{"id": "a.txt", "answer_spans": ' + "[" * 100_000, "is broken"),
    ):
        (tmp_path / "answers.jsonl").write_text(content)
        assert message in run("perplexity", scored / "llama", "--answers", tmp_path / "answers.jsonl").error


NO_EFFECT = {
    ("perplexity", "llama"): ["--alpha 2", "--beta -2", "--gamma 5", "--no-lcl", "--stride 16"],
    ("perplexity", "llama", "--keys", "K"): ["--alpha 2", "--beta -2", "--gamma 5", "--no-lcl", "--context 32"],
    ("perplexity", "llama", "--evaluator-scores", "other", "--no-lcl"): ["--beta -2"],
    ("compare", "llama", "other"): ["--alpha 2", "--gamma 5"],
    ("compare", "llama", "other", "--keys", "K"): ["--alpha 2", "--gamma 5", "--stride 16"],
    ("report", "llama", "--keys", "K", "-o", "r.html"): ["--alpha 2"],
    ("report", "llama", "--document", "a.txt", "-o", "r.html"): ["--num-documents 1"],
    ("keys", "llama", "-o", "k.jsonl"): ["--max-characters 5", "--text-field text", "--split test", "--samples 2"],
    ("keys", "llama", "-o", "k.jsonl", "--no-lcl"): ["--beta -2"],
    ("keys", "a.txt", "--from-upstream", "slices", "-o", "k.jsonl"): ["--alpha 2", "--no-lcl", "--context 32"],
    ("score", "a.txt", "--model", "nosuch", "--long-only", "-o", "s"): ["--context 4096", "--stride 1024"],
    ("score", "a.txt", "--model", "nosuch", "-o", "s"): ["--split test", "--subset x"],
    ("score", "a.txt", "--model", "nosuch", "-o", "s", "--tokenized-with", "x"): ["--text-field text"],
    ("score", "a.txt", "--model", "nosuch", "-o", "s", "--device-map", "auto"): ["--device auto"],
    ("data", "weigh", "a.txt", "--scores", "llama", "-o", "w", "--short-logprobs"): ["--gamma 5"],
    ("data", "pack", "a.txt", "--tokenizer", "x", "--length", "9", "-o", "p"): ["--split train"],
    ("bench", "grade", "llama"): ["--dtype auto", "--allow-pickle"],
    ("bench", "table", "llama", "--json"): ["--format text"],
    ("longppl", "a.txt", "--model", "nosuch", "--keys", "K", "-o", "s"): ["--alpha 2", "--gamma 5", "--context 4096"],
    ("longppl", "a.txt", "--model", "nosuch", "--evaluator", "x", "--no-lcl", "-o", "s"): ["--beta -2"],
}


@pytest.mark.parametrize("command", NO_EFFECT, ids=" ".join)
def test_options_that_would_have_no_effect_are_refused(command, scored, work, run):
    assert run("keys", scored / "other", "-o", "keys.jsonl").code == 0
    for name in ("llama", "other"):  # run folders, in the place of the models
        (work / name).unlink()
        (work / name).symlink_to(scored / name)
    before = sorted(work.iterdir())
    arguments = ["keys.jsonl" if argument == "K" else argument for argument in command]
    for option in NO_EFFECT[command]:
        error = run(*arguments, *option.split()).error
        name = option.split()[0]
        assert name in error or name.replace("--no-", "use_").removeprefix("--") in error
        assert any(words in error for words in ("have no effect", "cannot be set with keys", "selects without beta"))
    assert sorted(work.iterdir()) == before


def test_many_models_are_a_row_each(scored, run):
    table = run("perplexity", *[scored / "llama", scored / "other"] * 15).out.splitlines()
    assert len(table) == 31
    expected = run.json("perplexity", scored / "llama")
    assert table[0].split()[:2] == ["PPL", "95"]
    assert [line.split(")")[1].split()[0] for line in table[1::2]] == [
        f"{expected['ppl']:,.3f}"
    ] * 15  # after NAME (RUN)
    assert all(line.split()[0] == expected["model"] for line in table[1::2])


def test_ngrams_are_found_on_request(scored, run):
    assert run.json("perplexity", scored / "llama")["ppl_ngram"] is None
    assert run.json("perplexity", scored / "llama", "--ngram")["ppl_ngram"] > 1
    assert "PPL on re-occurring 3-grams" in run("perplexity", scored / "llama", "--ngram").out


def test_keys_give_what_the_evaluator_gives(scored, run, tmp_path):
    written = run("keys", scored / "other", "-o", tmp_path / "keys.jsonl", "--no-lcl", "--alpha", 0.5)
    assert (written.code, written.out) == (0, "")
    assert f"key tokens of 2 documents in {tmp_path / 'keys.jsonl'}" in written.err
    by_keys = run.json("perplexity", scored / "llama", "--keys", tmp_path / "keys.jsonl")
    options = ("--no-lcl", "--alpha", 0.5)
    by_scores = run.json("perplexity", scored / "llama", "--evaluator-scores", scored / "other", *options)
    assert by_keys["num_key_tokens"] == by_scores["num_key_tokens"] > 0
    assert by_keys["longppl"] == by_scores["longppl"]
    as_json = run.json("keys", scored / "other", "-o", tmp_path / "keys.jsonl", "--overwrite")
    assert as_json.keys() == {"schema_version", "out", "num_documents", "settings"}


def test_keys_of_the_published_package(work, run):
    (work / "slices").mkdir()
    (work / "slices" / "slice_0.txt").write_text("[0, 2];[7, 10]")
    found = run.json("keys", "--from-upstream", "slices", "a.txt", "--max-characters", 20, "-o", "keys.jsonl")
    assert (found["num_documents"], found["settings"]["evaluator"]) == (1, "slices")
    assert json.loads((work / "keys.jsonl").read_text())["char_runs"] == [[0, 2], [7, 10]]


def test_compare(scored, run):
    found = run.json("compare", scored / "llama", scored / "other", "--evaluator-scores", scored / "other")
    assert found.keys() == {"schema_version", "baseline", "num_documents", "results", "pairs", "warnings"}
    assert found["pairs"][0]["log_ppl"].keys() == {"value", "interval", "significant", "settled", "documents_to_settle"}
    shown = run("compare", scored / "llama", scored / "other", "--evaluator-scores", scored / "other")
    assert shown.code == 0
    assert "log PPL, nats/token" in shown.out
    assert "note: " in shown.err


@pytest.mark.parametrize("evaluator", ["other", "self"])
def test_longppl(evaluator, work, run):
    arguments = ("longppl", "a.txt", "b.txt", "--model", "llama", "--evaluator", evaluator, *RULE, "-o", "run")
    found = run.json(*arguments)
    assert found.keys() >= JSON_KEYS
    assert found["settings"].keys() >= SETTINGS
    assert found["evaluator"] == ("llama" if evaluator == "self" else "other")
    assert found["settings"]["context"] == 32
    again = run(*arguments)
    assert again.code == 0
    assert "tokens of model input" not in again.err
    warned = "warning: the model is its own evaluator; the paper finds LongPPL uninformative in this case" in again.err
    assert warned == (evaluator == "self")
    stored = json.loads((work / "run" / "perplexity.json").read_text())
    found["warnings"] = [warning.replace("--alpha or --beta", "`alpha` or `beta`") for warning in found["warnings"]]
    assert {name: stored[name] for name in found} == found
    assert len(stored["documents"]) == 2
    folders = {path.parent.name for path in (work / "run").rglob("manifest.json")}
    assert folders == ({"model"} if evaluator == "self" else {"model", "evaluator"})


def test_longppl_says_before_the_evaluator_runs_that_the_model_is_too_short(work, run, tmp_path):
    tiny_model("llama", max_position_embeddings=60).save_pretrained(tmp_path / "short")
    byte_tokenizer().save_pretrained(tmp_path / "short")
    arguments = ("longppl", "a.txt", "--model", tmp_path / "short", "--evaluator", "other", *RULE, "-o", "run")
    refused = run(*arguments)
    assert refused.code == 2
    assert "truncated for the evaluator, has" in refused.error
    assert f"tokens of {tmp_path / 'short'}, which supports 59: use a smaller --max-length" in refused.error
    assert not (work / "run").exists()
    assert run(*arguments, "--max-length", "59").code == 0
    unknown = run("longppl", "a.txt", "--model", "./nosuch", "--evaluator", "other", *RULE, "-o", "run2")
    assert unknown.code == 2
    assert not (work / "run2").exists()


def test_longppl_with_keys(work, run):
    run("score", "a.txt", "--model", "other", *RULE, "-o", "scores")
    run("keys", "scores", "-o", "keys.jsonl")
    arguments = ("longppl", "a.txt", "--model", "llama", "--keys", "keys.jsonl", "-o", "run")
    assert run.json(*arguments)["evaluator"] == "other"


def test_a_reader_that_goes_away_is_no_error(scored):
    longlens_command = f"{sys.executable} -m longlens perplexity {scored / 'llama'} --per-document"
    program = f"{longlens_command} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.stdout == "0\n"
    assert done.stderr == "" or done.stderr.startswith("next: longlens ")  # where all was printed before it went
    assert "Error" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_line(scored):
    command = [sys.executable, "-m", "longlens", "perplexity", str(scored / "llama")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the output: No space left on device. Check the name, the permissions and the free disk space"
    )
    command[-1] = "nosuch"
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the output: Disk quota exceeded"),
        (OSError(errno.EIO, "Input/output error"), "the output: Input/output error"),
        (OSError("a library's own words\nand more"), "the output: a library's own words and more"),
        (OSError(errno.EIO, "Input/output error", "disk/x"), "disk/x: Input/output error"),
    ],
)
def test_what_the_system_says_is_one_line_with_a_name_or_without(error, reason, scored, run, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("longlens.scoring.reader.StoredScores.__init__", fail)
    assert run("perplexity", scored / "llama").error == (
        f"error: {reason}. Check the name, the permissions and the free disk space"
    )


def test_output_that_is_closed_is_no_traceback(scored):
    command = f"{sys.executable} -m longlens perplexity {scored / 'llama'} >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the output (stdout) is closed: redirect it to a file, or to /dev/null\n",
    )


def test_output_where_the_terminal_knows_ascii_alone(work, scored):
    (work / "naïve").symlink_to(scored / "llama")
    command = [sys.executable, "-m", "longlens", "keys", "naïve", "-o", "clé.jsonl", "--json"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["out"] == "clé.jsonl"


def test_engines_and_caches_are_named(work, run):
    rule = ("score", "a.txt", "--model", "llama", *RULE, "--dtype", "float32")
    assert run(*rule, "-o", "plain").code == 0
    ended = run(*rule, "-o", "cached", "--cache", "full", "--cache-chunk", 16)
    assert ended.code == 0, ended.err
    plain, cached = (longlens.open_scores(name)[0] for name in ("plain", "cached"))
    assert np.allclose(plain.long_logprobs, cached.long_logprobs, atol=1e-4, equal_nan=True)
    before = sorted(work.iterdir())
    for option, value in (("--engine", "nosuch"), ("--cache", "nosuch")):
        assert "'nosuch'" in run(*rule, "-o", "new", option, value).error
    assert "--cache-chunk is 0" in run(*rule, "-o", "new", "--cache", "full", "--cache-chunk", 0).error
    assert sorted(work.iterdir()) == before


@pytest.mark.parametrize("group", [[], ["data"], ["study"], ["bench"], ["plan"]])
def test_a_group_without_a_command_shows_its_help(group, run):
    ended = run(*group)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == run(*group, "--help").out
