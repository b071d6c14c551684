"""Measures the loss by cache policies on real models: retained gain, KL, PPL, LongPPL, and answers of two tasks.

python -m benchmarks.caches FOLDER [MODEL ...]     (runs what is missing in the folder; one process per model is fine)
python -m benchmarks.caches NEW-FOLDER --plan      (times one document of each kind, and estimates the total)

For each model: texts of four kinds, scored under the full cache with short contexts and under each policy with the
full model as the reference; and documents of json_kv and of RULER's needles that state the right answers, in which
the rank of every answer token is stored. ``FOLDER/MODEL/arms/ARM.json`` has what an arm gave, by document.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tables import ROOT, fill_block, machine, markdown
from longlens import Document, open_scores, score
from longlens.cli.progress import ProgressBar
from longlens.errors import UserError
from longlens.files import read_json, write_json
from longlens.keytokens.alignment import as_spans, tokens_touching
from longlens.metrics.cost import cost
from longlens.metrics.uncertainty import Doubles, Interval, estimate, percentile_interval
from longlens.models import load_scorer
from longlens.models.caches import CacheUse
from longlens.models.policies import load_cache
from longlens.progress import Progress
from longlens.report.charts import cost_charts
from longlens.report.figures import write_figures
from longlens.scoring.statistics import DIVERGENCE, RANK, Statistic
from longlens.scoring.transformers import TransformersScorer
from longlens.settings.options import KeyRule
from longlens.study.correlation import correlate_columns
from longlens.study.correlation_study.questions import TaskSettings, make_questions
from longlens.study.reproduce import Steps
from longlens.study.texts import KINDS, four_kinds
from longlens.train.folder import RunFolder

NAME = "caches"
PAGE = "docs/caches.md"
FULL = "full"
TASKS = {"json_kv": 1 / 16, "niah_multikey_1": 1 / 10}
"""Tasks, with the probability of guessing a symbol of their answers (hexadecimal, decimal)."""
METRICS = {"retained gain": 1, "KL": -1, "PPL": -1, "LongPPL": -1}
"""Metrics that are correlated with accuracy, with the expected sign."""
FAR = "retained gain, farthest"
"""Retained gain of key tokens that need more than the largest K: a total over the texts, without an interval.

Added after the results of the other metrics were known.
"""
DRAWS = 4000
EVICTION = ("window:{}", "sink:4+{}", "random:{}", "knorm:{}", "h2o:{}", "snapkv:{}", "tova:{}")
DRAWN = ("window:1024", "sink:4+1024", "snapkv:1024", "h2o:1024", "hqq:4", "fp8")
QUANTIZED = ("hqq:1", "hqq:2", "hqq:4", "fp8")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A model and the settings of its experiment.

    Attributes:
        model: Name or path.
        policies: Policies in addition to the full cache; those of one kind in increasing size.
        length: Length of a document in tokens of the model's tokenizer.
        contexts: K of the full run, increasing; key tokens are those at the first.
        strides: d for each K.
        kinds: Kinds of texts, see `four_kinds`.
        texts: Number of texts of each kind.
        documents: Number of documents of each task.
        questions: Number of questions in a document of a task, with their answers.
        room: Tokens reserved for the questions after the first one.
        alpha: Alpha of key tokens, nats.
        beta: Threshold of the long-context likelihood of key tokens, nats.
        chunk: Tokens per chunk.
        seed: Seed of the tasks.
    """

    model: str
    policies: Sequence[str]
    length: int = 4096
    contexts: Sequence[int] = (64, 256, 1024)
    strides: Sequence[int] = (64, 256, 512)
    kinds: Sequence[str] = KINDS
    texts: int = 1
    documents: int = 3
    questions: int = 4
    room: int = 420
    alpha: float = 2.0
    beta: float = -2.0
    chunk: int = 256
    seed: int = 1


