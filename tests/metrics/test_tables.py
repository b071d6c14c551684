"""Results as tables: columns are named as in the JSON, and hold what it holds."""

import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest

import longlens
from longlens.tables import plain
from tests.metrics.test_reach import evaluator, run

pytestmark = pytest.mark.filterwarnings("ignore::longlens.LonglensWarning")

ANSWERS = {"d00": [(0, 9), (36, 40)], "d01": [(40, 44)]}


def result(name):
    chosen = {"evaluator_scores": evaluator(), "answers": ANSWERS}
    runs = [run(name="M"), run([0, 0.1, 0.2], name="N", noise=0.1)]
    if name == "compare":
        return longlens.compare(runs, **chosen)
    if name == "reach":
        return longlens.reach(runs[0], **chosen, resamples=20)
    return getattr(longlens, name)(runs[0], **chosen)


@pytest.mark.parametrize("name", ["perplexity", "compare", "distributions", "reach"])
def test_pandas_and_arrow_hold_the_same(name):
    found = result(name)
    table, frame = found.to_arrow(), found.to_pandas()
    assert isinstance(table, pa.Table)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == table.column_names
    assert len(frame) == table.num_rows > 0


def test_perplexity_has_a_row_a_document():
    found = result("perplexity")
    assert found.to_arrow().to_pylist() == found.to_json(per_document=True)["documents"]
    assert found.to_pandas()["num_tokens"].sum() == found.num_tokens


def test_compare_has_a_row_a_pair():
    found = result("compare")
    (row,) = found.to_arrow().to_pylist()
    (pair,) = found.to_json()["pairs"]
    nested = {name: value for name, value in pair.items() if isinstance(value, dict)}
    flat = {f"{name}.{part}": value for name, parts in nested.items() for part, value in parts.items()}
    assert row == {name: value for name, value in pair.items() if name not in nested} | flat
    assert row["log_ppl.interval"] == list(found.pairs[0].log_ppl.interval)
    alone = longlens.compare([run(name="M"), run(name="N")])
    assert alone.to_arrow().to_pylist()[0]["log_longppl.value"] is None


def test_reach_has_a_row_a_curve_and_k():
    found = result("reach")
    printed = found.to_json()
    expected = [
        {"model": "M", "tokens": tokens, **dict(zip(names, values, strict=True))}
        for tokens in ("all", "keys", "answers")
        for names in [("contexts", "gains", "gain_intervals", "fit")]
        for values in zip(*(printed[tokens][name] or [None] * 3 for name in names), strict=True)
    ]
    assert found.to_arrow().to_pylist() == expected
    assert len(expected) == 9


def test_distributions_have_a_row_a_class_and_a_bin():
    found = result("distributions")
    frame = found.to_pandas()
    classes = frame[frame["distribution"] == "lsd"]
    assert tuple(classes["counts"]) == found.lsd.counts
    assert tuple(classes["to"][:-1]) == tuple(classes["from"][1:]) == found.lsd.edges
    assert classes[["long_logprob", "num_tokens"]].isna().all(axis=None)
    assert len(frame[frame["distribution"] == "lcl"]) == len(found.lcl.counts)
    positions = frame[frame["distribution"] == "positions"]
    assert positions["num_tokens"].tolist() == found.positions.num_tokens.tolist()
    assert positions["to"].tolist() == found.positions.edges[1:].tolist()
    assert "lsd" not in set(longlens.distributions(long_only()).to_pandas()["distribution"])


def long_only():
    from tests.toys import scores, token_scores

    return scores(token_scores(["a", "b"], [-1, -1]))


def test_plain_values_are_those_of_json():
    import numpy as np

    assert plain({"a": (1, float("nan")), "b": np.array([[1.5, np.nan]])}) == {"a": [1, None], "b": [[1.5, None]]}


def test_neither_is_imported_before_it_is_asked_for():
    program = "import sys, longlens.metrics, longlens.report; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
