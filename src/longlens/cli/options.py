"""Options that several commands share, each with its one help text, and what they turn into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longlens.cli.command import is_given as is_given
from longlens.cli.command import refuse as refuse
from longlens.corpus import Document, read_documents
from longlens.errors import UserError
from longlens.keytokens.influence import ALPHA, BETA, GAMMA
from longlens.settings.options import KeyRule, Reading

if TYPE_CHECKING:
    from longlens.scoring.reader import StoredScores
    from longlens.scoring.scorer import Scorer, TokenizedModel
    from longlens.scoring.scores import ShortContext
    from longlens.scoring.truncation import Limit

_LOADING = ("dtype", "device", "device_map", "attention", "batch_tokens", "trust_remote_code", "allow_pickle")
MODEL_HELP = "Hub id, folder, .gguf file, smollm2 or gemma3-270m."
Docs = Annotated[
    list[str], typer.Argument(help="Files, folders (text, source code, JSONL, Parquet), hf:DATASET or stdlib:MODULE.")
]
PerDocument = Annotated[
    bool, typer.Option("--per-document", help="A line, or an entry of the JSON, for each document.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Context = Annotated[
    str, typer.Option(help="K, the short context in tokens; several as 64,256,4096.", metavar="TOKENS[,TOKENS...]")
]
Stride = Annotated[
    str, typer.Option(help="d, tokens that share a window; one, or one for each K.", metavar="TOKENS[,TOKENS...]")
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Tokens that a document is cut to. [default: 32768, or what the model takes if that is less]"),
]
MaxCharacters = Annotated[int | None, typer.Option(help="Characters that a document is cut to instead.")]
TruncateWith = Annotated[
    str | None, typer.Option(help="Model whose tokenizer counts --max-length.  [default: the scored model's]")
]
Extrapolate = Annotated[bool, typer.Option("--extrapolate", help="Allow more tokens than the model was made for.")]
Bos = Annotated[str, typer.Option(help="window: BOS before every window. published: as the package longppl does.")]
NoText = Annotated[bool, typer.Option("--no-text", help="Do not store the texts.")]

Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU, else float32.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices, such as auto.")]
Attention = Annotated[str | None, typer.Option(help="Attention implementation of transformers, such as sdpa.")]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens of a batch.  [default: 1024, on a GPU 32768]")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights, which can run code.")]

TextField = Annotated[str, typer.Option(help="Field of a row that holds the text.")]
IdField = Annotated[str, typer.Option(help="Field of a row that holds its id.")]
Subset = Annotated[str | None, typer.Option(help="Subset of an hf: dataset.")]
Split = Annotated[str, typer.Option(help="Split of an hf: dataset.")]
TokenizedWith = Annotated[str | None, typer.Option(help="Model whose tokenizer made the rows' input_ids.")]
MinTokens = Annotated[int | None, typer.Option(help="Leave out tokenized rows with fewer tokens.")]
Samples = Annotated[int | None, typer.Option(help="Number of documents, the first ones.")]

EvaluatorScores = Annotated[Path | None, typer.Option(help="Scores of the evaluator, which selects the key tokens.")]
Keys = Annotated[Path | None, typer.Option(help="Key tokens in a file, from longlens keys.")]
Alpha = Annotated[float, typer.Option(help="Key tokens have LSD > alpha, in nats.")]
Beta = Annotated[float, typer.Option(help="Key tokens have LCL > beta, in nats.")]
NoLcl = Annotated[bool, typer.Option("--no-lcl", help="Select by LSD alone (appendix B.2).")]
Gamma = Annotated[float, typer.Option(help="Largest weight of LongPPL-soft.")]
Answers = Annotated[
    Path | None, typer.Option(help="Rows with id and answer_spans (JSONL, JSON, Parquet); replace the documents' own.")
]
AtContext = Annotated[int | None, typer.Option("--context", help="Which K, of those scored.  [default: the largest]")]
AtStride = Annotated[int | None, typer.Option("--stride", help="Which d, where one K was scored with several.")]

__all__ = ["ALPHA", "BETA", "GAMMA"]


def integers(text: str, name: str) -> list[int]:
    """``"64,256"`` to ``[64, 256]``.

    Raises:
        UserError: It is not that.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{name} is {text!r}; expected tokens, such as {name} 4096 or {name} 64,256,4096") from error


