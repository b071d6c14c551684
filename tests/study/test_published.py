"""Published tables: what they hold agrees with what the documents print of it elsewhere, and with the recipes."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.main import get_command

from longlens.bench.selection import HARNESS, select_tasks
from longlens.cli.app import app
from longlens.errors import UserError
from longlens.settings.recipe import presets, read_yaml
from longlens.study import published
from longlens.study.published.derived import derived
from longlens.study.published.recompute import checks, disagreements
from longlens.study.published.tables import PublishedTable
from longlens.tasks import helmet
from longlens.tasks.longbench import sets
from longlens.train.recipe import read_recipe

ROOT = Path(__file__).parents[2]
TABLES = published.tables()


def test_the_paper_has_its_thirteen_tables_and_each_says_where_it_stands():
    assert [table.id for table in published.paper().tables if table.id.isdigit()] == [str(n) for n in range(1, 14)]
    assert published.table(9).place == "Table 9, section B.3"
    assert published.table("lecture-18").place == "Table 18, slide 46"
    assert all((table.section is None) != (table.slide is None) for table in TABLES.values())


def test_cells_are_found_by_their_names():
    assert published.table(9).number("2k", "PPL, answer tokens", group="Yi-6B-200K") == 1.49
    assert published.table(13).value("Yi", "Hugging Face") == "01-ai/Yi-6B-200K"
    assert published.table("figure-5").value("Yi-6B-200k", "RULER") is None
    assert [published.table(5).columns[0].text(x) for x in (1.7, None)] == ["1.70", "-"]


def test_the_models_of_table_5_are_those_of_table_13_and_of_table_6():
    families = {row.name.partition("-")[0]: row.values[1].lower() for row in published.table(13).rows}
    for row in published.table(5).rows:
        family, length = row.name.partition("-")[0], row.name.rpartition("-")[2]
        assert families[family] == length, row.name
    assert [row.name for row in published.table(5).rows] == [row.name for row in published.table(6).rows]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: published.table(14), "no published table '14'; known are 1, 2, 3"),
        (lambda: published.table(1).number("PLP", "LongBench"), "Table 1 has no row 'PLP' (nearest: 'PPL')"),
        (lambda: published.table(1).number("PPL", "Ruler"), "Table 1 has no column 'Ruler'"),
        (lambda: published.table("figure-5").number("Yi-6B-200k", "RULER"), "has no number: it is None"),
        (lambda: published.paper().statement("headlin"), "no statement 'headlin' (nearest: 'headline')"),
    ],
)
def test_what_is_not_there_is_said(ask, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ask()


@pytest.mark.parametrize(
    "change",
    [
        {"values": [1.0]},
        {"values": [1.0, "x"]},
        {"values": [1.25, 1.0]},
        {"name": "b"},
    ],
)
def test_a_damaged_table_is_refused(change):
    columns = [{"name": name, "unit": "%", "decimals": 1} for name in "xy"]
    rows = [{"name": "a", "values": [1.5, None]}, {"name": "b", "values": [0.5, 2.0]}]
    made = {"id": "t", "label": "T", "section": "1", "title": "t", "columns": columns, "rows": rows}
    assert PublishedTable(**made).number("a", "x") == 1.5
    rows[0] |= change
    with pytest.raises(UserError):
        PublishedTable(**made)


def test_a_table_is_one_of_pyarrow_too():
    table = published.table(8).to_arrow()
    assert table.column_names[:3] == ["group", "row", "Single-Document QA"]
    assert table.num_rows == 18


# --- what the documents print agrees with itself ----------------------------------------------------------------------


def test_everything_that_disagrees_is_an_erratum_and_nothing_else_is():
    known = [one for document in (published.paper(), published.lecture()) for one in document.errata if one.check]
    assert [check.id for check in disagreements()] == [erratum.check for erratum in known]
    found = {check.id: check for check in checks()}
    for erratum in known:
        check = found[erratum.check]
        numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", erratum.recomputed)]
        assert numbers[0] == pytest.approx(check.recomputed, rel=0.01)
        assert f"{check.printed:g}" in erratum.printed


def test_the_checks_cover_every_gain_mean_and_percentage():
    ids = {check.id for check in checks()}
    assert len(ids) == len(checks()) >= 200
    for number, count in ((3, 27), (4, 18), (7, 22), (8, 36), (10, 3), (12, 8)):
        assert sum(id.startswith(f"{number}, ") for id in ids) == count, number


def test_a_check_sees_a_wrong_digit(monkeypatch):
    table = published.table(3)
    row = table.rows[1].replace(values=[28.0, *table.rows[1].values[1:]])
    damaged = table.replace(rows=[table.rows[0], row, *table.rows[2:]])
    paper = published.paper().replace(tables=[damaged if one.id == "3" else one for one in published.paper().tables])
    monkeypatch.setattr(published, "paper", lambda: paper)
    group = table.rows[0].group
    more = {check.id for check in disagreements()} - {one.check for one in paper.errata}
    assert f"3, {group}, Gain, LongBench, 50 steps" in more
    assert any(id.startswith("7, LongCE, K 4096, d 1024, LongBench, 50 steps = Table 3") for id in more)


def naive_pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    both = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return both / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def test_table_9_says_that_other_tokens_correlate_too_for_yi():
    found = derived()
    for key, group, answers, rest in (("yi", "Yi-6B-200K", -0.91, -0.74), ("clex", "CLEX-7B-64K", -0.93, -0.35)):
        rows = [row.values for row in published.table(9).of_group(group)]
        for name, at, expected in (("answers", 1, answers), ("rest", 2, rest)):
            value = found[f"{name}-{key}"]
            assert value.value == pytest.approx(naive_pearson(*zip(*[(r[0], r[at]) for r in rows], strict=True)))
            assert round(value.value, 2) == expected
    assert found["rest-yi"].p < 0.01
    assert found["rest-yi"].interval[1] < -0.3
    assert found["rest-clex"].p > 0.1


def test_intervals_of_printed_correlations_are_those_of_data_that_have_them():
    """Data of nine models with exactly the printed r: the interval and p of scipy."""
    rng = np.random.default_rng(0)
    x, other = (column - column.mean() for column in rng.normal(size=(2, 9)))
    other = other - x * (x @ other) / (x @ x)
    for key in ("ppl-longbench", "longppl-ruler", "ngram-longeval"):
        found = derived()[key]
        y = found.value * x / np.linalg.norm(x) + math.sqrt(1 - found.value**2) * other / np.linalg.norm(other)
        expected = stats.pearsonr(x, y)
        assert expected.statistic == pytest.approx(found.value)
        assert found.p == pytest.approx(expected.pvalue)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert derived()["williams-longbench"].p < 0.05


def test_self_evaluated_longppl_cannot_be_unrelated_to_longbench():
    """By brute force: vectors that have the two known correlations have the third inside the interval, to its ends."""
    found, rng = derived()["self-longbench"], np.random.default_rng(0)
    r, s = published.table(1).number("LongPPL-hard", "LongBench"), derived()["self-and-longppl"].value
    middle, *others = np.linalg.qr(rng.normal(size=(9, 3)))[0].T
    reached = []
    for angle in np.linspace(0, np.pi, 181):
        around = np.cos(angle) * others[0] + np.sin(angle) * others[1]
        reached.append((r * middle + math.sqrt(1 - r * r) * others[0]) @ (s * middle + math.sqrt(1 - s * s) * around))
    assert (min(reached), max(reached)) == pytest.approx(found.interval)
    assert found.interval[1] < -0.4


def test_the_lectures_product_of_rotated_vectors_lacks_a_term():
    rng = np.random.default_rng(0)
    (q, k), m, n, theta = rng.normal(size=(2, 2)), 7, 3, 0.3

    def turned(vector, angle):
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ vector

    product = turned(q, m * theta) @ turned(k, n * theta)
    printed = q @ k * np.cos((m - n) * theta)
    assert product == pytest.approx(printed + (q[0] * k[1] - q[1] * k[0]) * np.sin((m - n) * theta))
    assert abs(product - printed) > 0.01


# --- beside the recipes and the run folders ---------------------------------------------------------------------------


def test_measures_are_what_run_folders_hold():
    parts = {"longbench": {"overall", *sets.DOMAINS}, "ruler": {None}}
    parts["helmet"] = {*helmet.CATEGORIES, "mean of six"}
    for table in TABLES.values():
        for column in table.columns:
            measure = column.measure
            if measure is None:
                continue
            if measure.suite is not None:
                assert measure.part in parts[measure.suite], (table.id, column.name)
            if measure.task is not None:
                assert select_tasks([measure.task]).tasks == (measure.task,)
            assert {name for name in (measure.harness, *measure.mean) if name} <= set(HARNESS)


def commands():
    return [(id, command) for id, table in TABLES.items() for command in table.commands]


def parse(words):
    """Parses the words of a command line as typer does, without running it."""
    command, context = get_command(app), None
    while hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    assert words, "a command without arguments"
    context = command.make_context("longlens", list(words))
    assert context is not None


@pytest.mark.parametrize(("id", "command"), commands())
def test_a_command_beside_a_table_can_be_run(id, command):
    words = shlex.split(command)
    if words[0] == "sh":
        assert (ROOT / words[1]).is_file()
        return
    parse(words[1:])
    if words[1] == "train":
        changes = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
        assert words[2] in presets("train")
        read_recipe(words[2], changes)
        assert all(change.partition("=")[2] in presets("mixtures") for change in changes if "mixture" in change)


def test_sweeps_of_recipes_are_the_rows_of_their_tables():
    for which, recipe, key in (
        ("lecture-18", "prolong-64k-theta", "extend.theta"),
        ("lecture-19", "prolong-512k-theta", "extend.theta"),
    ):
        swept = read_yaml(recipe, "train", "sweep")["sweep"][key]
        assert [float(theta) for theta in swept] == [float(row.name) for row in published.table(which).rows]
    shares = read_yaml("lecture-sft-ratio", "train", "sweep")["sweep"]["data.mixture"]
    rows = [row.name.removesuffix(" %") for row in published.table("lecture-8").rows]
    assert [name.removeprefix("lecture-sft-") for name in shares] == rows


def test_shortmix_is_the_recipe():
    sources = read_yaml("shortmix", "mixtures", "sources")["sources"]
    printed = {row.name.lower(): row.values[0] for row in published.table("lecture-5").rows}
    assert {name: source["weight"] for name, source in sources.items()} == printed
