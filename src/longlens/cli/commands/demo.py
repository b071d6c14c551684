"""``longlens demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import Truncation

if TYPE_CHECKING:
    from longlens.corpus import Document
    from longlens.keytokens.selection import KeyTokens
    from longlens.scoring.scores import TokenScores

CONTEXT, STRIDE, MAX_LENGTH = 512, 256, 6144
NUM_SHOWN, AROUND = 8, 48  # number of key tokens, and of characters on each side of one


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory.")] = Path("longlens-demo"),
    as_json: o.Json = False,
) -> None:
    """Score a long text with a small model, offline. Prints key tokens and LongPPL, and writes an HTML report.

    Example: longlens demo -o longlens-demo
    """
    from longlens.cli.commands.perplexity import print_results
    from longlens.cli.console import print_json, printable, say, without_warnings
    from longlens.cli.progress import ProgressBar
    from longlens.evaluation import score_documents
    from longlens.files import write_json
    from longlens.keytokens.exchange import write_keys
    from longlens.keytokens.selection import select_key_tokens
    from longlens.metrics.longppl import perplexity
    from longlens.report import write_report

    model = demo_model()
    scores = score_documents(
        [demo_document()],
        model,
        out,
        context=CONTEXT,
        stride=STRIDE,
        truncation=Truncation(max_length=MAX_LENGTH),
        shard=(0, 1),
        progress=ProgressBar(),
    )
    keys = select_key_tokens(scores)
    with without_warnings():
        write_keys(out / "keys.jsonl", keys, overwrite=True)
        result = perplexity(scores, evaluator_scores=scores)
        write_report(out / "report.html", [scores], evaluator_scores=scores)
    write_json(out / "perplexity.json", result.to_json(per_document=True))
    if as_json:
        print_json(result.to_json(per_document=True))
        return
    print(
        f"Text: the source of Python's typing module, its first {len(scores[0].token_ids):,} tokens.\n"
        f"A key token is one that {model} predicts far better from all preceding text than from the last "
        f"{CONTEXT} to {CONTEXT + STRIDE - 1} tokens.\n"
    )
    print_results([result])
    print(f"\nKey tokens with the largest long-short difference (LSD, nats), {NUM_SHOWN} of {result.num_key_tokens}:")
    for lsd, before, token, after in _excerpts(scores[0], keys[0], NUM_SHOWN):
        print(f"  {lsd:5.2f}  …{printable(before)}[{printable(token)}]{printable(after)}…")
    say(f"Scores, keys.jsonl and perplexity.json are in {out}. Open {out / 'report.html'} in a browser.")


def demo_model() -> str:
    """Returns the first embedded model whose package is installed, else the first embedded model, from the Hub."""
    from longlens.models import EMBEDDED

    return next((name for name, embedded in EMBEDDED.items() if embedded.installed), next(iter(EMBEDDED)))


def demo_document() -> Document:
    """Returns a real long text that every Python installation has: the source of the standard library's ``typing``.

    Key tokens are easy to judge in code: for example a name that was defined thousands of tokens ago.

    Raises:
        UserError: This Python installation has no sources.
    """
    from longlens.corpus import read_documents

    return replace(next(iter(read_documents(["stdlib:typing"]))), id="typing.py")


def _excerpts(scores: TokenScores, keys: KeyTokens, count: int) -> list[tuple[float, str, str, str]]:
    """Returns the key tokens with the largest LSD, in text order: LSD in nats, and the text around each token.

    Args:
        scores: Scores of the evaluator, with the text.
        keys: Its key tokens.
        count: Number of key tokens to return.
    """
    assert scores.text is not None
    assert keys.token_indices is not None
    largest = sorted(keys.token_indices.tolist(), key=lambda i: -scores.lsd[i])[:count]
    rows = []
    for index in sorted(largest):
        start, end = scores.char_spans[index].tolist()
        text = scores.text
        around = text[max(0, start - AROUND) : start], text[start:end], text[end : end + AROUND]
        before, token, after = (" ".join(part.split(" ")).replace("\n", " ") for part in around)
        rows.append((float(scores.lsd[index]), before, token, after))
    return rows
