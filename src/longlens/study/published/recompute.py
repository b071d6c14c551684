"""What the documents print, recomputed from their own tables: sums, means, gains, percentages, and correlations.

A printed number is rounded, and so are those that it is recomputed from: a check has a tolerance that all of these
roundings together can explain, and disagrees where the difference is larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from longlens.study import published
from longlens.study.published.tables import PublishedColumn, PublishedRow, PublishedTable

EPSILON = 1e-9
"""For decimal numbers that have no exact float."""
LLAMA_70B = {"layers": 80, "kv_heads": 8, "head_dim": 128}
"""Llama-2-70B and Llama-3-70B, their config.json: num_hidden_layers, num_key_value_heads, head size."""
LLAMA_3 = {"theta": 500_000.0, "head_dim": 128, "length": 8192}
"""Llama-3-8B, its config.json: rope_theta, head size, max_position_embeddings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A printed number beside what other printed numbers say it has to be.

    Attributes:
        id: ID of the table, the row and the column.
        place: Where it is printed.
        how: How it was recomputed.
        printed: The number.
        recomputed: What it has to be.
        tolerance: The largest difference that rounding explains.
    """

    id: str
    place: str
    how: str
    printed: float
    recomputed: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return abs(self.printed - self.recomputed) <= self.tolerance + EPSILON


def checks() -> list[Check]:
    """Everything printed that can be recomputed, in the order of the documents."""
    paper, lecture = published.paper(), published.lecture()
    found: list[Check] = []
    for number in (3, 4):
        found += _gains(paper.table(number))
    found += _percentages(paper.table(7), "Hours, 200 steps", "Over CE", base_row="CE")
    for table in (paper.table(8), paper.table(10)):
        found += _means(table, "Avg.", [c.name for c in table.columns[:-1]])
    for evaluator in ("LongPPL, Llama-3.1-8B", "LongPPL, Qwen2-72B-Instruct"):
        found += _increases(paper.table(12), "PPL", evaluator)
    found += _repeats()
    found += _of_lecture(lecture)
    return found


def disagreements() -> list[Check]:
    """The checks that rounding does not explain."""
    return [check for check in checks() if not check.agrees]


def _check(
    table: PublishedTable, row: PublishedRow, column: PublishedColumn, how: str, value: float, error: float
) -> Check:
    printed = table.number(row.name, column.name, row.group)
    place = ", ".join(part for part in (table.label, row.group, row.name, column.name) if part)
    id = ", ".join(part for part in (table.id, row.group, row.name, column.name) if part)
    if table.slide is not None:
        id, place = f"{published.LECTURE}{id}", f"slide {table.slide}, {place}"
    return Check(id=id, place=place, how=how, printed=printed, recomputed=value, tolerance=column.rounding + error)


def _gains(table: PublishedTable) -> Iterator[Check]:
    for group in table.groups():
        gain = table.row("Gain", group)
        for column in table.columns:
            with_ours, without = (table.number(name, column.name, group) for name in ("LongCE", "CE"))
            yield _check(table, gain, column, "LongCE - CE", with_ours - without, 2 * column.rounding)


def _means(table: PublishedTable, average: str, of: Sequence[str]) -> Iterator[Check]:
    column = table.column(average)
    for row in table.rows:
        cells = [table.number(row.name, name, row.group) for name in of]
        error = max(table.column(name).rounding for name in of)
        yield _check(table, row, column, f"mean of {len(of)} columns", float(np.mean(cells)), error)


def _percentages(table: PublishedTable, cost: str, more: str, *, base_row: str) -> Iterator[Check]:
    base, rounding = table.number(base_row, cost), table.column(cost).rounding
    for row in table.rows:
        if row.name != base_row:
            value, error = _percent_more(table.number(row.name, cost, row.group), base, rounding)
            yield _check(table, row, table.column(more), f"{cost}, over {base_row}", value, error)


def _increases(table: PublishedTable, base: str, column: str) -> Iterator[Check]:
    rounding = table.column(base).rounding
    for row in table.rows:
        before, after = (table.number(row.name, name, row.group) for name in (base, column))
        value, error = _percent_more(after, before, rounding)
        more, percent = table.column(f"{column}, more"), table.column(f"{column}, more, %")
        yield _check(table, row, more, f"{column} - {base}", after - before, 2 * rounding)
        yield _check(table, row, percent, f"({column} - {base}) / {base}", value, error)


def _percent_more(value: float, base: float, rounding: float) -> tuple[float, float]:
    """``100 (value / base - 1)``, and how far it can be off where both are rounded."""
    most = (value + rounding) / (base - rounding)
    return 100 * (value / base - 1), 100 * (most - value / base)


def _same(
    table: PublishedTable, row: PublishedRow, column: str, other: PublishedTable, name: str, at: str, group: str = ""
) -> Check:
    """A number that two tables print."""
    where = ", ".join(part for part in (other.label, group, name, at) if part)
    check = _check(table, row, table.column(column), f"the same as {where}", other.number(name, at, group), 0.0)
    return replace(check, id=f"{check.id} = {where}")


def _repeats() -> Iterator[Check]:
    """Numbers that the paper prints twice."""
    table = published.paper().table
    benchmarks = [column.name for column in table(1).columns]
    for name in benchmarks:
        yield _same(table(2), table(2).rows[0], name, table(1), "LongPPL-hard", name)
        yield _same(table(11), table(11).row("PPL"), name, table(1), "PPL", name)
        yield _same(table(11), table(11).row("LongPPL"), name, table(1), "LongPPL-hard", name)
    setting = table(3).groups()[0]
    for name, here in (("CE", "CE"), ("LongCE", "LongCE, K 4096, d 1024")):
        for column in table(3).columns:
            yield _same(table(7), table(7).row(here), column.name, table(3), name, column.name, setting)
    for row in table(8).rows:
        loss, _, steps = row.name.partition(", ")
        yield _same(table(8), row, "Avg.", table(3), loss, f"LongBench, {steps}", row.group)


def _of_lecture(lecture: published.Publication) -> Iterator[Check]:
    table = lecture.table
    six = ["Recall", "RAG", "Re-rank", "ICL", "QA", "Summ."]
    for name in ("long-data", "18", "19", "prolong"):
        yield from _means(table(name), "Avg.", six)
    yield from _means(table("8"), "Avg.", [column.name for column in table("8").columns[:-1]])
    short = [column.name for column in table("short").columns]
    yield from _means(table("short-data"), "Short-context avg.", short)
    for name in short:
        yield _same(table("short-data"), table("short-data").rows[0], name, table("short"), "Llama-3-8B", name)
    # One model is in three tables: books and repositories 1:1, ShortMix, base 8e6.
    best = table("long-data").row("Books/Repos 1:1").name
    for here, there in (("Long-context avg.", "Avg."), ("Short-context avg.", "Short-context avg.")):
        row = table("short-data").row("ShortMix")
        yield _same(table("short-data"), row, here, table("long-data"), best, there)
    for column in table("18").columns:
        yield _same(table("18"), table("18").row("8e6"), column.name, table("long-data"), best, column.name)
    matrix = table("correlation")
    for at, row in enumerate(matrix.rows):
        for column in matrix.columns[:at]:
            yield _same(matrix, row, column.name, matrix, column.name, row.name)
    models = {
        "GPT-4o-08": "GPT-4o-08",
        "Gemini-1.5-Pro": "Gemini-1.5-Pro",
        "Llama-3.1-8B-Inst": "Llama-3.1-8B, instruct",
        "Llama-3.1-70B-Inst": "Llama-3.1-70B, instruct",
    }
    for name, there in models.items():
        for length in ("8k", "16k", "32k", "64k", "128k"):
            row = table("tasks").row(name)
            yield _same(table("tasks"), row, f"RAG, {length}", table("extrapolation"), there, f"RAG, {length}")
    shares = [table("5").number(row.name, "Share") for row in table("5").rows]
    yield Check(
        id="lecture-5, sum",
        place="slide 40, Table 5",
        how="sum of the shares, which is the whole",
        printed=100.0,
        recomputed=sum(shares),
        tolerance=0.0,
    )
    numbers = LLAMA_70B["layers"] * LLAMA_70B["kv_heads"] * LLAMA_70B["head_dim"] * 2
    yield Check(
        id="lecture, cache of 1M tokens",
        place="slide 4",
        how="layers x key-value heads x head size x 2 x 2 bytes x 1e6 tokens",
        printed=lecture.statement("cache-of-1m-tokens").values["gigabytes"],
        recomputed=numbers * 2 * 1e6 / 1e9,
        tolerance=0.05 * numbers * 2 * 1e6 / 1e9,  # 1M may be 2^20
    )
    bases = lecture.statement("suggested-base").values
    for key, theta, factor in (
        ("at_64k", LLAMA_3["theta"], 65536 / LLAMA_3["length"]),
        ("at_512k", table_theta(lecture, "18"), 524288 / 65536),
    ):
        yield Check(
            id=f"lecture, suggested base {key}",
            place="slide 46",
            how=f"NTK: base x factor^(d / (d - 2)), from base {theta:g} by {factor:g}",
            printed=bases[key],
            recomputed=theta * factor ** (LLAMA_3["head_dim"] / (LLAMA_3["head_dim"] - 2)),
            tolerance=0.05 * bases[key],  # "roughly"
        )


def table_theta(lecture: published.Publication, which: str) -> float:
    """The RoPE base of the last row of a table of bases, which is the one that was kept."""
    return float(lecture.table(which).rows[-1].name)
