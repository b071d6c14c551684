"""``longlens data mix``, ``pack``, ``weigh`` and ``qa`` as a user has them."""

import json
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest

RECIPE = "length: 32\ntokens: 320\nsources:\n  a: {weight: 50, path: a.txt}\n  b: {weight: 50}\n"


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def recipe(work):
    (work / "recipe.yaml").write_text(RECIPE)
    return work


MIX = ("data", "mix", "recipe.yaml", "--tokenizer", "llama", "--source", "b=b.txt", "-o", "out")
QA = (
    "data",
    "qa",
    "a.txt",
    "b.txt",
    "--model",
    "llama",
    "--passage-tokens",
    "50",
    "--max-new-tokens",
    "4",
    "-o",
    "out",
)
PACK = ("data", "pack", "a.txt", "b.txt", "--tokenizer", "llama", "--length", "64", "-o", "out")


@pytest.mark.parametrize("command", ["mix", "pack", "weigh", "qa"])
def test_help_has_an_example_with_options_that_there_are(command, run):
    ended = run("data", command, "--help")
    assert (ended.code, ended.err) == (0, "")
    example = ended.out[ended.out.index(f"Example: longlens data {command} ") : ended.out.index("Arguments:")].split()
    for option in (word for word in example if word.startswith("-")):
        assert f" {option} " in ended.out.split("Options:")[1].replace(",", " "), option


def test_help_lists_the_commands(run):
    shown = run("data", "--help").out
    assert all(f"\n  {command} " in shown for command in ("mix", "pack", "weigh", "qa"))
    assert "\n  data " in run("--help").out


