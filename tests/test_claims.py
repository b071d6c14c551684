"""docs/results.md: what it shows is read from files, and what is not there is not made up."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec

import pytest
from benchmarks import claims
from benchmarks.claims import Claim, Evidence, Experiment, judge, number_at, read_claims, reference, render

from longlens.errors import UserError
from longlens.study import published
from longlens.study.published.derived import derived
from tests.study.test_published import parse

KNOWN = read_claims()
RESULT = {
    "seconds": 90.0,
    "r": {"ppl": -0.1},
    "rows": [{"arm": "ce", "seed": 1, "nll": 2.0}, {"arm": "longce", "nll": 1.0}],
}


def test_the_page_is_what_the_generator_writes():
    assert claims.PAGE.read_text(encoding="utf-8") == render(), "run: python -m benchmarks.claims"


def test_both_documents_are_covered():
    places = [claim.place for claim in KNOWN.claims]
    for part in ("section 2.1", "section 2.2", "section 3.1", "section 3.2", "section 4.1", "section 4.2"):
        assert any(part in place for place in places), part
    for part in ("A.1", *(f"B.{n}" for n in (1, 2, 3, 5, 6, 7, 8))):
        assert any(part in place for place in places), part
    slides = {int(n) for place in places if place.startswith("lecture") for n in re.findall(r"\d+", place)}
    assert {4, 5, 7, 14, 16, 17, 31, 32, 34, 35, 37, 38, 39, 40, 41, 42, 43, 45, 46, 47} <= slides


def test_every_published_reference_resolves():
    for claim in KNOWN.claims:
        for text in claim.there:
            assert reference(text).text != "-"
    assert reference("5 | Yi-6B-200k | PPL").value == published.table(5).number("Yi-6B-200k", "PPL")
    assert reference("5 | Mixtral-8x7B-32k | LongPPL, Llama-3.1-8B").text == "1.70"
    assert reference("lecture statement cache-of-1m-tokens.gigabytes").value == 164


def test_every_derived_number_is_used():
    used = {name for claim in KNOWN.claims if claim.own for name in claim.own.show}
    ruled = {
        name
        for claim in KNOWN.claims
        if claim.own
        for name in re.findall(r"derived:([\w-]+)", " ".join(claim.own.rule))
    }
    assert set(derived()) - used - ruled <= {"self-longeval", "self-ruler", "ppl-and-longppl"}


@pytest.mark.parametrize("name", KNOWN.experiments)
def test_the_command_of_an_experiment_can_be_run(name):
    experiment = KNOWN.experiments[name]
    words = shlex.split(experiment.command)
    if words[0] == "longlens":
        parse(words[1:])
    else:
        assert words[:2] == ["python", "-m"]
        assert find_spec(words[2]) is not None
    assert any(claim.experiment == name for claim in KNOWN.claims)


def made(claim, folder, monkeypatch, result=RESULT):
    """A claim judged by a result file; by none where there is no result."""
    monkeypatch.setattr(claims, "RESULTS", folder)
    if result is not None:
        (folder / "x.json").write_text(json.dumps(result))
    experiments = {"x": Experiment(file="x.json", command="longlens demo", differs="nothing")}
    return judge(Claim(**{"id": "c", "place": "paper", "says": "s", "experiment": "x", **claim}), experiments)


def test_a_result_that_is_not_there_has_no_number_and_no_verdict(tmp_path, monkeypatch):
    claim = {"ours": {"show": {"r": "r/ppl"}, "rule": ["ours:r/ppl < 0"]}}
    judged = made(claim, tmp_path, monkeypatch, result=None)
    assert (judged.verdict, judged.ours) == ("not measured yet", "")
    judged = made(claim, tmp_path, monkeypatch)
    assert (judged.verdict, judged.ours) == ("holds", "r: -0.10")
    assert made({}, tmp_path, monkeypatch).verdict == "not measured yet", "there is no rule yet"
    own = {"own": {"rule": ["there:1 | PPL | RULER > 0"]}}
    assert made(own, tmp_path, monkeypatch).verdict == "not measured yet", "printed numbers are no experiment"


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        (["ours:r/ppl < 0", "ours:rows/arm=ce/nll > ours:rows/arm=longce/nll"], "holds"),
        (["ours:r/ppl < 0", "ours:rows/arm=ce&seed=1/nll < 2"], "partly"),
        (["ours:r/ppl > 0", "ours:rows/arm=ce/nll < 2"], "does not hold"),
        (["ours:r/ppl > -0.2 and ours:r/ppl < -0.15"], "does not hold"),
        (["ours:r/ppl > there:1 | PPL | LongBench"], "holds"),
        (["derived:rest-yi < -0.7 and derived:rest-yi.p < 0.01"], "holds"),
    ],
)
def test_a_verdict_follows_the_rule(rule, verdict, tmp_path, monkeypatch):
    assert made({"ours": {"show": {"r": "r/ppl"}, "rule": rule}}, tmp_path, monkeypatch).verdict == verdict


def test_paths_go_into_lists():
    rows = [{"way": "online", "window": {"k": 384, "d": d}, "ratio": [d, 2 * d]} for d in (96, 384)]
    assert number_at({"rows": rows}, "rows/way=online&window.k=384&window.d=384/ratio/1") == 768
    assert number_at({"rows": rows}, "rows/0/ratio/0") == 96


def test_what_a_result_has_as_null_holds_nothing(tmp_path, monkeypatch):
    result = {"r": {"interval": None}}
    claim = {"ours": {"show": {"low": "r/interval/0"}, "rule": ["ours:r/interval/0 < 0", "ours:r/interval/0 > 0"]}}
    judged = made(claim, tmp_path, monkeypatch, result)
    assert (judged.verdict, judged.ours) == ("does not hold", "low: -")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Evidence(RESULT).value("ours:r/longppl"),
        lambda: Evidence(RESULT).value("derived:nosuch"),
        lambda: Evidence(RESULT).value("derived:cheap-rulers.low"),
        lambda: Evidence(RESULT).value("derived:bases-64k.p"),
        lambda: Evidence(RESULT).value("check:nosuch"),
        lambda: Evidence(RESULT).verdict(["ours:r/ppl = 1"]),
        lambda: number_at(RESULT, "rows/arm=oracle/nll"),
        lambda: number_at(RESULT, "rows"),
        lambda: number_at(RESULT, "rows/7/nll"),
        lambda: number_at({"rows": [{"a": 1, "n": 2}, {"a": 1, "n": 3}]}, "rows/a=1/n"),
        lambda: reference("5 | Yi | PPL"),
        lambda: reference("figure-5 | Yi-6B-200k | RULER"),
        lambda: reference("statement headline.nosuch"),
    ],
)
def test_what_is_not_there_is_refused(wrong):
    with pytest.raises(UserError):
        wrong()


def test_rules_and_paths_fit_the_results_that_are_there():
    judged = [judge(claim, KNOWN.experiments) for claim in KNOWN.claims if claim.ours is not None]
    there = [one for one in judged if one.ours]
    assert all(one.verdict in claims.VERDICTS[:3] for one in there)
    assert {"overhead", "suggested-bases"} <= {one.claim.id for one in there}
