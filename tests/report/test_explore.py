"""Tables, earlier mentions, links and downloads of the page, as a reader uses them."""

import csv
import io
import json
from urllib.parse import parse_qs

import pytest

from longlens import perplexity
from longlens.report.words import words_of, words_of_tokens
from tests.report import conftest as made
from tests.report.conftest import SHORT, current, four_runs, marked, move, report, summarized
from tests.report.test_page import view

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")


def rows(page, host):
    return page.locator(f"{host} tbody tr").evaluate_all("all => all.map(r => [...r.cells].map(c => c.textContent))")


def saved(page, button):
    with page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_the_table_of_documents_sorts_filters_and_opens(open_page, page_file, models, evaluator):
    page = open_page(page_file)
    result = perplexity(models[0], evaluator_scores=evaluator)
    (long, short) = sorted(result.documents, key=lambda each: -each.num_key_tokens)
    shown = rows(page, "#document-table")
    assert [row[0] for row in shown] == [long.id, short.id]
    assert shown[0][1:4] == [f"{long.num_key_tokens:,}", f"{long.num_tokens:,}", f"{long.longppl:,.3f}"]
    head = page.locator("#document-table th", has_text="key tokens")
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [row[0] for row in rows(page, "#document-table")] == [short.id, long.id]
    page.locator("#document-table input").fill("<TWO")
    assert [row[0] for row in rows(page, "#document-table")] == ["<two> & more"]
    page.locator("#document-table td button").click()
    assert page.locator("#document").evaluate("e => e.selectedOptions[0].textContent") == "<two> & more"


def test_a_key_token_of_the_table_opens_its_place(open_page, page_file, models, evaluator):
    page = open_page(page_file)
    view(page, "base")
    tokens = summarized(models, evaluator_scores=evaluator).evidence.tokens
    assert len(rows(page, "#token-table")) == 10
    for place in (0, 4, 9):
        page.locator("#token-table tbody tr").nth(place).locator("button").click()
        assert page.locator("#document").evaluate("e => e.selectedOptions[0].textContent") == tokens[place].document
        assert current(page) == tokens[place].index
        assert page.locator(".pane select").evaluate("e => e.value") == "3"
    page.locator("#token-table > button").click()
    assert len(rows(page, "#token-table")) == 60


def test_the_page_opens_on_the_document_with_most_key_tokens(open_page, tmp_path):
    models, evaluator = four_runs({"short": made.prose(60, 1), "long": made.prose(300, 2)})
    page = open_page(report(tmp_path / "r.html", models, evaluator_scores=evaluator))
    assert page.locator("#document").evaluate("e => e.selectedOptions[0].textContent") == "long"


def test_earlier_mentions_of_a_key_token_are_lit_with_their_distance(open_page, page_file, evaluator):
    page = open_page(page_file)
    row = evaluator.get("one")
    words = words_of(row.text)
    of_token = words_of_tokens(row.char_spans, words)
    checked = 0
    for token in marked(page)[-6:]:
        page.locator(".text .t").nth(token).evaluate("e => e.click()")
        if of_token[token] < 0:
            assert page.locator("#where").text_content() == ""
            continue
        text = row.text[slice(*words.spans[of_token[token]].tolist())]
        before = [n for n in range(of_token[token]) if row.text[slice(*words.spans[n].tolist())] == text][:-9:-1]
        spans = [words.spans[n].tolist() for n in before]
        lit = [i for i, (s, e) in enumerate(row.char_spans.tolist()) if any(max(s, a) < min(e, b) for a, b in spans)]
        assert set(marked(page, "mention")) == set(lit)
        distances = [token - next(i for i, (_, e) in enumerate(row.char_spans.tolist()) if e > a) for a, _ in spans]
        assert page.locator("#where button").all_text_contents() == [f"{each:,}" for each in distances]
        checked += len(spans) > 1
    assert checked
    page.locator("#where button").first.click()
    assert current(page) == token - distances[0] if of_token[token] >= 0 else True


def test_with_several_contexts_the_one_that_is_needed_is_said(open_page, tmp_path, texts):
    contexts = [made.ShortContext(16, 8), made.ShortContext(24, 8), SHORT]
    scores = made.run(texts, "m", 4, longest=7, contexts=contexts)
    page = open_page(report(tmp_path / "r.html", [scores]))
    row = scores.get("one")
    said = set()
    where = page.evaluate("JSON.parse(document.querySelector('.document-data').textContent).where.contexts")
    assert where == [16, 24, 32]
    for token in range(60, len(row.token_ids)):
        if not row.lsd[token] > 0.5:
            continue
        page.locator(".text .t").nth(token).evaluate("e => e.click()")
        text = page.locator("#where").text_content()
        if "It needs" not in text:
            continue
        needed = None
        for short in reversed(contexts):
            if row.long_logprobs[token] - row.short[short][token] > 2:
                break
            needed = short.context
        expected = "more than 32 tokens of context." if needed is None else f"{needed} tokens of context or fewer."
        assert f"It needs {expected}" in text
        said.add(needed)
        if len(said) > 2:
            break
    assert len(said) > 2


