"""Generates the example report, figures and reach table of docs/: twelve modules of Python's library, two models.

python -m benchmarks.report SCORES        (an hour or more on two cores; SCORES is a folder that is kept and resumed)
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which

import longlens
from benchmarks.tables import ROOT, write_table
from longlens.metrics.gains import Curve
from longlens.report import ReportSummary, summarize_runs

MODULES = ("_pydecimal", "argparse", "datetime", "difflib", "doctest", "inspect")
MODULES += ("ipaddress", "optparse", "statistics", "tarfile", "turtle", "typing")
MODEL, EVALUATOR = "smollm2", "gemma3-270m"
# The evaluator is asked where key tokens are selected: at the smallest K for the reach, at CONTEXT for the page.
CONTEXT = 1024
CONTEXTS = {MODEL: (64, 128, 256, 512, 1024, 2048), EVALUATOR: (64, CONTEXT)}
MAX_CHARACTERS = 16_000
SHOWN = "typing.py"
FIGURES = ("gain-kinds", "since-mention", "lsd-classes", "logprob-position", "reach-keys")
"""Charts that docs/report.md shows."""


def documents() -> list[longlens.Document]:
    """Code, since it is on every machine with Python, and names that were defined long before are easy to judge."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    return [longlens.Document(id=f"{name}.py", text=text) for name, text in texts.items()]


def score(out: Path, wanted: Mapping[str, Sequence[int]]) -> None:
    """Scores both models under these K, with d = K / 2; what is there already is kept."""
    from longlens.scoring.truncation import CharacterLimit

    for name, contexts in wanted.items():
        longlens.score(
            documents(),
            longlens.load_scorer(name),
            context=list(contexts),
            stride=[context // 2 for context in contexts],
            limit=CharacterLimit(max_characters=MAX_CHARACTERS),
            out=out / name,
        )


def report(folder: Path) -> None:
    """The page and its charts, and pictures of the page."""
    runs = {name: longlens.open_scores(folder / name, context=CONTEXT) for name in CONTEXTS}
    page = ROOT / "docs" / "example_report.html"
    summary = longlens.write_report(page, list(runs.values()), evaluator_scores=runs[EVALUATOR], documents=[SHOWN])
    draw(summary)
    photograph(page, ROOT / "docs" / "figures")


def draw(summary: ReportSummary) -> None:
    """Those of the charts that the page of docs shows."""
    from longlens.report.charts import charts
    from longlens.report.figures import write_figures

    shown = [chart for chart in charts(summary) if chart.name in FIGURES]
    write_figures(shown, ROOT / "docs" / "figures", formats=("svg",))


def photograph(page: Path, out: Path) -> None:
    """The answer, and the text part in light and dark and at the width of a phone, as they are in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = which("chromium") or which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, scheme, width in (("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 860})
            tab = context.new_page()
            tab.goto(page.resolve().as_uri())
            if name == "light":
                tab.wait_for_timeout(500)
                tab.screenshot(path=out / "report-answer.png", clip={"x": 0, "y": 0, "width": width, "height": 710})
            if width > 1000:
                tab.check("#beside")
            for _ in range(4):
                tab.click("#key-next")
            tab.wait_for_timeout(500)
            tab.screenshot(path=out / f"report-{name}.png")
        browser.close()


def reach(folder: Path) -> None:
    """The table and the chart of effective reach; key tokens are those of the evaluator at the smallest K."""
    model, evaluator = (longlens.open_scores(folder / name) for name in (MODEL, EVALUATOR))
    found = longlens.reach(model, evaluator_scores=evaluator)
    rows = [_row(tokens, curve) for tokens, curve in (("all", found.all), ("key", found.keys)) if curve]
    columns = ["tokens", "effective reach R", "95 % interval", "max gain, nats", "95 % interval", "tokens in S"]
    write_table("report", columns, rows, "docs/report.md")
    draw(summarize_runs([longlens.open_scores(folder / MODEL, context=CONTEXT)], evaluator_scores=evaluator))


def _row(tokens: str, curve: Curve) -> list[object]:
    from longlens.report.charts import reach_in_words

    def between(both: tuple[float, float] | None, digits: int) -> str:
        return "-" if both is None else f"{both[0]:,.{digits}f} to {both[1]:,.{digits}f}"

    gain = f"{curve.max_gain:.3f}", between(curve.max_gain_interval, 3)
    return [tokens, reach_in_words(curve), between(curve.reach_interval, 0), *gain, f"{curve.num_tokens:,}"]


if __name__ == "__main__":
    score(Path(sys.argv[1]), {name: [CONTEXT] for name in CONTEXTS})
    report(Path(sys.argv[1]))
    score(Path(sys.argv[1]), CONTEXTS)
    reach(Path(sys.argv[1]))
