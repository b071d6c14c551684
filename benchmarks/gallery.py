"""The gallery of docs/gallery.md: reports of code, of a novel and of a license, by a real model, and their pictures.

python -m benchmarks.gallery SCORES        (ten minutes on two cores; SCORES is a folder that is kept and resumed)

The novel comes from Debian's package r-cran-janeaustenr, which `apt-get download` fetches; the code is part of Python,
and the license is this project's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path
from shutil import which

import longlens
from benchmarks.tables import ROOT, write_table
from longlens.scoring.scores import Scores
from longlens.scoring.truncation import CharacterLimit

MODEL = "smollm2"  # its own evaluator: the pages show key tokens, and do not compare models
CONTEXT, STRIDE = 512, 256
MAX_CHARACTERS = 12_000
NUM_WORDS = 6
NOVEL = "r-cran-janeaustenr"
OPENING = "It is a truth universally acknowledged"
KINDS = {
    "code": "Python's `tarfile`",
    "novel": "Pride and Prejudice, Jane Austen",
    "contract": "Apache License 2.0",
}


def documents(folder: Path) -> dict[str, longlens.Document]:
    """One document of each kind; all are free to copy."""
    [code] = longlens.read_documents(["stdlib:tarfile"])
    license_text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    texts = {"code": code.text, "novel": _novel(folder), "contract": license_text}
    return {kind: longlens.Document(id=kind, text=text[:MAX_CHARACTERS]) for kind, text in texts.items()}


def _novel(folder: Path) -> str:
    """The novel from its first sentence on, from R's serialized strings: flags, length, bytes."""
    if not (file := folder / "novel.txt").exists():
        subprocess.run(["apt-get", "download", "-qq", NOVEL], cwd=folder, check=True)
        [package] = folder.glob(f"{NOVEL}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "package"], cwd=folder, check=True)
        [path] = (folder / "package").rglob("data/Rdata.rdb")
        data, lines = path.read_bytes(), []
        for start in (match.start() for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data)):
            try:
                block = zlib.decompressobj().decompress(data[start:])
            except zlib.error:
                continue
            if OPENING.encode() in block:
                lines = _strings(block)
                break
        first = next(index for index, line in enumerate(lines) if line.startswith(OPENING))
        file.write_text("\n".join(lines[first:]) + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _strings(block: bytes) -> list[str]:
    lines, at = [], block.index(b"\x00\x00\x00\x10") + 8  # a vector of strings, and its length
    while block[at + 3 : at + 4] == b"\x09":
        size = int.from_bytes(block[at + 4 : at + 8], "big")
        lines.append(block[at + 8 : at + 8 + size].decode("utf-8"))
        at += 8 + size
    return lines


def score(folder: Path) -> None:
    """Scores in float32, every kind of text in a run of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    scorer = longlens.load_scorer(MODEL, dtype="float32")
    for kind, document in documents(folder).items():
        longlens.score(
            [document],
            scorer,
            context=CONTEXT,
            stride=STRIDE,
            limit=CharacterLimit(max_characters=MAX_CHARACTERS),
            out=folder / kind / MODEL,
        )


def report(folder: Path, out: Path) -> None:
    """Writes one report per kind to the directory ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        scores = longlens.open_scores(folder / kind / MODEL)
        longlens.write_report(out / f"{kind}.html", [scores], evaluator_scores=scores)


def photograph(pages: Path, out: Path) -> None:
    """Takes screenshots of the reports in a browser, for the documentation."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = which("chromium") or which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for kind in KINDS:
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            tab.goto((pages / f"{kind}.html").resolve().as_uri())
            for _ in range(2):
                tab.click("#key-next")
            tab.wait_for_timeout(500)
            tab.screenshot(path=out / f"gallery-{kind}.png")
        browser.close()


def table(folder: Path) -> None:
    """PPL and LongPPL of each text, and the key tokens with the largest LSD."""
    rows = []
    for kind, title in KINDS.items():
        scores = longlens.open_scores(folder / kind / MODEL)
        result = longlens.perplexity(scores, evaluator_scores=scores)
        number = f"{result.num_key_tokens:,} of {result.num_tokens:,}"
        rows.append([kind, title, *(f"{value:.2f}" for value in (result.ppl, result.longppl)), number, words(scores)])
    columns = ["text", "source", "key tokens with the largest LSD", "PPL", "LongPPL", "key tokens"]
    write_table("gallery", columns, [[*row[:2], row[5], *row[2:5]] for row in rows], "docs/gallery.md", left=3)


def words(run: Scores) -> str:
    """The words that the key tokens with the largest LSD are in, each once."""
    scores, keys = run[0], longlens.select_key_tokens(run)[0]
    found: list[str] = []
    for index in sorted(keys.token_indices, key=lambda index: -scores.lsd[index]):
        start, end = scores.char_spans[index]
        around = re.search(r"\w*$", scores.text[:start])[0], re.match(r"\w*", scores.text[end:])[0]
        word = " ".join((around[0] + scores.text[start:end] + around[1]).split())
        if re.search(r"\w{3}", word) and word not in found:
            found.append(word)
    return ", ".join(f"`{word}`" for word in found[:NUM_WORDS])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    score(folder)
    report(folder, folder / "reports")
    photograph(folder / "reports", ROOT / "docs" / "figures")
    table(folder)
