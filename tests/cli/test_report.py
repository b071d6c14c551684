"""`longlens report` from the command line: the page, its figures, its JSON, and what it refuses."""

import os
from pathlib import Path

import pytest

from longlens import open_scores, perplexity
from longlens.files import replacing


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_page_is_written_and_says_how_much_it_shows(scored, run):
    shown = run("report", scored / "llama", "--evaluator-scores", scored / "other", "-o", "report.html")
    assert shown.code == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "2 of 2 documents with their text" in shown.out
    again = run("report", scored / "llama", "--num-documents", 1, "-o", "report.html")  # replaces the report
    assert "1 of 2 documents" in again.out
    assert "no evaluator was named" in again.err


def test_the_json_holds_what_the_page_shows(scored, run):
    arguments = ("report", scored / "llama", scored / "other", "--evaluator-scores", scored / "other")
    found = run.json(*arguments, "--alpha", 0.0, "--beta", -9, "-o", "report.html")
    model, evaluator = open_scores(scored / "llama"), open_scores(scored / "other")
    with pytest.warns(match="within"):
        expected = perplexity(model, evaluator_scores=evaluator, alpha=0.0, beta=-9)
    assert found["results"][0]["longppl"] == expected.longppl
    assert [result["name"] for result in found["results"]] == [
        found["results"][0]["model"],
        found["results"][1]["model"],
    ]
    assert found["pairs"][0]["log_longppl"]["value"] is not None
    assert (found["report"], found["documents"]) == ("report.html", model.ids)


def test_figures_go_with_it(scored, run):
    shown = run("report", scored / "llama", "-o", "report.html", "--figures", "figures")
    files = {path.name for path in Path("figures").iterdir()}
    assert {"lsd-classes.png", "lsd-classes.svg", "logprob-position.svg", "key-share-position.png"} <= files
    assert all(str(Path("figures") / name) in shown.out for name in files)


def test_benchmarks_are_drawn_against_longppl(scored, run):
    names = [open_scores(scored / run_).manifest["model"]["name"] for run_ in ("llama", "other")]
    Path("scores.csv").write_text(f'model,RULER\n"{names[0]}",40.5\n"{names[1]}",20\n')
    arguments = ("report", scored / "llama", scored / "other", "--evaluator-scores", scored / "other")
    found = run.json(*arguments, "--benchmarks", "scores.csv", "-o", "report.html", "--figures", "figures")
    assert found["benchmarks"] == {"RULER": {"llama": 40.5, "other": 20.0}}
    assert Path("figures/ppl-1-ruler.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{scored}/nosuch", "-o", "r.html"], "nosuch"),
        (["{scored}/llama", "-o", "nosuch/r.html"], "nosuch is not a folder: create it"),
        (
            ["{scored}/llama", "-o", "notes.txt"],
            "notes.txt exists and is not a report of longlens: use another file name",
        ),
        (["{scored}/llama", "-o", "."], ". exists and is not a report of longlens"),
        (["{scored}/llama", "--document", "nosuch", "-o", "r.html"], "document 'nosuch' was not scored"),
        (["{scored}/llama", "--num-documents", "0", "-o", "r.html"], "--num-documents is 0; expected at least 1"),
        (["{scored}/llama", "--context", "7", "-o", "r.html"], "no scores at K=7"),
        (["{scored}/llama", "--alpha", "nan", "-o", "r.html"], "--alpha is nan, expected a finite number"),
        (["{scored}/llama", "--benchmarks", "notes.txt", "-o", "r.html"], "notes.txt begins with ['mine']"),
        (["{scored}/llama", "--figures", "nosuch/figures", "-o", "r.html"], "nosuch is not a folder"),
    ],
)
def test_refusals(arguments, message, scored, run):
    Path("notes.txt").write_text("mine")
    before = sorted(os.listdir("."))
    assert message in run("report", *[argument.format(scored=scored) for argument in arguments]).error
    assert Path("notes.txt").read_text() == "mine"
    assert sorted(os.listdir(".")) == before


def test_a_full_disk_leaves_the_old_report(scored, run, monkeypatch):
    run("report", scored / "llama", "-o", "report.html")
    before = Path("report.html").read_bytes()

    def full(path):
        def write(pieces):
            raise OSError(28, "No space left on device")

        opened = replacing(path)
        file = opened.__enter__()
        file.writelines = write
        return _Again(opened, file)

    monkeypatch.setattr("longlens.report.html.replacing", full)
    assert "No space left on device" in run("report", scored / "llama", "-o", "report.html").error
    assert Path("report.html").read_bytes() == before
    assert os.listdir(".") == ["report.html"]


class _Again:
    """A context that was entered already."""

    def __init__(self, opened, file):
        self.opened, self.file = opened, file

    def __enter__(self):
        return self.file

    def __exit__(self, *error):
        return self.opened.__exit__(*error)


def test_without_matplotlib_only_the_figures_are_refused(scored, run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("report", scored / "llama", "-o", "report.html").code == 0
    refused = run("report", scored / "llama", "-o", "other.html", "--figures", "figures")
    assert (
        "--figures needs the package 'matplotlib', which is not installed: pip install 'longlens[figures]'"
        in refused.error
    )
    assert not Path("other.html").exists()


def test_a_folder_of_longppl_has_its_evaluator_and_its_thresholds(work, run):
    arguments = ("longppl", "a.txt", "b.txt", "--evaluator", "other", "--context", 8, "--stride", 4, "--alpha", 0.5)
    found = run.json(*arguments, "--beta", -9, "--model", "llama", "-o", "r")
    page = run.json("report", "r", "-o", "report.html")
    assert page["results"][0]["longppl"] == found["longppl"]
    assert page["results"][0]["num_key_tokens"] == found["num_key_tokens"] > 0
    assert page["evaluator"] == found["evaluator"]
    assert page["results"][0]["settings"]["alpha"] == 0.5
    assert page["answer"][0].startswith(f"{found['model']}: LongPPL {found['longppl']:,.2f} on ")
    assert run.json("report", "r", "--alpha", 1, "-o", "report.html")["results"][0]["settings"]["alpha"] == 1
    assert run.json(*arguments, "--model", "other", "-o", "s")["evaluator"] == found["evaluator"]
    both = run.json("report", "r", "s", "-o", "report.html")
    assert all(each["longppl"] is not None for each in both["results"])
    arguments = ("longppl", "a.txt", "b.txt", "--evaluator", "self", "--context", 8, "--stride", 4)
    assert run.json(*arguments, "--model", "llama", "-o", "t")
    assert run.json("report", "t", "-o", "report.html")["evaluator"] == found["model"]
    refused = run("report", "r", "t", "-o", "report.html")
    assert "r and t have different evaluators: select one with --evaluator-scores r/evaluator" in refused.error


def test_open_shows_the_page_in_a_browser(scored, run, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run("report", scored / "llama", "-o", "report.html", "--open").code == 0
    assert opened == [Path("report.html").resolve().as_uri()]
