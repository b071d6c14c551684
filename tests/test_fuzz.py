"""Damaged and hostile input of every kind: a result, or one short line that says what is wrong; never anything else.

Each case is made from real input by a seeded mutation, so that a failure names the seed that repeats it.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import longlens
from longlens.bench.results import grade_predictions, summarize, summarize_run
from longlens.bench.samples import read_sample_file
from longlens.bench.table import results_table
from longlens.cli import main
from longlens.corpus import Document, read_documents
from longlens.data.chat import ChatSettings, chat_rows
from longlens.data.documents import Framing, read_dataset_rows
from longlens.data.mixture import pack_folder
from longlens.data.packing import BestFit, pack
from longlens.data.recipe import read_mixture
from longlens.data.store import check_rows
from longlens.data.weigh import weigh_folder
from longlens.errors import UserError
from longlens.evaluation import evaluate_longppl
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.models import load_scorer
from longlens.rope.settings import parse_method
from longlens.scoring.reader import open_scores
from longlens.settings.options import Reading
from longlens.settings.recipe import presets
from longlens.study import published
from longlens.study.published.beside import beside, read_models
from longlens.study.published.show import notes_of, table_rows, to_json
from longlens.study.reproduce import read_study
from longlens.tokenization import decoder_of
from longlens.train.recipe import read_recipe
from tests.tiny import byte_tokenizer

DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
HOSTILE: list[Any] = [None, True, -1, 0, 7, 2**31, 10**30, 1.5, 1e308, float("nan"), "", "x", "\ud800", "\0\x1b[31m"]
HOSTILE += ["long " * 4000, "1" * 5000, [], {}, [None], [[]], ["a", 1], {"a": {"b": []}}, DEEP, [-(2**63)], "../../x"]
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"[" * 3000,
    b"1" * 5000,
    b"null",
    b"NaN",
    b'"',
    b"}",
    b"\n",
    b"\xef\xbb\xbf",
    b"\\ud800",
]


def text_of(seed: int, words: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(["time", "Straße", "🙂", "it\nwas", "best", "of"]) for _ in range(words))


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes that were flipped, taken out, put in, repeated or cut off."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        some = rng.randrange(1, 20)
        data = rng.choice(
            [
                data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
                data[:at] + data[at + some :],
                data[:at] + rng.choice(BYTES) + data[at:],
                data[:at] + data[at : at + some] * 3 + data[at + some :],
                data[:at],
            ]
        )
    return data


def changed(rng: random.Random, value: Any, hostile: list[Any]) -> Any:
    """A JSON value with another value, key or length somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        some = rng.random()
        if some < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if some < 0.15:
            return {**value, rng.choice(["x" * 5000, "", "\n", "id", "type"]): rng.choice(hostile)}
        return {**value, key: changed(rng, value[key], hostile)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        some = rng.random()
        if some < 0.2:
            return value[:at] + value[at + 1 :]
        if some < 0.3:
            return [*value[:at], rng.choice(hostile), *value[at:]]
        return [*value[:at], changed(rng, value[at], hostile), *value[at + 1 :]]
    return rng.choice(hostile)


def mutated(rng: random.Random, name: str, data: bytes, hostile: list[Any]) -> bytes:
    """A file's content, damaged as bytes or changed as what it holds."""
    if rng.random() < 0.4:
        return damaged(rng, data)
    if name.endswith(".gz"):
        return gzip.compress(mutated(rng, name[:-3], gzip.decompress(data), hostile))
    if name.endswith(".json"):
        return json.dumps(changed(rng, json.loads(data), hostile)).encode()
    if name.endswith(".jsonl"):
        lines = data.split(b"\n")
        at = rng.randrange(len(lines) - 1)
        lines[at] = json.dumps(changed(rng, json.loads(lines[at]), hostile)).encode()
        return b"\n".join(lines)
    if name.endswith(".yaml"):
        value = changed(rng, yaml.safe_load(data), [v for v in hostile if v != "\ud800"])
        return yaml.safe_dump(value, allow_unicode=False).encode()
    if name.endswith(".parquet"):
        return changed_table(rng, data, hostile)
    return damaged(rng, data)


def changed_table(rng: random.Random, data: bytes, hostile: list[Any]) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    rows = table.to_pylist()
    at = rng.randrange(len(rows))
    rows[at] = changed(rng, rows[at], hostile)
    schema = table.schema
    for kept in (True, False):
        try:
            made = pa.Table.from_pylist(rows, schema=schema if kept else None)
        except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
            continue
        out = io.BytesIO()
        pq.write_table(made, out, write_page_checksum=True)
        return out.getvalue()
    return damaged(rng, data)


class Kind(NamedTuple):
    """A kind of input: its files, and what reads them."""

    files: list[str]
    read: Callable[[], Any]
    number: int
    hostile: list[Any] = HOSTILE


def write_rows(name: str, rows: list[dict[str, Any]]) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


TEXTS = [{"text": text_of(n), "id": f"d{n}", "answer_spans": [[0, 3]], "meta": {"n": [n]}} for n in range(4)]
TOKENIZED = [{"input_ids": list(range(n, n + 20)), "labels": [-100, *range(n + 1, n + 20)]} for n in range(4)]
for row in TOKENIZED:
    row |= {"token_weights": [1.0] * 20, "short_logprobs": [None, *[-1.0] * 19]}
CALL = {"function": {"name": "f", "arguments": {"city": "B"}}}
CHAT = [
    {
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": f"here {n}", "tool_calls": [CALL]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    for n in range(3)
]
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + m.content }}{{ m.tool_calls | tojson if m.tool_calls }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant{% endif %}"
)
SMALL = [None, True, -1, 0, 7, 300, 1.5, float("nan"), "", "x", "long " * 4000, "1" * 5000, [], {}, [None], DEEP]


