"""The view of costs: its sentences, charts, tables, and the way from a lost token to its text."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from longlens import cost
from longlens.keytokens import select_key_tokens
from longlens.keytokens.alignment import tokens_in_runs
from longlens.report.answer import answer
from longlens.report.charts import cost_charts, pareto
from longlens.scoring.scores import MemoryScores, ShortContext, identity_of
from tests.report.conftest import current, prose, report, row, summarized
from tests.report.test_accessibility import LOOKS, RULES
from tests.toys import manifest

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")
CONTEXTS = [ShortContext(16, 16), ShortContext(64, 64)]
SIZES = {"window:128": (0.3, 12.0), "h2o:128": (0.7, 12.0), "h2o:512": (0.93, 48.0), "<b>mine": (0.5, 30.0)}


def cost_runs(store_text=True):
    """A full run at two K, and policies that keep a part of each token's gain, with bytes and KL."""
    rows = []
    for number in range(6):
        made = row(prose(300, number), number, id=f"text {number} <i>", contexts=CONTEXTS, store_text=store_text)
        n = len(made.token_ids)
        columns = {"cache_bytes": np.full(n, 100.0 * n)}
        rows.append(dataclass_with(made, columns=columns))
    full = MemoryScores(rows, manifest("full"))
    policies = []
    for name, (kept, held) in SIZES.items():
        draw = np.random.default_rng(len(name))
        under = []
        for one in rows:
            short = np.nan_to_num(one.short[CONTEXTS[0]], nan=0.0)
            there = np.isfinite(one.short[CONTEXTS[0]])
            share = np.clip(kept + 0.2 * draw.normal(size=len(short)), -0.5, 1.2)
            long = np.where(there, short + share * (one.long_logprobs - short), one.long_logprobs)
            n = len(short)
            columns = {"cache_bytes": np.full(n, held * n)}
            columns |= dict.fromkeys(("kl", "reverse_kl", "js", "reference_logprob"), np.full(n, 1 - kept))
            columns["top1_agreement"] = np.full(n, kept)
            under.append(
                dataclass_with(one, long_logprobs=np.minimum(long, 0).astype(np.float32), short={}, columns=columns)
            )
        about = manifest(name)
        about["model"] |= {"cache": f"{name}@64", "reference": {"name": "full", "sha256": identity_of(full).sha256}}
        policies.append(MemoryScores(under, about))
    return full, policies


def dataclass_with(one, **changes):
    import dataclasses

    return dataclasses.replace(one, **changes, selected=None if changes.get("short") == {} else one.selected)


@pytest.fixture(scope="module")
def runs():
    return cost_runs()


@pytest.fixture(scope="module")
def found(runs):
    full, policies = runs
    return cost(full, policies, evaluator_scores=full)


@pytest.fixture(scope="module")
def view(runs, found, tmp_path_factory):
    full, policies = runs
    path = tmp_path_factory.mktemp("cost") / "cost.html"
    return report(path, [full, *policies], evaluator_scores=full, context=16, cost=found)


def test_tokens_that_lost_most(found, runs):
    full, policies = runs
    losses = []
    for one, *others in zip(full, *policies, strict=True):
        keys = select_key_tokens(full, context=16).get(one.id)
        scored = np.isfinite(one.short[CONTEXTS[0]])
        for i in np.flatnonzero(tokens_in_runs(one.char_spans, keys.char_runs) & scored):
            losses.append(
                (max(float(one.long_logprobs[i]) - float(o.long_logprobs[i]) for o in others), one.id, int(i))
            )
    losses = sorted((each for each in losses if each[0] > 0), key=lambda each: -each[0])[: len(found.tokens)]
    assert [(t.document, t.index) for t in found.tokens] == [(id, i) for _, id, i in losses]
    first = found.tokens[0]
    assert first.full - min(first.policies) == pytest.approx(losses[0][0])
    one = full.get(first.document)
    start, end = one.char_spans[first.index]
    assert (first.before[-5:], first.text) == (one.text[max(0, start - 5) : start], one.text[start:end])
    assert {(t.above, t.up_to) for t in found.tokens} == {(16, 64), (64, None)}