def test_help_imports_nothing_heavy():
    program = (
        "import sys, longlens.cli\nlonglens.cli.main(['data', 'mix', '--help'])\n"
        "print({'torch', 'transformers', 'pyarrow', 'datasets', 'longlens.data'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    program = "import sys, longlens\nprint('longlens.data' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_mix(recipe, run):
    found = run.json(*MIX)
    assert found.keys() == {"schema_version", "out", "rows", "tokens", "input_ids_sha256", "sources"}
    assert (found["rows"], found["tokens"]) == (10, 320)
    assert [source["rows"] for source in found["sources"].values()] == [5, 5]
    assert json.loads((recipe / "out" / "counts.json").read_text()).items() <= found.items()
    again = run(*MIX)
    assert (again.code, again.err) == (0, """next: longlens train RECIPE --set 'data={"packed": "out"}' -o RUN\n""")
    assert "10 rows, 320 tokens in out" in again.out
    assert run.json(*MIX, "--length", "16", "--tokens", "1.6e2", "--seed", "3", "-o", "out2")["rows"] == 10


def test_pack(work, run):
    found = run.json(*PACK)
    assert (found["documents"], found["split_documents"], found["left_tokens"]) == (2, 2, 0)
    rows = pq.read_table("out/data").to_pylist()
    assert sum(len(row["input_ids"]) for row in rows) == found["row_tokens"] == found["tokens"]
    shown = run(*PACK[:-1], "out2", "--packing", "fill", "--drop-remainder")
    assert shown.code == 0
    assert "left tokens" in shown.out
    assert {len(row["input_ids"]) for row in pq.read_table("out2/data").to_pylist()} == {64}


def test_weigh_and_pack(scored, models, run, tmp_path, monkeypatch):
    monkeypatch.chdir(scored)  # ids are names as they were given
    docs = ["a.txt", "b.txt"]
    found = run.json("data", "weigh", *docs, "--scores", scored / "llama", "-o", tmp_path / "weighed")
    assert found["documents"] == 2
    assert found["mean_weight"] > 0
    next_step = run("data", "weigh", *docs, "--scores", scored / "llama", "-o", tmp_path / "weighed")
    assert (
        next_step.err.splitlines(keepends=True)[-1]
        == f"next: longlens data pack {tmp_path / 'weighed'} --tokenizer MODEL --length LENGTH -o PACKED\n"
    )
    arguments = ("--tokenizer", models / "llama", "--length", "1000", "-o", tmp_path / "packed")
    packed = run.json("data", "pack", tmp_path / "weighed", *arguments)
    assert packed["tokens"] == found["tokens"] + 4  # BOS and EOS of two documents
    (row,) = datasets.load_dataset(str(tmp_path / "packed"), split="train", cache_dir=str(tmp_path / "cache"))
    weights = [w for row in pq.read_table(tmp_path / "weighed/data").to_pylist() for w in (1, *row["token_weights"], 1)]
    assert row["token_weights"] == weights
    short = run.json("data", "weigh", *docs, "--scores", scored / "llama", "--short-logprobs", "-o", tmp_path / "short")
    assert short["without_short_score"] == 64
    other = ("--tokenizer", models / "other", "-o", tmp_path / "same")
    same = run.json("data", "weigh", *docs, "--scores", scored / "llama", *other)
    assert same["mean_weight"] == found["mean_weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "mix"], "Missing argument "),
        (
            ["data", "mix", "nosuch", "--tokenizer", "llama", "-o", "out"],
            "no recipe 'nosuch': pass a YAML file, or one",
        ),
        ([*MIX, "--source", "c=a.txt"], "--source: recipe.yaml has no source 'c'"),
        ([*MIX, "--source", "b=b.txt"], "--source b occurs twice: pass one path per source"),
        ([*MIX, "--source", "b"], "--source is 'b'; expected NAME=PATH, such as --source books=/data/books"),
        ([*MIX, "--tokens", "lots"], "--tokens is 'lots'; expected an integer, such as 65536 or 1e9"),
        ([*MIX, "--tokens", "31"], "recipe.yaml: tokens is 31, less than one row of 32: use more, such as 1e9"),
        ([*MIX, "--length", "1"], "recipe.yaml: length is 1; expected at least 2"),
        ([*MIX, "--tokens", "1e6"], "the source a (a.txt) gives 6 rows of 32 tokens, and its share of 50 % is 15,625"),
        ([*MIX[:5], "-o", "out"], "the source b has no path: pass --source b=PATH, a file, a folder or hf:NAME"),
        ([*MIX[:-1], "llama"], "llama is not empty and contains no dataset (it has 'config.json'): use a new folder"),
        ([*MIX[:-1], "a.txt"], "a.txt is a file; expected a directory for the dataset, such as --out packed"),
        ([*PACK, "--packing", "tight"], "--packing is 'tight'; expected fill or best-fit"),
        (
            [*PACK, "--drop-remainder"],
            "--packing best-fit has no remainder to drop, as fill has: leave --drop-remainder out",
        ),
        ([*PACK, "--too-long", "x"], "--too-long is 'x'; expected split, cut or drop"),
        ([*PACK, "--min-tokens", "999"], "no row was made of 2 documents with "),
        ([*PACK, "--tokenized"], "'a.txt' is not a .jsonl, .json or .parquet file"),
        (
            ["data", "pack", "nosuch", *PACK[4:]],
            "no such file or folder: 'nosuch'; a dataset on the Hub is written hf:",
        ),
        ([*QA, "--pairs", "0"], "--pairs is 0; expected at least 1 of each document"),
        ([*QA, "--max-length", "99"], "--max-length is 99 and --passage-tokens 50: expected at least twice as many"),
        ([*QA, "--max-new-tokens", "0"], "--max-new-tokens is 0; expected at least 1, such as 256"),
        ([*QA, "--model", "nosuch/"], "no such model: 'nosuch/' is neither a folder, a .gguf file nor a Hub id"),
        (["data", "qa", "nosuch", *QA[4:]], "no such file or folder: 'nosuch'; a dataset on the Hub is written hf:"),
        ([*QA, "--split", ""], "--split would have no effect without an hf: dataset: leave it out"),
        ([*QA[:-1], "llama"], "llama is not empty and contains no dataset (it has 'config.json'): use a new folder"),
        (
            ["data", "weigh", "a.txt", "--scores", "nosuch", "-o", "out"],
            "no such directory: nosuch. Create scores with: ",
        ),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, recipe, run):
    before = everything(recipe)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert everything(recipe) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gamma", "0"], "--gamma is 0.0, expected a finite number above 0: it is the maximum weight of a token"),
        (
            ["--gamma", "2", "--short-logprobs"],
            "--gamma would have no effect with --short-logprobs, which writes no weights",
        ),
        (
            ["--tokenized", "--tokenizer", "x"],
            "--tokenizer applies to texts, but --tokenized rows contain tokens: leave",
        ),
        (["--context", "9"], "no scores at K=9; scored short contexts: K=32, d=16. Score with --context 9"),
    ],
)
def test_options_of_weigh(options, message, scored, run, tmp_path, monkeypatch):
    monkeypatch.chdir(scored)
    arguments = ("data", "weigh", "a.txt", "--scores", "llama", "-o", tmp_path / "out", *options)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_other_documents_than_were_scored(scored, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("other words")
    (tmp_path / "c.txt").write_text("not scored")
    for document, message in [
        ("a.txt", "document 'a.txt' has the id 'a.txt' and another text than was scored: score the same texts"),
        ("c.txt", "document 'c.txt' has the id 'c.txt', which was not scored (2 documents were): score the same"),
    ]:
        error = run("data", "weigh", document, "--scores", scored / "llama", "-o", "out").error
        assert error.startswith(f"error: {message}")
        assert not (tmp_path / "out").exists()


def test_qa(work, run, monkeypatch):
    from longlens.models.generate import Completion, TransformersGenerator

    def written(self, prompts):
        return [
            Completion("Question: Which times?\nAnswer: The best." if "best" in p else "No.", True) for p in prompts
        ]

    monkeypatch.setattr(TransformersGenerator, "generate", written)
    found = run.json(*QA)
    assert found == {
        "schema_version": 1,
        "out": "out",
        "documents": 2,
        "pairs": 2,
        "rows": 1,
        "cut_rows": 0,
        "refused": {"no question": 1},
    }
    (row,) = (json.loads(line) for line in (work / "out" / "train.jsonl").read_text().splitlines())
    text = (work / "a.txt").read_text()
    assert row["messages"][0]["content"] == f"{text}\n\nWhich times?"
    assert row["generator"] == "llama"
    (kept,) = datasets.load_dataset(str(work / "out"), split="train", cache_dir=str(work / "cache"))
    assert kept["messages"] == row["messages"]
    again = run(*QA)
    assert again.code == 0
    assert again.out.splitlines()[-1] == "1 of 2 pairs on 2 documents, 0 cut, in out"
    assert "no question" in again.out
    assert run(*QA, "--seed", "1").error.startswith("error: out contains a different dataset: seed is 0 there and 1")
    options = ("--grounded", "--pairs", "3", "--max-length", "150", "--tokenizer", "other", "-o", "out2")
    other = run.json(*QA, *options)
    assert (other["rows"], other["cut_rows"]) == (3, 3)


def test_qa_refuses_torchrun(work, run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*QA).error == "error: longlens data qa runs in one process: start it without torchrun"
    monkeypatch.setenv("RANK", "1")
    other = run(*QA)
    assert (other.code, other.err) == (2, "")
    assert not (work / "out").exists()


def test_qa_with_what_a_model_writes(work, run):
    """A random one, which writes no pair."""
    ended = run(*QA)
    assert ended.code == 0
    assert "0 of 2 pairs on 2 documents" in ended.out
    assert "warning: none of 2 pairs was accepted (" in ended.err
    assert "0 pairs, 2 rejected" in ended.err
    lines = [json.loads(line) for line in (work / "out" / "refused.log").read_text().splitlines()]
    assert [line["document_id"] for line in lines] == ["a.txt", "b.txt"]
    assert all(line["text"] for line in lines)