def kinds_of_data() -> Iterator[tuple[str, Kind]]:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    framing = Framing(tokenizer)

    def documents(name: str, **options: Any) -> Callable[[], Any]:
        def read() -> None:
            decoder = decoder_of(tokenizer) if options else None
            for document in read_documents([name], Reading(**options), decoder=decoder):
                assert document.text.strip()
                document.text.encode()

        return read

    def tokens(name: str) -> Callable[[], Any]:
        def read() -> None:
            for columns in pack(map(framing.frame_row, read_dataset_rows([name], Reading())), 64, packing=BestFit()):
                assert len({len(values) for values in columns.values()}) == 1
                assert columns["input_ids"].max() < 258

        return read

    Path("a.txt").write_text(text_of(0))
    yield "text", Kind(["a.txt"], documents("a.txt"), 300)
    for name in ("a.jsonl", "a.parquet"):
        yield name, Kind([write_rows(name, TEXTS)], documents(name), 300)
    Path("a.json").write_text(json.dumps(TEXTS))
    yield "a.json", Kind(["a.json"], documents("a.json"), 300)
    Path("b.jsonl.gz").write_bytes(gzip.compress(Path("a.jsonl").read_bytes()))
    yield "b.jsonl.gz", Kind(["b.jsonl.gz"], documents("b.jsonl.gz"), 200)
    for name in ("t.jsonl", "t.parquet"):
        yield f"tokens of {name}", Kind([write_rows(name, TOKENIZED)], tokens(name), 300)
        yield f"texts of {name}", Kind([name], documents(name, tokenized_with="t"), 200)
    for name in ("c.jsonl", "c.parquet"):
        read = partial(read_chat, name, tokenizer)
        yield f"chat {name}", Kind([write_rows(name, CHAT)], read, 200)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
    Path("factors.json").write_text(json.dumps(factors))
    longrope = {"factor": 4.0, "factors": "factors.json"}
    yield "factors", Kind(["factors.json"], lambda: parse_method("longrope", longrope), 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets.Dataset.from_list(TEXTS).save_to_disk("s")
    yield "saved dataset", Kind([path.as_posix() for path in Path("s").iterdir()], documents("hf:s"), 100)
    write_rows("d/test.parquet", TEXTS)
    Path("d/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: [{split: test, path: test.parquet}]\n---\n# Card\n"
    )
    yield "hf folder", Kind(["d/test.parquet", "d/README.md"], documents("hf:d"), 60)


def read_chat(name: str, tokenizer: Any) -> None:
    for row in chat_rows([name], tokenizer, ChatSettings(max_length=500)):
        assert len(row["input_ids"]) == len(row["labels"])


def check(name: str, kind: Kind) -> None:
    """Mutates the files one at a time; whatever is no UserError of one short line is collected and shown."""
    contents = {file: Path(file).read_bytes() for file in kind.files}
    kind.read()
    wrong = []
    refused = 0
    for number in range(kind.number):
        rng = random.Random(f"{name} {number}")
        file = rng.choice(kind.files)
        Path(file).write_bytes(mutated(rng, file, contents[file], kind.hostile))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read()
        except UserError as error:
            refused += 1
            if not (str(error).isprintable() and len(str(error)) < 600):
                wrong.append(f"{number} ({file}): {len(str(error))} characters: {str(error)[:300]!r}")
        except BaseException as error:  # a panic of a Rust extension is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"{number} ({file}): {type(error).__name__}: {str(error)[:300]!r}")
        finally:
            Path(file).write_bytes(contents[file])
    kind.read()
    assert not wrong, f"{name}: {len(wrong)} of {kind.number}\n" + "\n".join(wrong[:8])
    assert refused > kind.number / 20, (
        f"{name}: {refused} of {kind.number} were refused, so hardly anything was damaged"
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


def test_data(place: Path, subtests: Any) -> None:
    for name, kind in kinds_of_data():
        with subtests.test(name):
            check(name, kind)


def kinds_of_folders(model: Path) -> Iterator[tuple[str, Kind]]:
    """What our own commands write, and somebody else may have changed."""
    tokenizer = byte_tokenizer()
    documents = [Document(id=f"d{n}", text=text_of(n, 30)) for n in range(4)]
    write_rows("docs.jsonl", [{"id": d.id, "text": d.text} for d in documents])
    scorer = load_scorer(str(model))
    scores = longlens.score(documents, scorer, context=16, stride=8, out="run")
    write_keys("keys.jsonl", longlens.select_key_tokens(scores, alpha=0.01, beta=-20))
    weigh_folder(["docs.jsonl"], scores, "weighed")
    pack_folder(["weighed"], tokenizer, "packed", length=512, packing=BestFit())

    def perplexity(**options: Any) -> None:
        opened = open_scores("run")
        for scored in opened:
            assert len(scored.long_logprobs) == len(scored.short_logprobs) == len(scored.token_ids)
        result = longlens.perplexity(opened, **options)
        assert result.num_tokens <= sum(len(scored.token_ids) for scored in opened)

    def keys() -> None:
        longlens.perplexity(scores, keys=read_keys("keys.jsonl"))

    def weighed() -> None:
        shutil.rmtree("out", ignore_errors=True)
        pack_folder(["weighed"], tokenizer, "out", length=512, packing=BestFit())
        check_rows(Path("out/data"), 258)

    def in_table() -> None:
        own = beside(published.table(5), read_models([Path("longppl")]))
        assert [table_rows(own.table, own), list(notes_of(own.table, own)), json.dumps(to_json(own.table, own))]

    def parts(folder: str) -> list[str]:
        return sorted(path.as_posix() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock")

    evaluate_longppl(documents, str(model), "longppl", evaluator=str(model.parent / "other"), context=16, stride=8)
    yield "published", Kind(["longppl/perplexity.json", "longppl/model/manifest.json"], in_table, 300)
    yield "keys", Kind(["keys.jsonl"], keys, 300)
    yield "run", Kind(parts("run"), partial(perplexity, evaluator_scores=scores), 300)
    yield "weighed", Kind(parts("weighed"), weighed, 200)
    yield (
        "packed",
        Kind([path for path in parts("packed") if path.endswith(".parquet")], partial(packed, "packed"), 200),
    )


def packed(folder: str) -> None:
    check_rows(Path(folder, "data"), 258)


def test_folders(place: Path, models: Path, subtests: Any) -> None:
    for name, kind in kinds_of_folders(models / "llama"):
        with subtests.test(name):
            check(name, kind)


@pytest.mark.parametrize("damage", ["shorter", "longer", "null"])
def test_lists_of_another_length_are_never_read(place: Path, models: Path, damage: str) -> None:
    """Every list of every row that has several, with checksums that are right."""
    kinds = dict([*kinds_of_folders(models / "llama"), *kinds_of_data()])
    for name in ("run", "weighed", "packed", "tokens of t.parquet"):
        for file in (file for file in kinds[name].files if file.endswith(".parquet")):
            content = Path(file).read_bytes()
            table = pq.read_table(io.BytesIO(content))
            for at, field in enumerate(table.schema):
                values = table[field.name].to_pylist()
                if not pa.types.is_list(field.type) or values[1] is None:  # answer_spans of documents without
                    continue
                values[1] = {"shorter": values[1][:-1], "longer": values[1] + values[1][-1:], "null": None}[damage]
                wrong = table.set_column(at, field, pa.array(values, field.type))
                pq.write_table(wrong, file, write_page_checksum=True)
                try:
                    kinds[name].read()
                except UserError:
                    continue
                pytest.fail(f"{name}: {field.name} of {file} was read")
            Path(file).write_bytes(content)


def kinds_of_benchmarks(model: Path) -> Iterator[tuple[str, Kind]]:
    asked = ["niah_single_1", "niah_multivalue", "--length", "1024", "--samples", "2"]
    assert main(["bench", "build", *asked, "--tokenizer", str(model), "-o", "samples.jsonl"]) == 0
    samples = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
    write_rows("said.jsonl", [{"id": row["id"], "prediction": " ".join(row["answers"])} for row in samples])
    arguments = ["--model", str(model), "--template", "none", "-o", "bench"]
    assert main(["bench", "run", *asked, *arguments]) == 0

    def grade() -> None:
        graded = grade_predictions(read_sample_file(Path("samples.jsonl")), Path("said.jsonl"))
        summarize(graded)

    def summary() -> None:
        found = summarize_run("bench")
        json.dumps(found, allow_nan=False)  # what --json prints
        results_table({"bench": found})

    yield "samples and predictions", Kind(["samples.jsonl", "said.jsonl"], grade, 300)
    files = sorted(path.as_posix() for path in Path("bench").rglob("*.json*"))
    yield "bench run", Kind([file for file in files if not file.endswith("results.json")], summary, 300)


def test_benchmarks(place: Path, models: Path, subtests: Any) -> None:
    for name, kind in kinds_of_benchmarks(models / "llama"):
        with subtests.test(name):
            check(name, kind)


def recipe_text(folder: str, name: str) -> str:
    return resources.files("longlens").joinpath("recipes", folder, f"{name}.yaml").read_text(encoding="utf-8")


def kinds_of_recipes() -> Iterator[tuple[str, Kind]]:
    folders: dict[str, Callable[[str], Callable[..., Any]]] = {
        "train": lambda name: read_recipe,
        "mixtures": lambda name: read_mixture,
        "studies": lambda name: partial(read_study, name),
    }
    for folder, read in folders.items():
        for number, name in enumerate(presets(folder)):
            content = recipe_text(folder, name)
            file = f"{folder}-{number}.yaml"
            Path(file).write_text(content)
            options = {"length": 2**19, "tokens": 10**9} if folder == "mixtures" else {}
            yield f"{folder}/{name}", Kind([file], partial(read(name), file, **options), 40)


def test_recipes(place: Path, subtests: Any) -> None:
    for name, kind in kinds_of_recipes():
        with subtests.test(name):
            check(name, kind)


def kinds_of_models(model: Path) -> Iterator[tuple[str, Kind]]:
    shutil.copytree(model, "model")
    document = [Document(id="a", text=text_of(1, 8))]

    def score() -> None:
        scores = longlens.score(document, load_scorer("model"), context=16, stride=8)
        assert len(scores[0].long_logprobs) == len(scores[0].char_spans)

    # Not the numbers that would make a model of any size.
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        yield file, Kind([f"model/{file}"], score, 40, SMALL)
    yield "weights", Kind(["model/model.safetensors"], score, 30)


def test_models(place: Path, models: Path, subtests: Any) -> None:
    for name, kind in kinds_of_models(models / "llama"):
        with subtests.test(name):
            check(name, kind)