def test_the_answer_is_of_costs(runs, found):
    full, policies = runs
    summary = summarized([full, *policies], evaluator_scores=full, cost=found)
    said = [str(sentence) for sentence in answer(summary)]
    assert len(said) == 4
    best = found.policies[2]
    assert said[0].startswith(
        f"h2o:512 retains {100 * best.retained_gain:.0f} % of the gain from long context on key tokens (95 %"
    )
    assert "with 48 % of the bytes of the full cache; its perplexity is" in said[0]
    assert f"Most is lost on key tokens that need {best.worst.words} tokens of context" in said[0]


def test_the_front(found):
    by = {policy.name: policy for policy in found.policies}
    assert pareto(found.policies) == [by["h2o:128"], by["h2o:512"]]
    chart = cost_charts(found)[0]
    assert [series.labels for series in chart.series] == [
        ["h2o:128", "h2o:512"],
        ["window:128", "<b>mine"],
        ["full"],
    ]


def test_the_tables_and_their_files(open_page, view, found):
    page = open_page(view, accept_downloads=True)
    rows = page.locator("#cost-table tbody tr")
    assert rows.count() == 4
    assert rows.first.locator("td").first.inner_text() == "h2o:512"  # the best one first
    for kind in ("CSV", "JSON"):
        with page.expect_download() as waited:
            page.get_by_role("button", name=f"Table of policies as {kind}").click()
        text = waited.value.path().read_text(encoding="utf-8")
        if kind == "CSV":
            head, *lines = csv.reader(io.StringIO(text))
            assert head[:2] == ["policy", "retained gain"]
            kept = {line[0]: float(line[1]) for line in lines}
        else:
            kept = {line["policy"]: line["retained gain"] for line in json.loads(text)}
        assert kept == {policy.name: pytest.approx(policy.retained_gain, rel=1e-5) for policy in found.policies}
    assert page.locator("#cost-documents tbody tr").count() == 6
    assert page.locator("#chart-cost-bytes canvas").count() == 1
    with page.expect_download() as waited:
        page.get_by_role("button", name="Retained gain against the size of the cache as CSV").click()
    lines = list(csv.reader(io.StringIO(waited.value.path().read_text(encoding="utf-8"))))
    assert lines[0][-2:] == ["95 % low", "95 % high"]
    assert len(lines) == 1 + 4 + 1  # two policies of 12 bytes have a line each
    page.locator("#chart-cost-bytes summary").click()
    assert page.locator("#chart-cost-bytes details tbody tr").count() == 5


def test_a_lost_token_opens_its_place(open_page, view, found, runs):
    page = open_page(view)
    page.locator("#cost-tokens tbody button").first.click()
    first = found.tokens[0]
    assert page.locator("#document").evaluate("e => e.selectedOptions[0].textContent") == first.document
    assert current(page) == first.index
    assert page.locator(".pane select").first.input_value() == "0"
    assert page.locator(".text .current").evaluate(
        "e => { const r = e.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight }"
    )


def test_names_are_data(open_page, view):
    page = open_page(view)
    assert page.locator("#cost b:text('mine')").count() == 0
    assert page.locator("#cost-table td bdi", has_text="<b>mine").count() == 1


def test_axe_finds_nothing_wrong(open_page, view):
    page = open_page(view, **LOOKS["phone"], color_scheme="dark")
    page.locator("details").evaluate_all("all => all.forEach(e => e.open = true)")
    found = Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


def test_a_run_without_text(tmp_path, open_page):
    full, policies = cost_runs(store_text=False)
    found = cost(full, policies, evaluator_scores=full)
    path = report(tmp_path / "r.html", [full, *policies], evaluator_scores=full, context=16, cost=found)
    page = open_page(path)
    assert page.locator("#cost-table tbody tr").count() == 4
    assert page.locator("#cost-tokens tbody tr").count() == 10
