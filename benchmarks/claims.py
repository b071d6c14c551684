"""Writes docs/results.md: the claims of the paper and the lecture, published numbers, our numbers, and verdicts.

python -m benchmarks.claims

All content of the page is read from files: claims and rules from ``benchmarks/claims.yaml``, published numbers from
`longlens.study.published`, our numbers from ``benchmarks/results/*.json``. Claims without a result are marked.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from benchmarks.tables import ROOT
from longlens.errors import UserError
from longlens.files import read_json
from longlens.settings.recipe import Name, Settings, parse, parse_yaml
from longlens.study import published
from longlens.study.published.derived import Derived, derived
from longlens.study.published.recompute import checks, disagreements

CLAIMS = ROOT / "benchmarks" / "claims.yaml"
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmarks" / "results"
VERDICTS = ("holds", "partly", "does not hold", "not testable here", "not measured yet")
COMPARISONS = {"<": operator.lt, ">": operator.gt}
_RULE = re.compile(r"(.+) ([<>]) (.+)")
Texts = Annotated[tuple[Name, ...], Field(strict=False)]


class Experiment(Settings):
    """The source of our numbers.

    Attributes:
        file: File in ``benchmarks/results``.
        command: Command that creates it.
        differs: Differences from the documents.
    """

    file: Name
    command: Name
    differs: Name


class Own(Settings):
    """Conclusions from the printed numbers themselves.

    Attributes:
        show: Names of `derived`.
        rule: Comparisons, see ``claims.yaml``.
    """

    show: Texts = ()
    rule: Texts


class Ours(Settings):
    """Our numbers.

    Attributes:
        show: Path into the result file by what is shown.
        show: Path into the result file, by label.
    """

    show: dict[str, Name]
    rule: Texts


class Claim(Settings):
    """A claim.

    id: Its name.
    place: Its position in the document.
    says: The claim, in our words.
    there: Its published numbers.
    own: Conclusions from the published numbers.
    experiment: Experiment that tests it.
    ours: Values and rules from the experiment's result; None as long as there is no rule.
    to_hold: Criterion for the claim to hold, fixed before there is a result.
    untestable: Reason why there is no experiment.
    differs: Differences in addition to those of the experiment.
    """

    id: Name
    place: Name
    says: Name
    there: Texts = ()
    own: Own | None = None
    experiment: Name | None = None
    ours: Ours | None = None
    to_hold: str = ""
    untestable: Name | None = None
    differs: str = ""


class Claims(Settings):
    """The content of ``claims.yaml``."""

    experiments: dict[str, Experiment]
    claims: Annotated[tuple[Claim, ...], Field(strict=False)]


def read_claims() -> Claims:
    """The claims, checked: ids are unique, experiments known, and each claim can get a verdict."""
    found = parse(Claims, parse_yaml(CLAIMS.read_text(encoding="utf-8"), CLAIMS.name, "mend it"), CLAIMS.name)
    twice = [id for id, count in Counter(claim.id for claim in found.claims).items() if count > 1]
    if twice:
        raise UserError(f"{CLAIMS.name}: ids that are there twice: {', '.join(twice)}")
    for claim in found.claims:
        if claim.experiment is not None and (claim.experiment not in found.experiments or claim.untestable):
            raise UserError(f"{claim.id}: expected one of the experiments, or a reason why there is none")
        if claim.ours is not None and claim.experiment is None:
            raise UserError(f"{claim.id}: `ours` without an experiment")
        if claim.experiment is not None and not (claim.ours or claim.to_hold):
            raise UserError(f"{claim.id}: neither `ours` nor `to_hold` says when it holds")
        if claim.experiment is None and claim.untestable is None and claim.own is None:
            raise UserError(f"{claim.id}: nothing to judge it by")
    return found


class Evidence:
    """Evidence for verdicts: published numbers, and the result file of an experiment, None if it does not exist."""

    def __init__(self, result: Mapping[str, Any] | None = None) -> None:
        self.result = result
        self.derived = _derived()
        self.checks = {check.id: check for check in checks()}

    def value(self, operand: str) -> float | None:
        """An operand of a rule, as ``claims.yaml`` describes them; None if a result has null.

        Raises:
            UserError: There is no such number.
        """
        kind, colon, name = operand.partition(":")
        if not colon:
            return float(operand)
        if kind == "there":
            return reference(name).value
        if kind == "check" and name in self.checks:
            return self.checks[name].recomputed
        if kind == "ours":
            return number_at(self.result, name)
        if kind == "derived":
            id, _, part = name.partition(".")
            found = self.derived.get(id)
            if found is not None:
                ends = found.interval or (None, None)
                value = {"": found.value, "low": ends[0], "high": ends[1], "p": found.p}.get(part)
                if value is not None:
                    return value
        raise UserError(f"no number {operand!r}")

    def shown(self, name: str) -> str:
        """Returns a derived number, or the recomputed value of a check, as text."""
        kind, _, id = name.partition(":")
        if kind == "check" and id in self.checks:
            return f"{self.checks[id].how}: {_short(self.checks[id].recomputed)}"
        if name not in self.derived:
            raise UserError(f"no derived number {name!r}")
        return _shown(self.derived[name])

    def verdict(self, rule: Sequence[str]) -> str:
        """Returns ``holds`` if all comparisons are true, ``does not hold`` if none is, else ``partly``."""
        truths = [all(map(self._is_true, one.split(" and "))) for one in rule]
        return "holds" if all(truths) else "partly" if any(truths) else "does not hold"

    def _is_true(self, comparison: str) -> bool:
        found = _RULE.fullmatch(comparison)
        if found is None:
            raise UserError(f"{comparison!r} is no comparison; expected LEFT < RIGHT")
        left, right = self.value(found[1]), self.value(found[3])
        return left is not None and right is not None and bool(COMPARISONS[found[2]](left, right))


_DERIVED: dict[str, Derived] = {}


def _derived() -> dict[str, Derived]:
    if not _DERIVED:
        _DERIVED.update(derived())
    return _DERIVED


class Published(NamedTuple):
    """A published number: its name, its value, and its printed form."""

    name: str
    value: float
    text: str


def reference(text: str) -> Published:
    """A published number.

    Args:
        text: ``TABLE | ROW | COLUMN [| GROUP]``, ``statement NAME.VALUE`` or ``lecture statement NAME.VALUE``.

    Raises:
        UserError: There is no such number.
    """
    before, word, name = text.partition("statement ")
    if word:
        document = published.lecture() if before.strip() == "lecture" else published.paper()
        id, _, key = name.partition(".")
        values = document.statement(id).values
        if key not in values:
            raise UserError(f"the statement {id!r} has no {key!r}; it has {', '.join(values)}")
        return Published(f"{key.replace('_', ' ')} (text)", values[key], f"{values[key]:,g}")
    which, row, column, *group = (part.strip() for part in text.split(" | "))
    table = published.table(which)
    value = table.number(row, column, *group)
    named = f"{', '.join([*group, row, column])} ({table.label})"
    return Published(named, value, table.column(column).text(value))


def number_at(content: Any, path: str) -> float | None:
    """The number at a path of a result; None if it has null, such as an interval that does not exist.

    Args:
        content: The result.
        path: Steps with ``/`` between them: a key of an object, a place in a list (from 0), or ``KEY=VALUE``
            (several with ``&``; ``OUTER.INNER=VALUE`` for nested ones) for the one item of a list that has it.

    Raises:
        UserError: There is no number, or several items are alike.
    """
    found, missing = content, object()
    for step in path.split("/"):
        if isinstance(found, Mapping):
            found = found.get(step, missing)
        elif isinstance(found, list) and step.isdecimal():
            found = found[int(step)] if int(step) < len(found) else missing
        elif isinstance(found, list):
            wanted = [part.partition("=") for part in step.split("&")]
            items = [one for one in found if all(str(_inner(one, key)) == value for key, _, value in wanted)]
            found = items[0] if len(items) == 1 else missing
        elif found is not None:
            found = missing
    if found is None:
        return None
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise UserError(f"a result has no number at {path!r}, or several: fix the path in {CLAIMS.name}")
    return float(found)


def _inner(item: Any, key: str) -> Any:
    for part in key.split("."):
        item = item.get(part) if isinstance(item, Mapping) else None
    return item


def read_result(experiment: Experiment) -> dict[str, Any] | None:
    """The result file of an experiment; None if it is not there."""
    path = RESULTS / experiment.file
    return read_json(path) if path.exists() else None


class Judged(Settings):
    """A claim as shown on the page.

    Attributes:
        claim: The claim.
        there: Its published numbers.
        own: Conclusions from them, and the verdict on these.
        ours: Our numbers.
        verdict: One of `VERDICTS`.
    """

    claim: Claim
    there: str
    own: str
    ours: str
    verdict: Name


def judge(claim: Claim, experiments: Mapping[str, Experiment]) -> Judged:
    """Returns a claim with its numbers and its verdict."""
    experiment = None if claim.experiment is None else experiments[claim.experiment]
    evidence = Evidence(None if experiment is None else read_result(experiment))
    there = "; ".join(f"{one.name}: {one.text}" for one in map(reference, claim.there))
    own, verdict = "", "not measured yet"
    if claim.own is not None:
        found = evidence.verdict(claim.own.rule)
        shown = [evidence.shown(name) for name in claim.own.show]
        own = "; ".join([*shown, f"**{found}**"])
        if experiment is None and claim.untestable is None:
            verdict = found
    ours = ""
    if claim.untestable is not None:
        verdict = "not testable here"
    elif experiment is not None and evidence.result is not None and claim.ours is not None:
        verdict = evidence.verdict(claim.ours.rule)
        ours = "; ".join(f"{name}: {_short(evidence.value(f'ours:{path}'))}" for name, path in claim.ours.show.items())
    return Judged(claim=claim, there=there, own=own, ours=ours, verdict=verdict)


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _shown(found: Derived) -> str:
    both = "" if found.interval is None else f" [{_short(found.interval[0])}, {_short(found.interval[1])}]"
    p = "" if found.p is None else ", p < 0.001" if found.p < 0.001 else f", p = {found.p:.3f}"
    return f"{found.what}: {_short(found.value)}{both}{p}"


HEAD = """\
# Does it hold? The claims of the paper and of the lecture

