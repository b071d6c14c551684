import re
import socket
from dataclasses import replace

import numpy as np
import pytest

from longlens.keytokens import select_key_tokens
from longlens.keytokens.alignment import tokens_in_runs
from longlens.scoring.scores import MemoryScores, names_of
from tests.reference import report as naive
from tests.report import conftest as made
from tests.report.conftest import SHORT, classes, longppl, marked, report, values

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

HOSTILE = [
    "<script>window.pwned = 1; alert(1)</script>",
    "</script><script>window.pwned = 1</script>",
    "<!-- <script>",
    "-->]]>",
    "\"'&amp;`\\",
    "' onmouseover='window.pwned = 1",
    "<img src=x onerror=window.pwned=1>",
    "</title></style><svg onload=window.pwned=1>",
    "nul\0\x01\x08\x0b\x1b\x7f\x85",
    "\u202egnp.exe\u202c\u2066x\u2069\u200f\u061c",
    "a\u2028b\u2029c",
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈",
    "e\u0301\u0323\u0308 o\u20dd",
    "سلام עולם",
    "${window.pwned = 1}",
    "{{ 7 * 7 }}{% raw %}",
    "__proto__",
    "constructor",
    "\ufeff\ufffb\u00ad\u200b",
    "tab\tline\nreturn\r\n",
    "javascript:window.pwned=1",
    "基準",
    "測試",
]
TEXT = " 🙂 ".join(HOSTILE)
PWNED = "window.pwned !== undefined"


@pytest.fixture(scope="module")
def runs():
    texts = {
        name: f"{name} {TEXT}" if number % 7 == 0 else f"{name} 🙂 {name} " * 10 for number, name in enumerate(HOSTILE)
    }
    names = [HOSTILE[0], HOSTILE[1], HOSTILE[9]]
    return [
        made.run(texts, name, seed, longest=longest, contexts=[SHORT] if seed == 3 else [])
        for seed, (name, longest) in enumerate(zip(names, (4, 2, 6), strict=True), start=1)
    ]


@pytest.fixture(scope="module")
def page_file(runs, tmp_path_factory):
    for scores in runs:
        scores.manifest["model"]["source"] = HOSTILE[6]
        scores.manifest["model"]["architecture"] = HOSTILE[7]
        scores.manifest["settings"]["dtype"] = HOSTILE[2]
    benchmarks = {name: {runs[0].manifest["model"]["name"]: 1.0} for name in HOSTILE}
    folder = tmp_path_factory.mktemp("'><script>window.pwned=1<")
    return report(folder / "<b>&.html", runs, evaluator_scores=runs[2], benchmarks=benchmarks)


def test_every_hostile_document_is_shown_as_it_is_with_its_numbers(open_page, page_file, runs):
    page = open_page(page_file)
    keys = select_key_tokens(runs[2])
    options = page.locator("#document option")
    assert options.all_text_contents() == [naive.visible(name) for name in HOSTILE]
    for index, id in enumerate(HOSTILE):
        page.locator("#document").select_option(str(index))
        shown = page.locator("#document").evaluate("e => e.selectedOptions[0].textContent")
        assert shown == naive.visible(id)
        text = runs[0].get(id).text
        for model in (2, 0) if index % 7 == 0 else (1,):
            page.locator(".pane select").select_option(str(model))
            assert page.locator(".text").evaluate("e => e.textContent") == naive.visible(text)
            assert page.locator(".text *:not(div.block):not(span.t)").count() == 0
            scored = runs[model].get(id)
            found = keys.get(id)
            inside = np.flatnonzero(tokens_in_runs(scored.char_spans, found.char_runs)).tolist()
            assert marked(page) == (found.token_indices.tolist() if model == 2 else inside)
        expected = [longppl(scores, runs[2], id) for scores in runs[:2]]
        for (value, number), found in zip(expected, values(page).values(), strict=False):
            assert found[2] == (None if value is None else pytest.approx(value, rel=1e-9))
            assert found[3] == number
    assert page.evaluate(PWNED) is False


def test_hostile_names_are_text_wherever_they_stand(open_page, page_file, runs):
    page = open_page(page_file)
    assert page.evaluate(PWNED) is False
    assert page.locator("script").count() == 2 + len(HOSTILE)
    assert page.locator("img, iframe, object, embed, base, svg [onload], [onerror], [onmouseover]").count() == 0
    cells = page.locator("#models table").first.locator("tbody th").all_text_contents()
    assert cells == names_of(runs)
    settings = page.locator("#settings tbody tr").first.locator("td").all_text_contents()
    assert settings[:3] == [HOSTILE[6], HOSTILE[7], HOSTILE[2]]
    assert page.title().startswith(f"longlens report: {names_of(runs)[0]}, {names_of(runs)[1]}")
    assert page.locator(".pane option").count() == 3
    # Names stand apart from the text around them, whatever direction they have.
    assert all(page.locator("bdi").evaluate_all("all => all.map(e => getComputedStyle(e).unicodeBidi === 'isolate')"))
    page.locator(".text .t").nth(3).click()
    page.locator("#beside").check()
    page.locator("#search").fill("</script>")
    assert page.locator(".hit").count() > 0
    assert page.evaluate(PWNED) is False


def test_ids_of_elements_are_unique(open_page, page_file):
    page = open_page(page_file)
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert sorted({id for id in ids if ids.count(id) > 1}) == []