def sized(kinds: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Returns every combination of kind and size."""
    return [kind.format(size) for kind in kinds for size in sizes]


EXPERIMENTS = (
    Experiment(model="smollm2", policies=(*sized(EVICTION, (256, 512, 1024)), *QUANTIZED)),
    Experiment(model="gemma3-270m", policies=sized(EVICTION, (512,)), documents=2),
)


class RememberedReference(TransformersScorer):
    """A reference that runs once for each token sequence; all arms are compared with its stored states."""

    def _long_hidden(self, input_ids: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        known: dict[bytes, torch.Tensor] = self.__dict__.setdefault("_known", {})
        key = input_ids.numpy().tobytes() + keep.numpy().tobytes()
        if key not in known:
            known[key] = super()._long_hidden(input_ids, keep)[0]
        return known[key], None


class Arms:
    """Runs the arms of a model in its directory.

    Args:
        experiment: Settings.
        path: The directory.
        progress: Shows the progress.
    """

    def __init__(self, experiment: Experiment, path: Path, progress: Progress) -> None:
        self.experiment, self.path, self._progress = experiment, path, progress
        self._questions: dict[str, list[Document]] = {}

    @cached_property
    def _loaded(self) -> Any:
        return load_scorer(self.experiment.model, dtype="float32")

    @cached_property
    def texts(self) -> list[Document]:
        """Documents on which the gain is measured."""
        chosen = self.experiment
        return four_kinds(self._loaded.tokenizer, count=chosen.texts, tokens=chosen.length, kinds=chosen.kinds)

    def questions(self, task: str) -> list[Document]:
        """Returns documents of a task, each with several questions and answers at known positions."""
        if task not in self._questions:
            self._questions[task] = self._ask(task)
        return self._questions[task]

    def _ask(self, task: str) -> list[Document]:
        chosen = self.experiment
        settings = TaskSettings(task=task, length=chosen.length - chosen.room, texts=chosen.documents)
        asked = make_questions(
            settings,
            count=chosen.documents * chosen.questions,
            seed=chosen.seed,
            tokenizer=self._loaded.tokenizer,
        )
        found = []
        for number, several in enumerate(asked):
            asks = [question.text for question in several]
            same = next(
                (i for i, symbols in enumerate(zip(*asks, strict=False)) if len(set(symbols)) > 1), len(asks[0])
            )
            begins = asks[0].rfind("\n", 0, same) + 1
            text, spans = several[0].text[:begins], []
            for question in several:
                text += question.text[begins:] + question.target
                spans.append((len(text) - len(question.target), len(text)))
                text += "\n\n"
            found.append(Document(id=f"{task}/{number}", text=text, answer_spans=spans))
        return found

    def scorer(self, policy: str, statistics: Sequence[Statistic], *, compares: bool) -> TransformersScorer:
        """Returns a scorer of the model under a policy.

        Args:
            policy: Name of the policy.
            statistics: Statistics to store.
            compares: Whether to compare with the full cache.
        """
        return self._scorer(
            TransformersScorer,
            cache=CacheUse(policy=load_cache(policy), chunk=self.experiment.chunk),
            statistics=statistics,
            reference=self._reference if compares else None,
        )

    @cached_property
    def _reference(self) -> TransformersScorer:
        return self._scorer(RememberedReference)

    def _scorer(self, kind: type[TransformersScorer], **settings: Any) -> TransformersScorer:
        info = self._loaded.info
        about = {"name": info.name, "source": info.source, "weights_sha256": info.weights_sha256}
        return kind(self._loaded.model, self._loaded.tokenizer, **about, **settings)

    def run(self, policy: str) -> dict[str, Any]:
        """Scores what is missing of an arm, and returns its results.

        Returns:
            ``text``, a policy in the format of ``longlens cost --json``; ``answers``, by task ``(right, tokens)`` of
            each document; ``seconds`` of one core for each part, in the last run of the arm.
        """
        chosen, folder = self.experiment, self.path / "runs"
        whole = folder / FULL / "text"
        text = folder / slug(policy) / "text"
        seconds = {}
        documents = self.texts  # with the model loaded
        started = time.process_time()
        if policy == FULL:
            scorer = self.scorer(policy, [], compares=False)
            several, strides = list(chosen.contexts), list(chosen.strides)
            score(documents, scorer, context=several, stride=strides, out=whole, progress=self._progress)
        else:
            scorer = self.scorer(policy, [DIVERGENCE], compares=True)
            score(documents, scorer, context=None, out=text, name=policy, progress=self._progress)
        seconds["text"], answers = time.process_time() - started, {}
        for task in TASKS:
            started = time.process_time()
            answers[task] = self._answers(policy, task, folder / slug(policy) / task)
            seconds[task] = time.process_time() - started
        full, rule = open_scores(whole), KeyRule(alpha=chosen.alpha, beta=chosen.beta)
        found = cost(full, [open_scores(text)], evaluator_scores=full, rule=rule)
        about = {name: getattr(found, name) for name in ("num_key_tokens", "num_tokens", "num_documents", "gain")}
        of_text = {name: value for name, value in found.policies[0].to_json().items() if name != "name"}
        return {"arm": policy, "about": about, "text": of_text, "answers": answers, "seconds": seconds}

    def _answers(self, policy: str, task: str, folder: Path) -> list[tuple[int, int]]:
        documents = self.questions(task)
        scorer = self.scorer(policy, [RANK], compares=False)
        score(documents, scorer, context=None, out=folder, name=policy, progress=self._progress)
        found = []
        for row in open_scores(folder):
            if row.truncated or len(row.token_ids) > self.experiment.length:
                raise SystemExit(f"{row.id} has {len(row.token_ids)} tokens: a larger `room` is needed")
            assert row.answer_spans is not None
            is_answer = tokens_touching(row.char_spans, as_spans(row.answer_spans))
            right = row.columns["rank"][is_answer] == 0
            found.append((int(right.sum()), len(right)))
        return found


def slug(policy: str) -> str:
    """Converts the policy to a directory name."""
    return policy.replace(":", "-")


def usable(policies: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the policies that can run on this machine, and the reasons why the others cannot."""
    there, lacking = [], []
    for policy in policies:
        try:
            load_cache(policy)
            there.append(policy)
        except UserError as error:
            lacking.append(str(error))
    return there, lacking


def run(experiment: Experiment, path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the missing arms of a model, and summarizes all arms.

    Args:
        experiment: The model and its arms; arms that cannot run here are skipped with a message.
        path: The directory of the model.
        progress: Shows the progress.

    Returns:
        The result of `summarize`.
    """
    policies, lacking = usable(experiment.policies)
    for reason in lacking:
        print(f"left out: {reason}")
    same = {name: value for name, value in plain_settings(experiment).items() if name != "policies"}
    with RunFolder(path, {"benchmark": NAME, **same}) as folder:
        steps = Steps(folder.path, progress or Progress())
        arms = Arms(experiment, folder.path, steps.progress)
        found = [steps.json(f"arms/{slug(name)}.json", partial(arms.run, name)) for name in (FULL, *policies)]
        result = summarize(experiment, found)
        result |= {"seconds": steps.seconds(), "machine": machine(), "left_out": lacking}
        write_json(folder.path / "result.json", result)
    return result


def summarize(experiment: Experiment, arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies with intervals, correlations over the arms, and whether the retained gain rises with the size.

    Args:
        experiment: Its settings.
        arms: What `Arms.run` gave, the full cache first.
    """
    rows = []
    for arm in arms:
        answers = {task: ratio(arm["answers"][task]) for task in TASKS}
        rows.append({"arm": arm["arm"], **arm["text"], "accuracy": answers})
    return {
        "settings": plain_settings(experiment),
        "about": arms[0]["about"],
        "arms": rows,
        "correlations": correlations(arms[1:]),
        "sizes": list(size_steps(arms[1:])),
    }


def plain_settings(experiment: Experiment) -> dict[str, Any]:
    """Its settings as JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(experiment).items()}


def ratio(sums: Sequence[Sequence[float]]) -> dict[str, Any]:
    """``sum(x) / sum(w)`` over documents, with its 95 % interval cut to 0 to 1."""
    pairs = np.array(sums, dtype=np.float64)
    found = estimate(pairs)
    ends = None if found is None else found.interval()
    interval = None if ends is None else (max(0.0, ends[0]), min(1.0, ends[1]))
    return {"value": float(pairs[:, 0].sum() / pairs[:, 1].sum()), "interval": interval}


def document_sums(arm: Mapping[str, Any]) -> dict[str, Doubles]:
    """``(n, 2)`` by metric: sums of its numerator and denominator in each text."""
    documents = [document for document in arm["text"]["documents"] if document["num_tokens"]]
    of: dict[str, list[tuple[float, float]]] = {name: [] for name in METRICS}
    for one in documents:
        of["retained gain"].append((one["gain"] - one["lost"], one["gain"]))
        of["KL"].append((one["kl"] * one["num_tokens"], one["num_tokens"]))
        of["PPL"].append((np.log(one["ppl"]) * one["num_tokens"], one["num_tokens"]))
        nats = 0.0 if one["longppl"] is None else np.log(one["longppl"]) * one["num_key_tokens"]
        of["LongPPL"].append((nats, one["num_key_tokens"]))
    return {name: np.array(values, dtype=np.float64) for name, values in of.items()}


def correlations(arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's rho over the arms of each metric with each accuracy, the sign turned so that 1 is what is hoped for.

    ``interval``: 95 %, over documents: texts and documents of tasks are drawn with replacement, the same for all arms.
    ``arms_interval``: of the mean of both tasks, 95 % over arms (BCa), which are not independent.
    """
    sums = [document_sums(arm) for arm in arms]
    metrics = {name: np.stack([one[name] for one in sums]) for name in METRICS}
    answers = {task: np.array([arm["answers"][task] for arm in arms], dtype=np.float64) for task in TASKS}
    rng = np.random.default_rng(0)

    def counts(n: int) -> Doubles:
        return np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)])

    def values(pairs: Doubles, drawn: Doubles) -> Doubles:
        with np.errstate(invalid="ignore", divide="ignore"):
            of: Doubles = (drawn @ pairs[..., 0].T) / (drawn @ pairs[..., 1].T)
        return of

    far = np.array(
        [next(b["retained_gain"] for b in arm["text"]["by_distance"] if b["to"] is None) for arm in arms],
        dtype=np.float64,
    )
    texts = counts(metrics["PPL"].shape[1])
    of_task = {task: values(pairs, counts(pairs.shape[1])) for task, pairs in answers.items()}
    of_task["both"] = np.mean(list(of_task.values()), axis=0)
    found = []
    for task, right in of_task.items():
        by_metric = {name: sign * values(metrics[name], texts) for name, sign in METRICS.items()} | {FAR: far[None]}
        for name, by in by_metric.items():
            rho = spearman(by, right[: len(by)])
            drawn = rho[1:][np.isfinite(rho[1:])]
            over_arms = correlate_columns(by[0], right[0], permutations=1) if task == "both" else None
            found.append(
                {
                    "metric": name,
                    "task": task,
                    "spearman": float(rho[0]) if np.isfinite(rho[0]) else None,
                    "interval": percentile_interval(drawn) if len(drawn) else None,
                    "arms_interval": None if over_arms is None else over_arms.spearman_interval,
                    "n": len(arms),
                }
            )
    return found