def test_a_link_opens_the_same_view(open_page, page_file):
    page = open_page(page_file)
    page.locator("#document").select_option("1")
    view(page, "other")
    move(page, 1.3, -3.5)
    page.locator(".text .t").nth(37).evaluate("e => e.click()")
    page.locator("#copy").click()
    page.wait_for_function("document.getElementById('notice').value !== ''")
    hash = page.url.split("#")[1]
    assert parse_qs(hash) == {
        "doc": ["<two> & more"],
        "token": ["37"],
        "run": ["other"],
        "alpha": ["1.3"],
        "beta": ["-3.5"],
    }
    keys = marked(page)
    again = open_page(page_file)
    again.goto(page.url)
    again.wait_for_timeout(100)
    assert current(again) == 37
    assert marked(again) == keys
    assert again.locator("#alpha-value").text_content() == "1.3"
    again.evaluate("location.hash = 'doc=one&token=5&beta=none'")
    again.wait_for_timeout(100)
    assert current(again) == 5
    assert again.locator("#beta").is_disabled()


@pytest.mark.parametrize(
    "hash",
    ["doc=nosuch&token=5", "doc=one&token=-1", "doc=one&token=99999999", "doc=one&token=<img src=x>&run=x&alpha=x"],
)
def test_a_link_to_what_is_not_there_opens_the_page(hash, open_page, page_file):
    page = open_page(page_file)
    page.evaluate("hash => { location.hash = hash; }", hash)
    page.wait_for_timeout(50)
    assert current(page) == 0
    assert page.locator("img").count() == 0


def test_tables_and_charts_are_saved(open_page, tmp_path):
    texts = {"=1+1": made.prose(100, 1), 'a "b", c': made.prose(120, 2)}
    models, evaluator = four_runs(texts)
    page = open_page(report(tmp_path / "r.html", models, evaluator_scores=evaluator))
    results = {each.id: each for each in perplexity(models[0], evaluator_scores=evaluator).documents}
    name, content = saved(page, page.get_by_role("button", name="Table of documents as CSV"))
    head, *body = csv.reader(io.StringIO(content.decode()))
    assert name == "documents.csv"
    assert {row[0] for row in body} == {"'=1+1", 'a "b", c'}  # a formula is text
    for row in body:
        own = results[row[0].removeprefix("'")]
        assert float(row[head.index("LongPPL, base")]) == pytest.approx(own.longppl, rel=1e-5)
    name, content = saved(page, page.get_by_role("button", name="Table of documents as JSON"))
    assert name == "documents.json"
    assert {row["document"] for row in json.loads(content)} == set(texts)
    name, content = saved(page, page.locator("#chart-ppl-longppl .save").first)
    assert name == "ppl-longppl.png"
    assert content.startswith(b"\x89PNG")
    name, content = saved(page, page.locator("#chart-lsd-classes .save").nth(1))
    assert (name, content.count(b"\r\n")) == ("lsd-classes.csv", 6)


def test_a_chart_says_its_values_under_the_pointer_and_a_point_opens_its_token(open_page, page_file, models, evaluator):
    page = open_page(page_file)
    chart = page.locator("#chart-ppl-longppl .u-over")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    tip = page.locator("#chart-ppl-longppl .chart-tip")
    assert tip.is_visible()
    result = perplexity(models[0], evaluator_scores=evaluator)
    low, high = result.intervals["longppl"]
    assert tip.locator("dd").nth(1).text_content() == f"{result.longppl:.4g} ({low:.4g} to {high:.4g})"
    scatter = page.locator("#chart-key-tokens-1 .u-over")
    scatter.scroll_into_view_if_needed()
    box = scatter.bounding_box()
    for x in range(40):
        page.mouse.move(box["x"] + (x + 0.5) / 40 * box["width"], box["y"] + 0.3 * box["height"])
        if page.locator("#chart-key-tokens-1 .chart-tip").is_visible():
            break
    page.mouse.click(box["x"] + (x + 0.5) / 40 * box["width"], box["y"] + 0.3 * box["height"])
    assert current(page) in marked(page)


def test_a_picture_of_the_whole_page_shows_the_text(open_page, tmp_path):
    models, evaluator = four_runs({"one": made.prose(3000, 1)})
    page = open_page(report(tmp_path / "r.html", models, evaluator_scores=evaluator))
    page.wait_for_timeout(200)
    for top in (0, 2000):
        page.locator(".text").evaluate("(e, top) => { e.scrollTop = top; }", top)
        page.wait_for_timeout(200)
        seen = page.locator(".text").evaluate(
            """pane => { const box = pane.getBoundingClientRect();
                 const seen = each => each.bottom > box.top && each.top < box.bottom;
                 return [...pane.children].filter(each => seen(each.getBoundingClientRect()))
                   .map(each => getComputedStyle(each).contentVisibility); }"""
        )
        assert seen
        assert set(seen) == {"visible"}
