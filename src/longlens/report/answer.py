"""Summarizes a report in plain sentences: which model predicts key tokens better, and how certain that is."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from longlens.metrics.comparison import Difference, PairComparison
from longlens.metrics.corpus import is_evaluator
from longlens.metrics.cost import CostResult, PolicyCost
from longlens.metrics.longppl import PerplexityResult
from longlens.metrics.uncertainty import MIN_TOKENS
from longlens.report.summary import ReportSummary


@dataclass(frozen=True)
class Sentence:
    """A sentence, in parts: text, and names of models. The page isolates names, which may have any text direction.

    Attributes:
        parts: Each part is a text, and whether it is a name.
    """

    parts: tuple[tuple[str, bool], ...]

    def __str__(self) -> str:
        """Returns the sentence as plain text."""
        return "".join(text for text, _ in self.parts)


def answer(summary: ReportSummary) -> list[Sentence]:
    """Returns sentences about the results, the most important first; each other model is compared with the baseline.

    A difference is only reported as one if its 95 % interval excludes 0 (`longlens.compare`). Otherwise the sentence
    reports the measured values and says that they are too few to conclude. If the tokenizers differ, key tokens are
    compared per character.
    """
    if summary.cost is not None:
        return _costs(summary.cost)
    results = {run.name: run.result for run in summary.compared if run.result is not None}
    if len(results) == 1:
        ((name, result),) = results.items()
        said = _alone(name, result)
    else:
        said = [sentence for pair in summary.pairs for sentence in _pair(pair, results)]
    evaluator = None if summary.evaluator is None else summary.evaluator.scores
    judges = [run.name for run in summary.compared if is_evaluator(run.scores, evaluator, summary.keys)]
    if len(results) > 1 and any(results[name].longppl is not None for name in judges):
        said.append(_sentence("{name} selected the key tokens itself, which favors it.", name=judges[0]))
    return said


def _sentence(template: str, **names: str) -> Sentence:
    parts: list[tuple[str, bool]] = []
    for text, name, _, _ in Formatter().parse(template):
        parts += [(text, False)] if text else []
        parts += [] if name is None else [(names[name], True)]
    return Sentence(tuple(parts))


MAX_POLICIES = 6
"""Maximum number of policies with a sentence; the table lists the others."""


def _costs(found: CostResult) -> list[Sentence]:
    """Describes the loss of each policy, starting with the policy that retains most."""
    known = [policy for policy in found.policies if policy.retained_gain is not None]
    if not known:
        return [_sentence("The key tokens of {name} gain nothing, so nothing can be lost.", name=found.model)]
    ordered = sorted(known, key=lambda policy: -(policy.retained_gain or 0.0))
    sentences = [_cost(policy, found) for policy in ordered[:MAX_POLICIES]]
    if len(ordered) > MAX_POLICIES:
        sentences.append(_sentence(f"{len(ordered) - MAX_POLICIES:,} more policies, which retain less, are below."))
    return sentences


def _cost(policy: PolicyCost, found: CostResult) -> Sentence:
    assert policy.retained_gain is not None
    said = f"{{name}} retains {_percent(policy.retained_gain)} of the gain from long context on key tokens"
    if policy.interval is not None:
        said += f" (95 % interval {_percent(policy.interval[0])} to {_percent(policy.interval[1])})"
    if policy.bytes_per_token is not None and found.bytes_per_token:
        said += f" with {_percent(policy.bytes_per_token / found.bytes_per_token)} of the bytes of the full cache"
    if policy.ppl is not None and found.ppl is not None:
        percent = 100 * (policy.ppl / found.ppl - 1)
        higher = "higher" if percent > 0 else "lower"
        said += "; its perplexity is "
        said += "the same within 0.5 %" if abs(percent) < 0.5 else f"{abs(percent):,.0f} % {higher}"
    worst = policy.worst
    if worst is not None:
        said += f". Most is lost on key tokens that need {worst.words} tokens of context"
        said += "" if worst.retained_gain is None else f" ({_percent(worst.retained_gain)} retained)"
    return _sentence(said + ".", name=policy.name)


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %"


def _alone(name: str, result: PerplexityResult) -> list[Sentence]:
    over = f"over {_documents(result.num_documents)}"
    if result.longppl is None:
        value = "not defined" if result.ppl is None else f"{result.ppl:,.2f}"
        return [_sentence(f"{{name}} has no LongPPL here; its PPL is {value} {over}.", name=name)]
    return [
        _sentence(
            f"{{name}}: LongPPL {result.longppl:,.2f} on {result.num_key_tokens or 0:,} key tokens, PPL "
            f"{_value(result.ppl)} on all {result.num_tokens:,} tokens, {over}.",
            name=name,
        ),
        _sentence("LongPPL ranks models: add a second run of the same documents to compare with."),
    ]


def _pair(pair: PairComparison, results: dict[str, PerplexityResult]) -> list[Sentence]:
    names = {"model": pair.model, "baseline": pair.baseline}
    model, baseline = results[pair.model], results[pair.baseline]
    per_character = pair.same_tokenizer is False
    key = pair.key_bits_per_character if per_character else pair.log_longppl
    if key is None:
        return _plain(pair, model, baseline, names)
    if key.value == 0:
        return [_sentence("{model} and {baseline} predict key tokens equally well.", **names)]
    better, other = ("model", "baseline") if key.value < 0 else ("baseline", "model")
    ours, theirs = (model, baseline) if key.value < 0 else (baseline, model)
    longppl = f"LongPPL {_value(ours.longppl)} against {_value(theirs.longppl)}"
    documents = _documents(model.num_documents)
    said = "" if key.significant else "On these texts, "
    said += f"{{{better}}} predicts key tokens better than {{{other}}} ({longppl})"
    if ours.ppl is not None and theirs.ppl is not None:
        said += _beside(ours.ppl, theirs.ppl)
    if key.significant:
        said += f"; the difference is significant over {documents}."
    else:
        said += f"; {documents}: too few to conclude{_needed(key, model, baseline)}."
    sentences = [_sentence(said, **names)]
    if per_character:
        fewer = f"{abs(key.value):,.3f} bits per character"
        if key.interval is not None:
            low, high = sorted(abs(end) for end in key.interval) if key.significant else key.interval
            fewer += f" (95 % interval {low:,.3f} to {high:,.3f})"
        sentences.append(
            _sentence(
                "The two tokenizers differ, so LongPPL and PPL count different tokens: compared per character of "
                f"key text, {{{better}}} needs {fewer} less.",
                **names,
            )
        )
    return sentences


def _plain(
    pair: PairComparison, model: PerplexityResult, baseline: PerplexityResult, names: dict[str, str]
) -> list[Sentence]:
    """Describes plain perplexity if there are no key tokens."""
    found = pair.bits_per_character if pair.same_tokenizer is False else pair.log_ppl
    if found is None or found.value == 0:
        return [_sentence("There is no LongPPL to compare {model} and {baseline} by.", **names)]
    better, other = ("model", "baseline") if found.value < 0 else ("baseline", "model")
    ours, theirs = (model, baseline) if found.value < 0 else (baseline, model)
    sure = "significant" if found.significant else "too few to conclude"
    return [
        _sentence(
            f"There are no key tokens to compare. On all tokens, {{{better}}} is better than {{{other}}} (PPL "
            f"{_value(ours.ppl)} against {_value(theirs.ppl)}); {_documents(model.num_documents)}: {sure}.",
            **names,
        )
    ]


def _beside(ours: float, theirs: float) -> str:
    """Describes the difference in plain perplexity, as the end of a sentence."""
    percent = 100 * abs(ours / theirs - 1)
    if percent < 0.5:
        return ", while perplexity is the same within 0.5 %"
    if ours > theirs:
        return f", although its perplexity is {percent:,.0f} % higher"
    return f"; its perplexity is {percent:,.0f} % lower"


def _needed(key: Difference, model: PerplexityResult, baseline: PerplexityResult) -> str:
    tokens = min(model.num_key_tokens or 0, baseline.num_key_tokens or 0)
    if key.interval is None and tokens < MIN_TOKENS:
        return f" ({tokens} key tokens, and {MIN_TOKENS} or more are needed)"
    if key.interval is None or key.documents_to_settle is None:
        return ""
    return f" (about {key.documents_to_settle:,} would be needed if the difference stays)"


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"
