"""LongBench's averages, against the tables of its README (THUDM/LongBench at 2e00731, LongBench/README.md)."""

from __future__ import annotations

import pytest

from longlens.errors import UserError
from longlens.tasks.longbench import BUCKETS, SETS, summarize, summarize_e

# GPT-3.5-Turbo-16k and ChatGLM3-6B-32k, "Evaluation Result on Each Dataset", in the order of `SETS`
PUBLISHED = {
    "gpt": [23.6, 43.3, 52.3, 61.2, 51.6, 37.7, 26.9, 28.7, 29.5, 23.4, 26.7, 16.0, 68.0, 91.4, 41.7, 29.2, 4.5, 71.0,
            77.5, 54.7, 53.6],
    "glm": [26.0, 43.3, 51.7, 62.3, 54.4, 44.9, 40.4, 44.78, 36.8, 23.9, 27.9, 17.8, 79.0, 87.1, 38.2, 42.0, 2.0, 99.0,
            94.0, 57.66, 54.76],
}  # fmt: skip
# "Leaderboard": Avg, then single-doc, multi-doc, summarization, few-shot, code, synthetic
LEADERBOARD = {
    ("gpt", "en"): [44.0, 39.8, 38.7, 26.5, 67.1, 54.1, 37.8],
    ("gpt", "zh"): [44.5, 61.2, 28.7, 16.0, 29.2, 54.1, 77.5],
    ("glm", "en"): [48.5, 40.3, 46.6, 29.5, 68.1, 56.2, 50.5],
    ("glm", "zh"): [52.8, 62.3, 44.8, 17.8, 42.0, 56.2, 94.0],
}
COLUMNS = ("single-doc QA", "multi-doc QA", "summarization", "few-shot", "code", "synthetic")


def named(values, prefix="longbench_"):
    return {prefix + name: value for name, value in zip(SETS, values, strict=True)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_sets_give_the_published_averages(model):
    found = summarize(named(PUBLISHED[model]))
    for part in ("en", "zh"):
        average, *domains = LEADERBOARD[model, part]
        # The README's sets are rounded to one place already.
        assert found.overall[part] == pytest.approx(average, abs=0.1)
        assert [found.domains[part][domain] for domain in COLUMNS] == pytest.approx(domains, abs=0.11)
    assert found.gaps == []
    # Paper, table 2, column "All" of GPT-3.5-Turbo-16k
    if model == "gpt":
        assert found.overall["all"] == pytest.approx(44.7, abs=0.1)


def test_domains_weigh_alike_whatever_their_sets():
    scores = named([100.0 if facts.category == "code" else 0.0 for facts in SETS.values()])
    assert summarize(scores).overall == {part: pytest.approx(100 / 6) for part in ("en", "zh", "all")}


def test_a_missing_set_is_an_error_or_a_named_gap():
    scores = named([50.0] * 21)
    del scores["longbench_vcsum"]
    scores["longbench_lsht"] = None
    with pytest.raises(UserError, match="no score of longbench_vcsum, longbench_lsht: an average without them is not"):
        summarize(scores)
    found = summarize(scores, allow_gaps=True)
    assert found.gaps == ["longbench_vcsum", "longbench_lsht"]
    assert found.overall == {"en": 50.0, "zh": None, "all": None}
    assert [domain for domain, value in found.domains["zh"].items() if value is None] == ["summarization", "few-shot"]
    assert found.domains["all"]["code"] == 50.0
    with pytest.raises(UserError, match="unknown datasets longbench_vcsun; expected longbench_narrativeqa, "):
        summarize(scores | {"longbench_vcsun": 1.0}, allow_gaps=True)


def test_e_is_summed_up_by_length():
    sets = [name for name, facts in SETS.items() if facts.samples_e]
    scores = {f"longbench_e_{name}": {"0-4k": 60.0, "4-8k": 40.0, "8k+": float(n)} for n, name in enumerate(sets)}
    found = summarize_e(scores)
    assert list(found) == list(BUCKETS)
    assert (found["0-4k"].overall, found["4-8k"].overall) == ({"en": 60.0}, {"en": 40.0})
    # single-doc 0, 1; multi-doc 2, 3; summaries 4, 5; few-shot 6, 7, 8; synthetic 9, 10; code 11, 12
    assert found["8k+"].overall["en"] == pytest.approx((0.5 + 2.5 + 4.5 + 7 + 9.5 + 11.5) / 6)
    scores["longbench_e_lcc"]["8k+"] = None
    with pytest.raises(UserError, match=r"no score of longbench_e_lcc in bucket 8k\+: an average"):
        summarize_e(scores)
    gaps = summarize_e(scores, allow_gaps=True)
    assert (gaps["0-4k"].overall["en"], gaps["8k+"].overall["en"]) == (60.0, None)
    assert gaps["8k+"].gaps == ["longbench_e_lcc"]
    with pytest.raises(UserError, match="unknown datasets longbench_lcc"):
        summarize_e({"longbench_lcc": {}}, allow_gaps=True)