def assignments(changes: Iterable[str] | None, option: str, example: str) -> dict[str, Any]:
    """``["pairs=105", "shots=0"]`` to ``{"pairs": 105, "shots": 0}``.

    Raises:
        UserError: One is no KEY=VALUE.
    """
    from longlens.settings.recipe import assignment

    return dict(assignment(change, option, example) for change in changes or ())


def reading(command: typer.Context) -> Reading:
    """How the running command reads documents, where it has all of these options."""
    return Reading(**{field.name: command.params[field.name] for field in fields(Reading)})


def loading(command: typer.Context) -> dict[str, Any]:
    """Arguments of `longlens.load_scorer` that the running command has as options."""
    return {name: command.params[name] for name in _LOADING if name in command.params}


def documents(docs: list[str], options: Reading, *, trust_remote_code: bool = False) -> Iterable[Document]:
    """The documents of the arguments, with a tokenizer to decode tokenized ones."""
    if options.tokenized_with is None:
        return read_documents(docs, options)
    from longlens.models import load_tokenizer
    from longlens.tokenization import decoder_of

    tokenizer = load_tokenizer(options.tokenized_with, trust_remote_code=trust_remote_code)
    return read_documents(docs, options, decoder=decoder_of(tokenizer))


def total_characters(
    docs: list[str], options: Reading, limit: Limit, shard: tuple[int, int] | None = None
) -> int | None:
    """Characters that are scored of a shard of the documents, for the time left; None for datasets."""
    if any(doc.startswith("hf:") for doc in docs) or options.tokenized_with is not None:
        return None
    from longlens.cli.console import told_once
    from longlens.scoring.truncation import num_characters

    with told_once():  # the documents are read again, and their warnings were shown
        rank, world_size = shard or (0, 1)
        mine = islice(read_documents(docs, options), rank, None, world_size)
        return sum(num_characters(document.text, limit) for document in mine)


TOKEN_CHARACTERS = 8
"""A text of more characters for each token is taken to be longer than that many tokens, without counting them."""


def tell_lengths(docs: list[str], options: Reading, counts: TokenizedModel, shorts: Sequence[ShortContext]) -> None:
    """Says before a model is loaded that no document is longer than a short context; datasets are not read for it."""
    from longlens.cli.console import say

    if not shorts or any(doc.startswith("hf:") for doc in docs) or options.tokenized_with is not None:
        return
    wanted = max(short.context for short in shorts)
    longest = 0
    for document in read_documents(docs, options):
        text = document.text
        if len(text) > TOKEN_CHARACTERS * wanted:
            return
        if len(text.encode("utf-8", "replace")) > longest:  # no token has less than a byte
            longest = max(longest, len(counts.encode(document).token_ids))
        if longest > wanted:
            return
    missed = ", ".join(str(short.context) for short in shorts if short.context >= longest)
    say(
        f"warning: no document has more than {longest:,} tokens of {counts.info.name}, so none has a token with a "
        f"longer context than K = {missed}, and there will be no key tokens at that K: use a smaller --context, such "
        f"as {max(1, longest // 4)}, or longer documents"
    )


def limit(
    scorer: TokenizedModel | None,
    max_length: int | None,
    max_characters: int | None,
    truncate_with: str | None,
    *,
    extrapolate: bool = False,
    trust_remote_code: bool = False,
) -> Limit | None:
    """What documents are cut to; without a scorer, None where nothing says so.

    Raises:
        UserError: Two ways of cutting at once, or tokens that nobody counts.
    """
    from longlens.scoring.truncation import make_limit
    from longlens.settings.options import Truncation

    truncation = Truncation(
        max_length=max_length,
        max_characters=max_characters,
        truncate_with=truncate_with,
        extrapolate=extrapolate,
    )
    if scorer is None and truncation == Truncation():
        return None
    return make_limit(truncation, scorer, trust_remote_code=trust_remote_code)


