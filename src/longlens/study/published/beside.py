"""A user's models beside a published table: what their run directories hold of its columns, and what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from longlens.bench.results import summarize_run
from longlens.bench.selection import HARNESS
from longlens.bench.store import NUMBER, check_fields, check_numbers
from longlens.errors import UserError, shown
from longlens.files import read_json
from longlens.metrics.uncertainty import Interval
from longlens.runs.folder import MANIFEST, read_manifest
from longlens.runs.identity import ModelIdentity
from longlens.study import published
from longlens.study.published.tables import SELF, Measure, PublishedColumn, PublishedTable

PERPLEXITY = "perplexity.json"
"""File of a run of longlens longppl."""
SIX = ("recall", "rag", "rerank", "icl", "longqa", "summ")
"""HELMET's categories without citations, whose mean ProLong reports."""
_INTERVALS = ("ppl", "longppl")
_AGAIN = "run longlens longppl again, which rewrites it"


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnValue:
    """A number of a user's run.

    Attributes:
        value: The number.
        interval: Its 95 % interval; None if there is none.
        length: Tokens of the prompts, where a run has several lengths and the column has none; else None.
    """

    value: float
    interval: Interval | None = None
    length: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnModel:
    """A model of a user, with all runs of it.

    Attributes:
        name: What the first of its runs calls it.
        identity: Which model it is.
        perplexities: Contents of ``perplexity.json``.
        benches: What `longlens.bench.results.summarize_run` says.
    """

    name: str
    identity: ModelIdentity
    perplexities: list[Mapping[str, Any]] = field(default_factory=list)
    benches: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A published table with models of the user.

    Attributes:
        table: The table.
        columns: What it measures and a run directory can hold, each once, then LongPPL by other evaluators.
        models: Name of a model -> its values by name of a column.
        differs: Name of a model -> what keeps its numbers from being comparable, a sentence each.
    """

    table: PublishedTable
    columns: list[PublishedColumn]
    models: dict[str, dict[str, list[OwnValue]]]
    differs: dict[str, list[str]]

    @property
    def is_same_table(self) -> bool:
        """Whether each measure is one column of the published table, so that the models can be shown below its rows."""
        names = [column.name for column in self.table.columns]
        return all(column.name in names for column in self.columns if column.measure is not None)

    def rows(self) -> Iterator[tuple[str, dict[str, OwnValue]]]:
        """A row per model and length: its name, and values by column; those without a length are in its first row."""
        for model, values in self.models.items():
            lengths = {one.length for found in values.values() for one in found}
            for at, length in enumerate(sorted(lengths - {None}, key=int) or [None]):  # type: ignore[arg-type]
                wanted = (length,) if at else (length, None)
                cells = {name: one for name, found in values.items() for one in found if one.length in wanted}
                yield (model if length is None else f"{model}, {length:,} tokens"), cells


def read_models(runs: Sequence[Path]) -> list[OwnModel]:
    """The models of some run directories; those of one model are put together, in whatever dtype they ran.

    Args:
        runs: Folders of ``longlens longppl`` (or ``longlens demo``) and of ``longlens bench run``.

    Raises:
        UserError: A folder is neither, or broken.
    """
    models: list[OwnModel] = []
    for folder in runs:
        if (folder / PERPLEXITY).is_file():
            content = _read_perplexity(folder / PERPLEXITY)
            scores = folder / "model" if (folder / "model").is_dir() else folder  # longlens demo has one model
            name, record = content["model"], read_manifest(scores).get("model")
        elif (folder / MANIFEST).is_file() and (folder / "samples").is_dir():
            content = summarize_run(folder)
            name, record = content["model"], read_manifest(folder).get("engine")
        else:
            what = "no such folder" if not folder.exists() else "neither perplexity.json nor samples in it"
            raise UserError(
                f"{shown(folder)} is not a run ({what}): give folders of longlens longppl -o RUN and longlens bench run"
            )
        if not isinstance(name, str) or not isinstance(record, Mapping):
            raise UserError(f"{shown(folder)} is broken (no name or record of its model): run it again")
        identity = ModelIdentity.read(record)
        model = next((one for one in models if one.identity.is_same_model(identity)), None)
        if model is None:
            label = PurePosixPath(name).name
            if label in [one.name for one in models]:
                label = f"{label} in {folder}"
            model = OwnModel(name=label, identity=identity)
            models.append(model)
        (model.perplexities if (folder / PERPLEXITY).is_file() else model.benches).append(content)
    return models


def _read_perplexity(path: Path) -> dict[str, Any]:
    """What longlens longppl wrote, its parts that are used here checked."""
    content, step = read_json(path, _AGAIN), _AGAIN
    numbers = {f"{name}?": NUMBER for name in ("ppl", "longppl", "ppl_answers", "ppl_rest")}
    fields = {"model": str, "evaluator?": str, **numbers, "num_documents": int, "settings": dict, "intervals": dict}
    check_fields(content, str(path), fields, step=step)
    known = {"context?": int, "stride?": int, "alpha?": NUMBER, "beta?": NUMBER, "max_length?": int}
    check_fields(content["settings"], f"{path}: settings", {**known, "bos?": str, "lcl?": bool}, step=step)
    for name in _INTERVALS:
        if content["intervals"].get(name) is not None:
            check_numbers(content["intervals"][name], f"{path}: intervals, {name}", 2)
    return content


def beside(table: PublishedTable, models: Sequence[OwnModel]) -> Beside:
    """What run directories hold of a table's columns, and how it differs from what the table is of.

    Args:
        table: The table.
        models: From `read_models`.

    Raises:
        UserError: The table measures nothing that run directories hold, or the runs hold nothing of it.
    """
    columns = _measured(table)
    if not columns:
        able = [id for id, other in published.tables().items() if _measured(other)]
        raise UserError(f"{table.label} has no column that run directories contain: use one of {', '.join(able)}")
    made = Beside(table=table, columns=list(columns), models={}, differs={})
    has_longppl = any(column.measure is not None and column.measure.value == "longppl" for column in columns)
    for model in models:
        found: dict[str, list[OwnValue]] = {}
        differs: dict[str, None] = {}
        for column in columns:
            assert column.measure is not None
            found[column.name] = list(_values(model, table, column.measure, differs))
        for evaluator, value in _by_other_evaluators(model, columns, differs) if has_longppl else ():
            name = f"LongPPL, {evaluator}"
            found.setdefault(name, []).append(value)
            if name not in [column.name for column in made.columns]:
                made.columns.append(PublishedColumn(name=name, unit="perplexity", decimals=2))
        made.models[model.name] = {name: _one_a_length(model, name, values) for name, values in found.items() if values}
        made.differs[model.name] = list(differs)
    if not any(made.models.values()):
        wanted = ", ".join(column.name for column in columns)
        raise UserError(f"the runs hold nothing of {table.label}, which is of {wanted}: see its commands")
    return made


def _one_a_length(model: OwnModel, column: str, values: Sequence[OwnValue]) -> list[OwnValue]:
    """The values without those that two runs share.

    Raises:
        UserError: Two runs hold different ones.
    """
    found: dict[int | None, OwnValue] = {}
    for one in values:
        other = found.setdefault(one.length, one)
        if not math.isclose(one.value, other.value, rel_tol=1e-6):
            raise UserError(
                f"two runs of {model.name} hold different values of {column} ({other.value:g} and {one.value:g}): give "
                "one of them"
            )
    return list(found.values())


def _measured(table: PublishedTable) -> list[PublishedColumn]:
    """The columns that run directories hold; of several with one measure, such as three numbers of steps, one."""
    found: dict[str, PublishedColumn] = {}
    counts = [column.measure for column in table.columns]
    for column in table.columns:
        if column.measure is not None:
            name = column.name if counts.count(column.measure) == 1 else column.name.rpartition(", ")[0]
            found.setdefault(name, column.replace(name=name))
    return list(found.values())


def _values(model: OwnModel, table: PublishedTable, measure: Measure, differs: dict[str, None]) -> Iterator[OwnValue]:
    if measure.value is not None:
        for content in model.perplexities:
            if measure.evaluator is None or _is_evaluator(content, measure.evaluator):
                value = _perplexity(content, measure.value)
                if value is not None:
                    if table.slide is None:
                        differs |= dict.fromkeys(_other_protocol(content, measure.value))
                    else:
                        differs["the slide does not say of which text and length PPL is: it cannot be compared"] = None
                    yield value
        return
    for results in model.benches:
        yield from _bench_values(results, measure, differs)


def _perplexity(content: Mapping[str, Any], name: str) -> OwnValue | None:
    value, both = content.get(name), content["intervals"].get(name) if name in _INTERVALS else None
    return (
        None if value is None else OwnValue(value=float(value), interval=None if both is None else (both[0], both[1]))
    )


def _is_evaluator(content: Mapping[str, Any], evaluator: str) -> bool:
    own = content.get("evaluator")
    if evaluator == SELF:
        return own in (None, content.get("model")) and content.get("longppl") is not None
    return isinstance(own, str) and PurePosixPath(own).name.lower() == PurePosixPath(evaluator).name.lower()


def _by_other_evaluators(
    model: OwnModel, columns: Sequence[PublishedColumn], differs: dict[str, None]
) -> Iterator[tuple[str, OwnValue]]:
    """LongPPL by evaluators that the table has no column of."""
    known = [c.measure.evaluator for c in columns if c.measure is not None and c.measure.evaluator is not None]
    for content in model.perplexities:
        value = _perplexity(content, "longppl")
        if value is not None and not any(_is_evaluator(content, evaluator) for evaluator in known):
            name = PurePosixPath(str(content.get("evaluator") or content.get("model"))).name
            differs[
                f"LongPPL is by {name}, no evaluator of the table: values of different evaluators do not compare"
            ] = None
            differs |= dict.fromkeys(_other_protocol(content, "longppl"))
            yield name, value


def _other_protocol(content: Mapping[str, Any], value: str) -> Iterator[str]:
    """How a run of longlens longppl differs from section 4.1 and appendix A.1."""
    paper = published.paper()
    wanted, settings = paper.statement("documents").values, content["settings"]
    yield (
        "documents: the paper's are 50 of GovReport; a run does not record its corpus, and perplexities of other text "
        "cannot be compared"
    )
    if content["num_documents"] != wanted["documents"]:
        yield f"number of documents is {content['num_documents']}, the paper's is {wanted['documents']:g}"
    length = settings.get("max_length")
    if length is None or abs(length - 32768) > 1024:
        cut = "not truncated" if length is None else f"truncated to {length:,} tokens"
        yield f"documents are {cut}, the paper's to 32k tokens"
    if value == "longppl":
        protocol = {name: wanted[name] for name in ("context", "alpha", "beta")}
        protocol["stride"] = paper.statement("stride").values["stride"]
        for name, setting in protocol.items():
            if settings.get(name) != setting:
                own = settings.get(name)
                yield f"{name} is {own if own is None else format(own, 'g')}, the paper's is {setting:g}"
        if settings.get("lcl") is False:
            yield "key tokens without LCL, the paper's are with it"
    if settings.get("bos") == "window":
        yield "BOS precedes every window; in the published code, only the evaluator's long context"


def _bench_values(results: Mapping[str, Any], measure: Measure, differs: dict[str, None]) -> Iterator[OwnValue]:
    if measure.harness is not None or measure.mean:
        return _harness_values(results, measure.mean or (str(measure.harness),), differs)
    if measure.task is not None:
        return _task_values(results, measure, differs)
    return _suite_values(results, measure, differs)


def _harness_values(results: Mapping[str, Any], names: Sequence[str], differs: dict[str, None]) -> Iterator[OwnValue]:
    """The score of a task of lm-evaluation-harness, or the mean of several where the run has all of them."""
    known = {name: score for name in names if (score := _harness_score(results, name)) is not None}
    if known:
        differs["the document does not say how many examples prompts have; here as in docs/bench.md"] = None
    if len(names) == 1:
        yield from known.values()
    elif len(known) == len(names):
        yield OwnValue(value=sum(one.value for one in known.values()) / len(known))
    elif known:
        missing = ", ".join(name for name in names if name not in known)
        differs[f"no mean of {len(names)} tasks: the run has no {missing}"] = None


def _task_values(results: Mapping[str, Any], measure: Measure, differs: dict[str, None]) -> Iterator[OwnValue]:
    """The score of a task at each length; several seeds of it count as more samples."""
    batches: dict[int | None, list[Mapping[str, Any]]] = {}
    for batch in results["tasks"].values():
        if batch["task"] == measure.task and batch["score"] is not None:
            batches.setdefault(batch["length"], []).append(batch)
    for length, same in batches.items():
        place = measure.task if length is None else f"{measure.task} at {length:,} tokens"
        if measure.lengths and length not in measure.lengths:
            differs[f"{place}, the table's at {_lengths(measure)}: left out"] = None
            continue
        if results["mode"] != "generate":
            differs[f"{place} is asked by {results['mode']}, the table's by generation"] = None
        count = sum(batch["num_scored"] for batch in same)
        differs[f"{place}: {count} samples"] = None
        yield OwnValue(
            value=sum(batch["score"] * batch["num_scored"] for batch in same) / count,
            interval=same[0]["interval"] if len(same) == 1 else None,
            length=None if measure.lengths else length,
        )


def _suite_values(results: Mapping[str, Any], measure: Measure, differs: dict[str, None]) -> Iterator[OwnValue]:
    """The average of a suite at each length, or over the lengths of the table."""
    by_length = {length: score for length, score in _suite_scores(results, measure) if score is not None}
    if not by_length:
        if any(batch["suite"] == measure.suite for batch in results["tasks"].values()):
            mode = results["mode"]
            why = f"asked by {mode}" if mode != "generate" else "some of its tasks or metrics are missing"
            differs[f"no average of {measure.suite}: {why}"] = None
    elif not measure.lengths:
        if measure.suite == "longbench":
            differs[
                "longbench: its English sets and code; the document does not say whether the Chinese ones count"
            ] = None
        for length, score in by_length.items():
            yield OwnValue(value=score, length=length or None)
    elif set(measure.lengths) <= set(by_length):
        yield OwnValue(value=sum(by_length[length] for length in measure.lengths) / len(measure.lengths))
    else:
        own = ", ".join(f"{length:,}" for length in by_length)
        differs[f"{measure.suite} at {own} tokens, the table's at {_lengths(measure)}: left out"] = None


def _lengths(measure: Measure) -> str:
    return " and ".join(f"{length:,}" for length in measure.lengths)


def _suite_scores(results: Mapping[str, Any], measure: Measure) -> Iterator[tuple[int, float | None]]:
    found = results["suites"].get(measure.suite, {})
    if measure.suite == "ruler":
        yield from ((int(length), mean) for length, mean in found.get("means", {}).items())
    for length, numbers in found.items() if measure.suite in ("longbench", "helmet") else ():
        if measure.suite == "longbench":
            of = numbers["overall"] if measure.part == "overall" else {"en": numbers["domains"]["en"].get(measure.part)}
            yield int(length), of.get("en")
        else:
            parts = [
                numbers["categories"].get(part) for part in (SIX if measure.part == "mean of six" else (measure.part,))
            ]
            yield int(length), None if None in parts else sum(parts) / len(parts)


def _harness_score(results: Mapping[str, Any], name: str) -> OwnValue | None:
    row, wanted = results["harness"].get(name), HARNESS[name]
    metrics = (row or {}).get("results", {}).get(wanted.task, {})
    for metric, found in metrics.items():
        if metric.partition(" (")[0] == wanted.metric and found.get("score") is not None:
            both = found.get("interval")
            return OwnValue(value=float(found["score"]), interval=None if both is None else (both[0], both[1]))
    return None