This page compares each claim of the paper and of the lecture with the printed numbers and with our experiments. It is
written by `python -m benchmarks.claims`: claims and rules are in `benchmarks/claims.yaml`, published numbers in
`longlens.study.published` (`longlens study published` prints them), our numbers in `benchmarks/results`. No number is
copied by hand. The [paper index](paper_index.md) lists where each equation, table and setting is in longlens.

- **Its own numbers**: recomputed from the numbers that the document prints. Brackets are 95 % intervals for
  correlations (Fisher's z), otherwise the minimum and maximum. The verdict on these numbers is in bold.
- **Verdict**: `holds`, `partly` or `does not hold` by our experiment; for claims only about printed numbers, by these.
  `not testable here`: needs models or data that are not available without a GPU and the Hub. `not measured yet`: the
  experiment has no result; the criterion (`to hold`) was fixed in advance.

Rules about printed numbers and about arithmetic (the experiment `arithmetic`) were written with these numbers known. A
first rule compared LongPPL's cost in FLOPs with the 3 to 4 times of Table 12, which are times; it was dropped.
"""


def render() -> str:
    """The page."""
    found = read_claims()
    judged = [judge(claim, found.experiments) for claim in found.claims]
    counts = Counter(one.verdict for one in judged)
    own = [one.own.rpartition("**")[0].rpartition("**")[2] for one in judged if one.own]
    lines = [HEAD, f"{len(judged)} claims: " + ", ".join(f"{counts[name]} {name}" for name in VERDICTS) + ". "]
    by_own = Counter(own)
    lines[-1] += (
        f"By their own numbers ({len(own)} of them): " + ", ".join(f"{by_own[n]} {n}" for n in VERDICTS[:3]) + "."
    )
    lines += ["", "## Experiments", "", *_experiments(found, judged)]
    for document, title in (("paper", "The paper"), ("lecture", "The lecture")):
        mine = [one for one in judged if one.claim.place.startswith(document)]
        lines += ["", f"## {title}", "", *_claims(mine, found.experiments)]
    lines += ["", "## Errata", "", *_errata()]
    return "\n".join(lines) + "\n"


def _experiments(found: Claims, judged: Sequence[Judged]) -> Iterator[str]:
    yield "| experiment | command | time | machine | claims | what differs |"
    yield "| --- | --- | ---: | --- | ---: | --- |"
    for name, experiment in found.experiments.items():
        result = read_result(experiment)
        seconds = None if result is None else result.get("seconds")
        spent = "not run yet" if result is None else "not recorded" if seconds is None else _time(float(seconds))
        machine = "-" if result is None else result.get("machine", "not recorded")
        number = sum(one.claim.experiment == name for one in judged)
        cells = (name, f"`{experiment.command}`", spent, machine, str(number), experiment.differs)
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _claims(judged: Sequence[Judged], experiments: Mapping[str, Experiment]) -> Iterator[str]:
    yield "| claim | there | its own numbers | ours | what differs | verdict |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in judged:
        claim = one.claim
        ours = one.ours
        if claim.experiment is not None:
            has_result = read_result(experiments[claim.experiment]) is not None
            missing = (
                "" if ours else f"{' has a result, and no rule yet' if has_result else ''}; to hold: {claim.to_hold}"
            )
            ours = f"{ours + '; ' if ours else ''}[{claim.experiment}](#experiments){missing}"
        differs = " ".join(part for part in (claim.untestable, claim.differs) if part)
        cells = (f"{claim.says} ({claim.place})", one.there, one.own, ours, differs, f"**{one.verdict}**")
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def _errata() -> Iterator[str]:
    yield (
        f"{len(checks())} printed numbers (gains, means, percentages, numbers that are printed twice) were recomputed "
        f"from other printed ones. Rounding explains all but {len(disagreements())}, which are listed here with errors "
        "in words and formulas."
    )
    yield ""
    yield "| where | printed | should be | why |"
    yield "| --- | --- | --- | --- |"
    for document in (published.paper(), published.lecture()):
        for one in document.errata:
            yield "| " + " | ".join(map(_cell, (one.place, one.printed, one.recomputed, one.why))) + " |"


def _cell(text: str) -> str:
    r"""Formats a cell of a Markdown table: ``|`` as ``\|``, and a hyphen if it is empty."""
    return text.replace("|", r"\|") or "-"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