def cut(found: Iterable[Document], limit: Limit | None) -> Iterable[Document]:
    """The documents, cut as a scoring run would cut them."""
    return found if limit is None else (replace(document, text=limit(document.text).text) for document in found)


def announce(scorer: Scorer, limit: Limit | None) -> None:
    """Says what was loaded and what was chosen for the user."""
    from longlens.cli.console import say
    from longlens.scoring.truncation import TokenLimit
    from longlens.settings.options import MAX_LENGTH

    info = scorer.info
    say(f"{info.name}: {info.architecture} from {info.source}, {info.dtype} on {info.device}")
    if isinstance(limit, TokenLimit) and limit.counted_by == "own" and limit.max_tokens < MAX_LENGTH:
        takes = "" if info.max_length is None else f" (it takes {info.max_length:,})"
        say(f"{info.name}: documents are cut to {limit.max_tokens:,} tokens{takes}")


def given(command: typer.Context, name: str, value: Any) -> Any:
    """The value of an option, or None where the user did not give it."""
    return value if is_given(command, name) else None


def key_rule(command: typer.Context, alpha: float, beta: float, no_lcl: bool) -> dict[str, Any]:
    """Arguments that say which tokens are key; what the user did not give is None.

    Raises:
        UserError: A threshold is not finite, or beta is given and left out.
    """
    from longlens.keytokens import selection

    rule: dict[str, Any] = {"alpha": given(command, "alpha", alpha), "beta": given(command, "beta", beta)}
    rule["use_lcl"] = False if no_lcl else None
    selection.key_rule(**rule)  # for what it refuses, before anything is read or run
    return rule


def key_source(evaluator_scores: Path | None, keys: Path | None, rule: KeyRule) -> dict[str, Any]:
    """Arguments of `longlens.perplexity` and `longlens.compare` that say which tokens are key.

    Raises:
        UserError: No such scores or keys.
    """
    from longlens.keytokens.exchange import read_keys
    from longlens.scoring.reader import open_scores

    evaluator: StoredScores | None = None
    if evaluator_scores is not None:
        evaluator = open_scores(evaluator_scores, context=rule.context, stride=rule.stride)
    return {
        "evaluator_scores": evaluator,
        "keys": None if keys is None else read_keys(keys),
        **rule.keywords(),
    }


def choice(
    command: typer.Context,
    evaluator_scores: Path | None,
    keys: Path | None,
    alpha: float,
    beta: float,
    gamma: float,
    no_lcl: bool,
    context: int | None,
    stride: int | None,
) -> dict[str, Any]:
    """Arguments of `longlens.perplexity` and `longlens.compare` that say which tokens are key.

    Raises:
        UserError: A setting that the keys have already; one that cannot be; no such scores or keys.
    """
    from longlens.keytokens.exchange import read_keys
    from longlens.keytokens.influence import check_gamma
    from longlens.metrics.corpus import choose_influence
    from longlens.scoring.reader import open_scores
    from longlens.settings.options import KeyRule

    check_gamma(gamma)
    settings = key_rule(command, alpha, beta, no_lcl) | {"context": context, "stride": stride}
    settings["gamma"] = given(command, "gamma", gamma)
    selected = None if keys is None else read_keys(keys)
    if selected is not None and evaluator_scores is None:
        named = {"lcl" if name == "use_lcl" else name: value for name, value in settings.items()}
        choose_influence(None, selected, KeyRule(**named))  # for what it refuses, before a model is run
    evaluator: StoredScores | None = None
    if evaluator_scores is not None:
        evaluator = open_scores(evaluator_scores, context=context, stride=stride)
    return {"evaluator_scores": evaluator, "keys": selected, **settings}
