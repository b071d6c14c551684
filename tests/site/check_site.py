"""Opens every page of the built documentation in Chromium: python tests/site/check_site.py SITE

Fails if a page has an error, an image that does not load, or a link to a page or heading that does not exist, or if the
search does not find LongPPL. Links to other hosts are not followed.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 390)
LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.href)"
ANCHORS = "[...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)"
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def target(site: Path, path: str) -> Path:
    """The file that the server returns for a path."""
    found = site / unquote(path).lstrip("/")
    return found / "index.html" if found.is_dir() else found


def check_pages(page: Page, address: str, site: Path) -> list[str]:
    """Faults of all pages."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.on("console", lambda m: faults.append(f"{page.url}: {m.text}") if m.type == "error" else None)
    links: dict[str, set[str]] = {}
    anchors: dict[Path, set[str]] = {}
    pages = [file for file in sorted(site.rglob("*.html")) if file.name != "404.html"]
    for file in pages:
        url = f"{address}/{file.relative_to(site).as_posix()}"
        page.goto(url.removesuffix("index.html"), wait_until="load")
        anchors[file] = set(page.evaluate(ANCHORS))
        for link in page.evaluate(LINKS):
            links.setdefault(link, set()).add(url)
        faults += [f"{url}: image {source} does not load" for source in page.evaluate(BROKEN)]
    for link, sources in links.items():
        parts = urlsplit(link)
        if not link.startswith(address):
            continue
        file = target(site, parts.path)
        anchor = unquote(parts.fragment)
        if not file.is_file():
            faults.append(f"{min(sources)}: link to {parts.path}, which does not exist")
        # The example report reads its fragment itself.
        elif anchor and "=" not in anchor and file in anchors and anchor not in anchors[file]:
            faults.append(f"{min(sources)}: link to {parts.path}#{anchor}, a heading that does not exist")
    print(f"{len(pages)} pages, {len(links)} links")
    return faults


def check_search(page: Page, address: str) -> list[str]:
    """Faults of the search, on a wide and on a narrow screen."""
    faults = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{address}/", wait_until="load")
        page.keyboard.press("/")
        page.keyboard.type("LongPPL", delay=30)
        found = page.locator("a[href]:visible", has=page.locator("mark", has_text="LongPPL"))
        try:
            found.first.wait_for(timeout=10_000)
        except Exception as error:  # noqa: BLE001  # playwright's, with its reason
            faults.append(f"the search does not find LongPPL at {width} pixels: {str(error).splitlines()[0]}")
    return faults


def main(site: Path) -> int:
    """Returns the exit code."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not (site / "index.html").exists() or chromium is None:
        print(f"{site} has no index.html, or Chromium is missing: run make docs, and make browser")
        return 1
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTHS[0], "height": 800})
        faults = check_pages(page, address, site) + check_search(page, address)
        browser.close()
    server.shutdown()
    print("\n".join(faults) or "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
