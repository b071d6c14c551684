import itertools
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.report.conftest import four_runs, prose, report

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

LSD = ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]
LCL = ["p0", "p1", "p2", "p3", "p4", "p5"]
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 375, "height": 740}, "is_mobile": True, "has_touch": True},
}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
# Linear RGB as it is seen without one kind of cone: Machado, Oliveira and Fernandes 2009, table 1, severity 1.
SEEN = {
    "everyone": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A report that has all there can be in one: charts of benchmarks, several pairs, notes."""
    benchmarks = {"LongBench": {"base": 20.5, "other": 30.25, "own": 25.0}}
    models, evaluator = four_runs({"one": prose(40, 1), "two": prose(30, 2)})
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report(path, models, evaluator_scores=evaluator, benchmarks=benchmarks)


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_wrong(look, open_page, everything):
    page = open_page(everything, **LOOKS[look])
    page.locator("#document").select_option("1")
    page.locator("#beside").check()
    page.locator("#search").fill("the")
    page.locator("#key-next").click()
    page.locator("details").evaluate_all("all => all.forEach(e => e.open = true)")
    found = Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 25


def test_axe_sees_what_is_wrong(open_page, everything):
    page = open_page(everything)
    page.locator("#search").evaluate("e => e.closest('label').replaceWith(e)")
    page.locator("#search").evaluate("e => e.removeAttribute('title')")
    assert "label" in {each["id"] for each in Axe().run(page, options={"runOnly": ["wcag2a"]}).response["violations"]}


def test_every_control_has_its_name(open_page, everything):
    page = open_page(everything)
    page.locator("#beside").check()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    names = {}
    for node in nodes:
        if not node["ignored"]:
            names.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in (
        "slider",
        "button",
        "combobox",
        "checkbox",
        "searchbox",
        "link",
        "region",
        "table",
        "image",
        "heading",
    ):
        assert names[role], role
        assert all(name.strip() for name in names[role]), (role, names[role])
    assert [name.split(":")[0] for name in names["slider"]] == ["alpha", "beta"]  # not their <output>, as axe has it
    assert names["searchbox"] == ["Filter: Table of documents", "Filter: Table of key tokens", "Search"]
    assert {"Reset", "‹ Previous key token", "Next key token ›", "Previous match", "Next match"} <= set(names["button"])
    assert len(set(names["region"])) == len(names["region"]), sorted(names["region"])


def luminance(color):
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722], linear


def contrast(one, other):
    low, high = sorted((luminance(one)[0], luminance(other)[0]))
    return (high + 0.05) / (low + 0.05)


def lab(color, seen):
    """CIELAB under D65 of what an eye sees of an sRGB color."""
    linear = np.clip(np.array(seen) @ luminance(color)[1], 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def computed(page, names):
    """The color of the text and of what is behind it, of a token in the text with these classes."""
    found = page.locator(".text").evaluate(
        """(pane, names) => names.map(name => {
             const span = pane.querySelector(".block").appendChild(document.createElement("span"));
             span.className = "t " + name;
             let behind = span;
             while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
             const colors = [getComputedStyle(span).color, getComputedStyle(behind).backgroundColor];
             span.remove();
             return colors;
           })""",
        list(names),
    )
    parsed = [[np.array([int(x) for x in re.findall(r"\d+", color)]) / 255 for color in pair] for pair in found]
    assert all(color.shape == (3,) for pair in parsed for color in pair)
    return dict(zip(names, parsed, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_color(scheme, open_page, page_file):
    page = open_page(page_file, color_scheme=scheme)
    plain = [*LSD, *LCL, "none"]
    names = [f"{name}{more}" for name in plain for more in ("", " key", " hit", " key hit")]
    worst = {name: contrast(*colors) for name, colors in computed(page, names).items()}
    assert {name: value for name, value in worst.items() if value < 4.5} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eye", SEEN)
def test_colors_of_lsd_stay_apart_for_every_eye(scheme, eye, open_page, page_file):
    page = open_page(page_file, color_scheme=scheme)
    seen = {name: lab(behind, SEEN[eye]) for name, (_, behind) in computed(page, LSD).items()}
    distance = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(LSD, 2)}
    assert {pair: value for pair, value in distance.items() if value < 5} == {}
    hurts, helps = ["c0", "c1"], ["c4", "c5", "c6"]
    assert min(distance[pair] for pair in itertools.product(hurts, helps)) > 10


def test_dark_is_dark_and_light_is_light(open_page, page_file):
    paper = {}
    for scheme in ("light", "dark"):
        page = open_page(page_file, color_scheme=scheme)
        paper[scheme] = luminance(computed(page, ["c2"])["c2"][1])[0]
    assert paper["light"] > 0.9
    assert paper["dark"] < 0.05


@pytest.mark.parametrize("width", [320, 375, 768])
def test_nothing_scrolls_the_page_sideways_on_a_narrow_screen(width, open_page, everything):
    page = open_page(everything, viewport={"width": width, "height": 740})
    for _ in range(2):
        page.wait_for_timeout(100)
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]") == [
            width,
            width,
        ]
        page.locator("#beside").check()
        page.locator("details").evaluate_all("all => all.forEach(e => e.open = true)")
        page.locator("#key-next").click()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("panes", [1, 2])
def test_on_paper_the_whole_text_is_there_and_the_controls_are_not(panes, open_page, page_file):
    page = open_page(page_file, viewport={"width": 700, "height": 900})
    if panes == 2:
        page.locator("#beside").check()
    page.emulate_media(media="print")
    assert all(each.is_hidden() for each in page.locator(".controls, nav, #tip").all())
    for text in page.locator(".text").all():
        assert text.evaluate("e => e.scrollHeight - e.clientHeight") == 0
        inside = (
            "e => e.querySelector('.t:last-of-type').getBoundingClientRect().bottom <= e.getBoundingClientRect().bottom"
        )
        assert text.evaluate(inside)
    document = page.pdf()
    assert document.startswith(b"%PDF-")
    assert document.count(b"/Type /Page\n") > 2


def test_tab_reaches_everything_in_the_order_of_the_page(open_page, everything):
    page = open_page(everything)
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => { const e = document.activeElement;
                   if (e.token !== undefined) return "token";
                   return e.id ? "#" + e.id : (e.getAttribute("aria-label") ?? e.textContent.trim()); }"""
            )
        )
    controls = ["#document", "#alpha", "#beta", "#use-lcl", "#reset", "LongPPL at these thresholds"]
    controls += [
        "#key-previous",
        "#key-next",
        "#color",
        "#beside",
        "#search",
        "#search-previous",
        "#search-next",
        "#copy",
    ]
    expected = [
        "Skip to the text with its key tokens",
        "Answer",
        "Models",
        "Text",
        "Charts",
        "Settings",
        "Perplexity on all tokens, and on key tokens as PNG",
        "Table of models",
        *controls,
    ]
    assert [name for name in reached if name in expected][: len(expected)] == expected
    at = reached.index("#copy")
    assert reached[at + 3].endswith("as PNG")
    assert reached[at + 2] == "token"  # after the choice of the tokens; one stop for all of them
    assert "Settings of the runs" in reached


def test_the_skip_link_is_seen_when_it_has_the_focus(open_page, page_file):
    page = open_page(page_file)
    page.keyboard.press("Tab")
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#text")
    assert page.locator("#text-title").bounding_box()["y"] < 200