def spearman(x: Doubles, y: Doubles) -> Doubles:
    """Pearson's r of the ranks in each row of ``(b, n)``; NaN if a row is constant."""
    from scipy import stats

    ranks = [stats.rankdata(values, axis=1) for values in (x, y)]
    a, b = (of - of.mean(axis=1, keepdims=True) for of in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Doubles = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1), rho, np.nan)


def size_steps(arms: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the change of the retained gain, with its 95 % interval, from each size of a policy to the next one.

    ``falls``: whether the interval is below 0, so that more memory retained less.
    """
    for small, large in pairwise(arms):
        if small["arm"].split(":")[0] != large["arm"].split(":")[0]:
            continue
        sums = [document_sums(arm)["retained gain"] for arm in (large, small)]
        found = estimate(*sums)
        interval: Interval | None = None if found is None else found.interval()
        change = float(np.subtract(*(one[:, 0].sum() / one[:, 1].sum() for one in sums)))
        yield {
            "from": small["arm"],
            "to": large["arm"],
            "change": change,
            "interval": interval,
            "falls": interval is not None and interval[1] < 0,
        }


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as Markdown."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    hardware = next(iter(results.values()))["machine"]
    minutes = sum(sum(result["seconds"].values()) for result in results.values()) / 60
    parts = [
        f"Made on {today} with `python -m benchmarks.caches FOLDER`: {hardware}, float32, {minutes:.0f} minutes of one "
        f"core in all."
    ]
    for name, result in results.items():
        parts.append(_render_arms(name, result))
        parts += [_render_sizes(result)] if result["sizes"] else []
    rows = [
        [name, one["metric"], *(_with(one["spearman"], one["interval"]) for one in same), _ends(both["arms_interval"])]
        for name, result in results.items()
        for same in _by_metric(result["correlations"])
        for one, both in [(same[0], same[-1])]
    ]
    columns = ["model", "metric", *TASKS, "mean of both", "mean of both, interval over arms"]
    parts.append(
        "Spearman's rho with accuracy over the policies, signs such that 1 is the order that is hoped for. Intervals: "
        f"95 %, over documents.\n\n{markdown(columns, rows, left=2)}".rstrip()
    )
    return "\n\n".join(parts) + "\n"


def _by_metric(found: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [[one for one in found if one["metric"] == metric] for metric in (*METRICS, FAR)]


def _render_arms(name: str, result: Mapping[str, Any]) -> str:
    chosen, about = result["settings"], result["about"]
    edges = [*chosen["contexts"][1:], None]
    far = [f"up to {edge:,}" if edge else f"over {chosen['contexts'][-1]:,}" for edge in edges]
    columns = ["policy", "bytes a token", "retained gain", *far, "KL, nats", "same top token on keys", "PPL", "LongPPL"]
    rows = []
    for arm in result["arms"]:
        known = {bracket["to"]: bracket["retained_gain"] for bracket in arm["by_distance"]}
        cells = [arm["arm"], _number(arm["bytes_per_token"], 0), _with(arm["retained_gain"], arm["interval"])]
        cells += [_number(known.get(edge)) for edge in edges]
        cells += [
            _number(arm["kl"], 3),
            _number(arm["key_top1_agreement"]),
            _number(arm["ppl"]),
            _number(arm["longppl"]),
        ]
        rows.append([*cells, *(_with(arm["accuracy"][t]["value"], arm["accuracy"][t]["interval"]) for t in TASKS)])
    chance = ", ".join(f"{task} {share:.2f}" for task, share in TASKS.items())
    return (
        f"{name}: {about['num_documents']} texts of {chosen['length']:,} tokens, {about['num_key_tokens']:,} key "
        f"tokens at K = {chosen['contexts'][0]}, which the model selects itself; {chosen['documents']} documents of "
        f"each task with {chosen['questions']} questions, share of answer tokens that are the most likely one (a "
        f"guess: {chance}); chunks of {chosen['chunk']} tokens; 95 % intervals over documents.\n\n"
        + markdown([*columns, *TASKS], rows).rstrip()
    )


def _render_sizes(result: Mapping[str, Any]) -> str:
    steps = result["sizes"]
    falls = [f"from {step['from']} to {step['to']} ({step['change']:+.2f})" for step in steps if step["falls"]]
    below = sum(step["change"] < 0 for step in steps)
    said = (
        f"in {len(falls)} with an interval below 0: {', '.join(falls)}" if falls else "in none with an interval below 0"
    )
    return (
        f"From one size of a policy to the next larger one, the retained gain falls in {below} of {len(steps)} steps, "
        f"{said}."
    )


def _number(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"


def _ends(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _with(value: float | None, interval: Sequence[float] | None) -> str:
    return _number(value) if interval is None else f"{_number(value)} ({_ends(interval)})"


def draw(folder: Path) -> None:
    """``docs/figures/caches-distance.svg``: where some policies of the first model lose the gain."""
    chosen = EXPERIMENTS[0]
    full, *policies = (open_scores(folder / chosen.model / "runs" / slug(name) / "text") for name in (FULL, *DRAWN))
    rule = KeyRule(alpha=chosen.alpha, beta=chosen.beta)
    charts = cost_charts(cost(full, policies, evaluator_scores=full, rule=rule))
    drawn = next(chart for chart in charts if chart.name == "cost-distance")
    write_figures([replace(drawn, name="caches-distance")], ROOT / "docs" / "figures", formats=("svg",))


def plan(experiment: Experiment, folder: Path, progress: Progress) -> list[str]:
    """Estimates the total cost from one document of each kind under the full cache and two policies.

    Args:
        experiment: The complete experiment.
        folder: A new directory for these runs.
        progress: Shows the progress.
    """
    policies, _ = usable(experiment.policies)
    dear, cheap = (next(one for one in policies if one.startswith(kind)) for kind in ("h2o", "window"))
    run(replace(experiment, policies=(dear, cheap), kinds=experiment.kinds[:1], texts=1, documents=1), folder, progress)
    seconds = {
        name: read_json(folder / "arms" / f"{slug(name)}.json", "run it again")["seconds"]
        for name in (FULL, dear, cheap)
    }
    numbers = {"text": experiment.texts * len(experiment.kinds), **dict.fromkeys(TASKS, experiment.documents)}
    whole = {name: sum(parts[part] * number for part, number in numbers.items()) for name, parts in seconds.items()}
    of_all = whole[FULL] + len(policies) * (whole[dear] + whole[cheap]) / 2
    lines = [f"{experiment.model}: {len(policies)} policies; documents: {numbers}"]
    for name, parts in seconds.items():
        a_document = ", ".join(f"{part} {value:.1f} s" for part, value in parts.items())
        lines.append(f"  {name}: a document of {a_document}; the arm {whole[name] / 60:.1f} minutes")
    return [*lines, f"  all: {of_all / 60:.0f} minutes of one core"]


def main() -> None:
    """Runs what is missing, and writes benchmarks/results/caches.json and .md and the block of the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches")
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", help="some of them, to run several at a time")
    parser.add_argument("--plan", action="store_true", help="time a document of each kind, and add up")
    given = parser.parse_args()
    known = {one.model: one for one in EXPERIMENTS}
    unknown = set(given.models) - set(known)
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    chosen = [one for name, one in known.items() if not given.models or name in given.models]
    if given.plan:
        for one in chosen:
            print(*plan(one, given.folder / one.model, ProgressBar()), sep="\n")
        return
    results = {one.model: run(one, given.folder / one.model, ProgressBar()) for one in chosen}
    if len(results) < len(EXPERIMENTS):
        print("the tables are written when all models are run: python -m benchmarks.caches FOLDER")
        return
    text = render(results)
    print(text)
    draw(given.folder)
    write_json(ROOT / "benchmarks" / "results" / f"{NAME}.json", results)
    (ROOT / "benchmarks" / "results" / f"{NAME}.md").write_text(text, encoding="utf-8")
    fill_block(PAGE, NAME, text)


if __name__ == "__main__":
    main()
