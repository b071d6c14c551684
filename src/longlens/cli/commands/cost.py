"""``longlens cost``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule

if TYPE_CHECKING:
    from longlens.metrics.cost import CostResult, PolicyCost


def cost(
    *,
    full: Annotated[Path, typer.Argument(help="Run directory of the uncompressed model, with short contexts.")],
    policies: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories of compressed variants on the same tokens: cache policies, quantized weights."
        ),
    ],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit with code 1 if a policy retains less than this fraction of the gain, such as 0.95."),
    ] = None,
    per_document: o.PerDocument = False,
    report: Annotated[
        Path | None, typer.Option(help="HTML report of these runs with a view of the costs.", metavar="FILE")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Directory for the charts as PNG and SVG.")] = None,
    as_json: o.Json = False,
) -> None:
    """Measure how much long-context gain a cache policy or quantization loses. On key tokens, by distance.

    Example: longlens cost scores/full scores/sink scores/h2o --evaluator-scores scores/gemma3 --fail-under 0.95
    """
    from longlens.cli.console import message, print_json, say, without_warnings
    from longlens.errors import UserError
    from longlens.metrics.cost import cost as compute
    from longlens.scoring.reader import open_scores

    if fail_under is not None and not 0 < fail_under <= 1:
        raise UserError(f"`fail_under` is {fail_under}; expected a fraction of the gain, above 0 and at most 1")
    if report is not None:
        from longlens.report.html import check_place

        check_place(report)
    chosen = o.key_source(evaluator_scores, keys, rule, None)
    source = {name: chosen[name] for name in ("evaluator_scores", "keys")}
    runs = [open_scores(path) for path in (full, *policies)]
    with without_warnings():
        found = compute(runs[0], runs[1:], **source, rule=rule)
        if report is not None:
            from longlens.report import write_report

            write_report(
                report,
                runs,
                **source,
                alpha=rule.alpha,
                beta=rule.beta,
                use_lcl=rule.lcl,
                context=None if source["evaluator_scores"] is None else found.settings["context"],
                stride=rule.stride,
                cost=found,
            )
    if figures is not None:
        from longlens.report.charts import cost_charts
        from longlens.report.figures import write_figures

        write_figures(cost_charts(found), figures)
    if as_json:
        content = found.to_json()
        if not per_document:
            del content["tokens"]
            content["policies"] = [
                {name: value for name, value in policy.items() if name != "documents"} for policy in content["policies"]
            ]
        print_json(content)
    else:
        print_cost(found, per_document=per_document)
        if report is not None:
            print(report)
    for warning in found.warnings:
        say(f"note: {message(warning)}")
    if fail_under is not None:
        low = [p for p in found.policies if p.retained_gain is None or p.retained_gain < fail_under]
        for policy in low:
            say(f"failed: {_verdict(policy, fail_under)}")
        if low:
            raise typer.Exit(1)


def _verdict(policy: PolicyCost, least: float) -> str:
    """Says which policy is below the threshold, and at which distance it lost most."""
    from longlens.cli.console import number

    if policy.retained_gain is None:
        return f"{policy.name} has no retained gain, because the key tokens gain nothing from the long context"
    kept = number(policy.retained_gain)
    worst = policy.worst
    where = "" if worst is None else f"; most is lost on key tokens that need {worst.words} tokens of context"
    share = "" if worst is None or worst.retained_gain is None else f" (retained {number(worst.retained_gain)})"
    return f"{policy.name} retains {kept} of the gain, below {least:g}{where}{share}"


def print_cost(found: CostResult, *, per_document: bool) -> None:
    """Prints one row per policy, and the retained gain by distance."""
    from longlens.cli.console import interval, number, print_table

    has_kl = any(policy.kl is not None for policy in found.policies)
    first = [found.model, "1", "-", number(found.bytes_per_token, 0), number(found.ppl), number(found.longppl)]
    rows = [[*first, *(["0", "1"] if has_kl else [])]]
    for policy in found.policies:
        cells = [policy.name, number(policy.retained_gain), interval(policy.interval)]
        cells += [number(policy.bytes_per_token, 0), number(policy.ppl), number(policy.longppl)]
        rows.append([*cells, *([number(policy.kl, 4), number(policy.key_top1_agreement)] if has_kl else [])])
    columns = ["", "retained gain", "95 % interval", "bytes per token", "PPL", "LongPPL"]
    print_table([*columns, *(["KL, nats", "same top token, keys"] if has_kl else [])], rows)
    print(
        f"{number(found.num_key_tokens, 0)} key tokens of {number(found.num_tokens, 0)}, {found.num_documents} "
        f"documents; a key token gains {number(found.gain)} nats over K={found.settings['context']}"
    )
    brackets = {(b.above, b.up_to): b for policy in found.policies for b in policy.by_distance}
    if brackets:
        print()
        order = sorted(brackets, key=lambda edges: edges[0])
        table = []
        for policy in found.policies:
            known = {(b.above, b.up_to): b for b in policy.by_distance}
            table.append([policy.name, *(number(known[e].retained_gain) if e in known else "-" for e in order)])
        table.append(["key tokens", *(number(brackets[e].num_tokens, 0) for e in order)])
        print_table(["retained gain, by the context that is needed", *(brackets[e].words for e in order)], table)
    if per_document:
        print()
        ids = [document.id for document in found.policies[0].documents]
        kept = [{d.id: d.retained_gain for d in policy.documents} for policy in found.policies]
        print_table(["document", *(p.name for p in found.policies)], [[i, *(number(k[i]) for k in kept)] for i in ids])