def test_after_many_characters_of_two_units_the_right_tokens_are_key(open_page, tmp_path):
    text = "𝒳" * 500 + " key word 🙂 end"
    spans = [(i, i + 1) for i in range(500)] + [(500, 504), (504, 509), *[(510, 511)] * 4, (511, 515)]
    scored = made.row(text, 1, id="a", spans=spans, contexts=[SHORT])
    long = np.full(len(spans), -1, dtype=np.float32)
    short = np.where(np.isin(np.arange(len(spans)), [500, 503]), -5, -1).astype(np.float32)
    scored = replace(scored, long_logprobs=long, short={SHORT: short})
    evaluator = MemoryScores([scored], made.manifest("evaluator"))
    model = made.run(
        {"a": text}, "model", 2, spans=[(0, 499), (499, 500), (500, 504), (504, 510), (510, 511), (511, 515)]
    )
    page = open_page(report(tmp_path / "r.html", [model], evaluator_scores=evaluator))
    assert marked(page) == [500, 503]
    assert page.locator(".text .key").all_text_contents() == [" key", ""]
    page.locator(".pane select").select_option("0")
    assert marked(page) == [2, 4]
    assert page.locator(".text .key").all_text_contents() == [" key", "🙂"]
    assert len(classes(page)) == 6


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory):
    return report(tmp_path_factory.mktemp("plain") / "r.html", [made.run({"a": "text"}, "model", 1)])


@pytest.fixture
def attacked(browser, plain_file, tmp_path):
    """Runs a script in a page whose file was changed; what it gives, the directives that were violated, and the flag.

    PORT in the script is one that listens on this machine, and may not be reached.
    """
    context = browser.new_context()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)

    def call(script, change=lambda content: content):
        path = tmp_path / "attacked.html"
        path.write_text(change(plain_file.read_text(encoding="utf-8")), encoding="utf-8")
        page = context.new_page()
        page.goto(path.as_uri())
        found = page.evaluate(
            """async () => {
                 const violated = [];
                 const heard = (event) => violated.push(event.effectiveDirective);
                 document.addEventListener("securitypolicyviolation", heard);
                 let threw = null;
                 try { await (async () => { ATTACK })(); } catch (error) { threw = error.name; }
                 await new Promise((done) => setTimeout(done, 100));
                 const styled = getComputedStyle(document.body).zIndex === "7";
                 return { threw, violated, done: styled || window.pwned === true };
               }""".replace("ATTACK", script.replace("PORT", str(server.getsockname()[1])))
        )
        page.close()
        try:
            caller, _ = server.accept()
        except TimeoutError:
            pass
        else:  # Chromium may connect before it looks at the policy of a frame; it may not say anything
            caller.settimeout(0.5)
            with caller, pytest.raises(TimeoutError):
                raise AssertionError(caller.recv(100)) if caller.recv(1, socket.MSG_PEEK) else TimeoutError
        return found

    yield call
    context.close()
    server.close()


def inserted(tag, property, value, then=""):
    """A script that puts such an element into the page; without a property, one with this text."""
    given = f"e.append({value!r})" if property is None else f"e.{property} = {value!r}"
    return f"const e = document.createElement('{tag}'); {given}; document.body.append(e); {then}"


HOST = "http://127.0.0.1:PORT/"
PWN = "window.pwned = true"
ATTACKS = {
    "script": (inserted("script", None, PWN), "script-src-elem"),
    "handler": (inserted("p", "x", "", f"e.setAttribute('onclick', '{PWN}'); e.click()"), "script-src-attr"),
    "link": (inserted("a", "href", f"javascript:void({PWN})", "e.click()"), "script-src-elem"),
    "file": (inserted("script", "src", f"data:text/javascript,{PWN}"), "script-src-elem"),
    "eval": (f"await new Promise(setTimeout); window.eval('{PWN}')", "script-src"),
    "style": (inserted("style", None, "body { z-index: 7 }"), "style-src-elem"),
    "style attribute": ("document.body.setAttribute('style', 'z-index: 7')", "style-src-attr"),
    "image": (inserted("img", "src", HOST), "img-src"),
    "fetch": (f"await fetch('{HOST}')", "connect-src"),
    "beacon": (f"navigator.sendBeacon('{HOST}', 'x')", "connect-src"),
    "frame": (inserted("iframe", "src", HOST), "frame-src"),
    "form": (inserted("form", "action", HOST, "e.submit()"), "form-action"),
    "base": (inserted("base", "href", HOST), "base-uri"),
}
TRUSTED = {"script", "handler", "link", "file", "eval"}


def without_policy(content):
    changed, number = re.subn(r'<meta http-equiv="Content-Security-Policy" content="[^"]*">', "", content)
    assert number == 1
    return changed


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_policy_of_the_page_blocks(attack, attacked):
    script, directive = ATTACKS[attack]
    whole = attacked(script)
    assert whole["done"] is False
    assert whole["violated"], whole
    assert set(whole["violated"]) <= {directive, "require-trusted-types-for"}
    if attack in TRUSTED:  # twice blocked: without trusted types its source still is
        less = attacked(script, lambda content: content.replace("; require-trusted-types-for &#39;script&#39;", ""))
        assert less["done"] is False
        assert less["violated"] == [directive]


def test_markup_from_text_is_refused(attacked):
    for script in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        "document.write('<b>x</b>')",
        "new DOMParser().parseFromString('<b>x</b>', 'text/html')",
    ):
        found = attacked(script)
        assert (found["threw"], found["violated"]) == ("TypeError", ["require-trusted-types-for"]), script


@pytest.mark.parametrize("attack", ["script", "handler", "link", "eval", "style", "style attribute"])
def test_without_its_policy_the_same_page_would_not_be_safe(attack, attacked):
    found = attacked(ATTACKS[attack][0], without_policy)
    assert found["violated"] == []
    assert found["done"] is True
