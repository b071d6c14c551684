"""A real browser, pages that say whatever goes wrong in them, and scores made by hand."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from longlens import perplexity
from longlens.corpus import text_sha256
from longlens.errors import LonglensWarning
from longlens.report import ReportSummary, summarize_runs, write_report
from longlens.scoring.scores import MemoryScores, Scores, ShortContext, TokenScores
from tests.toys import manifest

SHORT = ShortContext(32, 16)
WORDS = [
    "the",
    "key",
    "a",
    "Straße",
    "naïve",
    "[x]",
    "f(x)",
    "שלום",
    "e\u0301t\u0301",
    "🙂",
    "👩\u200d👩\u200d👧",
    "long",
    "𝒳y",
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def prose(words: int, seed: int) -> str:
    """Words in lines, some of them with characters of two UTF-16 units."""
    draw = np.random.default_rng(seed)
    return "".join(word + ("\n" if draw.random() < 0.1 else " ") for word in draw.choice(WORDS, words))


def tokenized(text: str, longest: int, seed: int) -> list[tuple[int, int]]:
    """Spans of pieces of 1 to `longest` characters; some emoji are two to four tokens of one character each."""
    draw = np.random.default_rng(seed)
    spans, at = [], 0
    while at < len(text):
        if ord(text[at]) > 0xFFFF and draw.random() < 0.5:
            spans += [(at, at + 1)] * int(draw.integers(2, 5))
            at += 1
            continue
        end = min(len(text), at + int(draw.integers(1, longest + 1)))
        spans.append((at, end))
        at = end
    return spans


def row(
    text: str,
    seed: int,
    *,
    id: str,
    longest: int = 4,
    spans: Sequence[tuple[int, int]] | None = None,
    contexts: Sequence[ShortContext] = (),
    store_text: bool = True,
) -> TokenScores:
    """Scores of a text that are drawn, with some of them right at the thresholds 2 and -2."""
    spans = tokenized(text, longest, seed) if spans is None else spans
    draw = np.random.default_rng(seed)
    long = -draw.exponential(1.2, len(spans)).astype(np.float32)
    long[7::29] = -2
    long[0] = np.nan
    shorts = {}
    for short in sorted(contexts):
        logprobs = (long - draw.normal(1.0, 2.0, len(spans))).astype(np.float32)
        logprobs[5::31] = long[5::31] - 2
        logprobs[: short.context] = np.nan
        shorts[short] = logprobs
    return TokenScores(
        id=id,
        text=text if store_text else None,
        text_sha256=text_sha256(text),
        total_tokens=len(spans),
        token_ids=np.arange(len(spans), dtype=np.int64),
        char_spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        long_logprobs=long,
        short=shorts,
        selected=max(shorts, default=None),
    )


def run(texts: dict[str, str], name: str, seed: int, **options: Any) -> MemoryScores:
    """Scores of some documents by a model of this name."""
    rows = [row(text, seed * 100 + number, id=id, **options) for number, (id, text) in enumerate(texts.items())]
    return MemoryScores(rows, manifest(name))


def four_runs(texts: dict[str, str]) -> tuple[list[MemoryScores], MemoryScores]:
    """Three models, the third with short scores of its own, and an evaluator with other tokens than theirs."""
    models = [
        run(texts, "base", 1, longest=3),
        run(texts, "other", 2, longest=2),
        run(texts, "own", 3, longest=4, contexts=[SHORT]),
    ]
    return models, run(texts, "evaluator", 4, longest=7, contexts=[SHORT])


def summarized(runs: Sequence[Scores], **options: Any) -> ReportSummary:
    """The summary, without the warning that scores at a threshold give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LonglensWarning)
        return summarize_runs(runs, **options)


def report(path: Path, runs: Sequence[Scores], **options: Any) -> Path:
    """Writes a report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LonglensWarning)
        write_report(path, runs, **options)
    return path


def longppl(scores: Scores, evaluator: Scores, id: str | None = None, **rule: Any) -> tuple[float | None, int]:
    """What Python finds: LongPPL and the number of key tokens, of all documents or of one."""
    asked = scores if id is None else MemoryScores([scores.get(id)], scores.manifest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LonglensWarning)
        found = perplexity(asked, evaluator_scores=evaluator, **rule)
    return found.longppl, found.num_key_tokens or 0


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser a worker. Without it these tests fail: what they show cannot be shown in another way."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("Chromium is missing: apt-get install --no-install-recommends chromium", pytrace=False)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a report; at the end of the test nothing may have gone wrong in it, and nothing been asked of a network."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def call(path: Path, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("crash", lambda _: wrong.append("the page crashed"))
        allowed = (path.as_uri(), "data:")
        context.on("request", lambda r: None if r.url.startswith(allowed) else wrong.append(f"request: {r.url}"))
        context.on("page", lambda opened: wrong.append(f"another page: {opened.url}"))
        page.goto(path.as_uri())
        return page

    yield call
    for context in contexts:
        for page in context.pages:
            page.evaluate("new Promise((done) => setTimeout(done))")  # what is under way is reported before this
        context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Two documents, the second the shorter one."""
    return {"one": prose(400, 1), "<two> & more": prose(120, 2)}


@pytest.fixture(scope="session")
def models(texts: dict[str, str]) -> list[MemoryScores]:
    return four_runs(texts)[0]


@pytest.fixture(scope="session")
def evaluator(texts: dict[str, str]) -> MemoryScores:
    return four_runs(texts)[1]


@pytest.fixture(scope="session")
def page_file(models: list[MemoryScores], evaluator: MemoryScores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three models under the evaluator."""
    return report(tmp_path_factory.mktemp("report") / "report.html", models, evaluator_scores=evaluator)


def move(page: Page, alpha: float | None = None, beta: float | None = None, use_beta: bool | None = None) -> None:
    """Moves sliders as a user does."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value is not None:
            page.locator(f"#{name}").fill(f"{value:g}")
    if use_beta is not None:
        page.locator("#use-lcl").set_checked(use_beta)


Values = dict[str, tuple[float | None, int | None, float | None, int | None]]


def numbers(rows: Sequence[Sequence[str]]) -> Values:
    """The cells of the table of values as numbers, by the name of a model."""

    def number(cell: str, kind: type) -> Any:
        return None if cell in ("null", "–") else kind(cell.replace(",", ""))

    return {name: tuple(number(cell, (float, int)[i % 2]) for i, cell in enumerate(cells)) for name, *cells in rows}


def values(page: Page) -> Values:
    """The table of values: LongPPL and key tokens of all documents, and of this one."""
    cells = "[...row.cells].map(cell => cell.dataset.value ?? cell.textContent)"
    return numbers(page.locator("#values tbody tr").evaluate_all(f"rows => rows.map(row => {cells})"))


def classes(page: Page, pane: int = 0) -> list[list[str]]:
    """The classes of every token of a pane, in order."""
    found = page.locator(".text").nth(pane).locator(".t").evaluate_all("all => all.map(e => e.className)")
    return [each.split() for each in found]


def marked(page: Page, name: str = "key", pane: int = 0) -> list[int]:
    """The tokens of a pane that have a class."""
    return [i for i, each in enumerate(classes(page, pane)) if name in each]


def current(page: Page, pane: int = 0) -> int:
    (token,) = marked(page, "current", pane)
    return token
