"""The ``longlens data`` commands: ``mix``, ``pack``, ``weigh`` and ``qa``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import App, Part
from longlens.settings.options import GAMMA, MAX_LENGTH, KeyRule, Loading, Reading

data = App(
    "data", "Prepare training data: mixtures, packing, offline LongCE weights, synthetic long-context questions."
)

Tokenizer = Annotated[str, typer.Option(help="Model whose tokenizer is used; its weights are not loaded.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="New directory, readable by datasets.load_dataset.")]
Tokenized = Annotated[
    bool, typer.Option("--tokenized", help="Rows are already tokenized: input_ids of this tokenizer instead of text.")
]
NoBos = Annotated[bool, typer.Option("--no-bos", help="Do not prepend BOS to each document.")]
NoEos = Annotated[bool, typer.Option("--no-eos", help="Do not append EOS to each document.")]
TrainingReading = Annotated[Reading, Part(but=("tokenized_with", "min_tokens"), defaults={"split": "train"})]
TrustLoading = Annotated[Loading, Part(("trust_remote_code",))]
Packing = Annotated[
    str,
    typer.Option(
        help="best-fit: do not split documents. fill: fill rows completely, as ProLong does.",
        **o.choices("best-fit", "fill"),
    ),
]


@data.command()
def mix(
    *,
    recipe: Annotated[str, typer.Argument(help="YAML file or preset: prolong-64k, prolong-512k, shortmix, ...")],
    tokenizer: Tokenizer,
    out: Out,
    length: Annotated[str | None, typer.Option(help="Row length in tokens.  [default: the recipe's]")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Total number of tokens, such as 1e9.  [default: the recipe's]")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Path of a source in the recipe.", metavar="NAME=PATH")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the row order.  [default: the recipe's, or 0]")
    ] = None,
    loading: TrustLoading,
    as_json: o.Json = False,
) -> None:
    """Pack the sources of a recipe and interleave their rows. Rerun the same command to resume an unfinished run.

    Example: longlens data mix prolong-64k --tokenizer smollm2 --tokens 1e9 --source books=books/ -o mixture
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.next_step import after_packing
    from longlens.data.mixture import mix as make
    from longlens.data.recipe import read_mixture
    from longlens.models import load_tokenizer
    from longlens.runs.processes import Processes
    from longlens.settings.recipe import parse_integer

    mixture = read_mixture(
        recipe,
        length=None if length is None else parse_integer(length, "length"),
        tokens=None if tokens is None else parse_integer(tokens, "tokens"),
        seed=seed,
        sources=_parse_sources(source or []),
    )
    counts = make(mixture, load_tokenizer(tokenizer, trust_remote_code=loading.trust_remote_code), out)
    if Processes().rank > 0:
        return
    if as_json:
        print_json({"schema_version": 1, "out": str(out), **counts})
        return
    columns = ("documents", "rows", "row_tokens", "split_documents", "cut_documents", "short_documents", "repeats")
    rows = [
        (name, f"{100 * found['row_tokens'] / counts['tokens']:.2f}", *(f"{found[column]:,}" for column in columns))
        for name, found in counts["sources"].items()
    ]
    print_table(("source", "% of tokens", *(column.replace("_", " ") for column in columns)), rows)
    print(f"{counts['rows']:,} rows, {counts['tokens']:,} tokens in {printable(str(out))}")
    after_packing(out)


@data.command()
def pack(
    *,
    docs: o.Docs,
    tokenizer: Tokenizer,
    length: Annotated[str, typer.Option(help="Row length in tokens, such as 65536.")],
    out: Out,
    packing: Packing = "best-fit",
    drop_remainder: Annotated[
        bool, typer.Option("--drop-remainder", help="With fill: drop an incomplete last row.")
    ] = False,
    too_long: Annotated[
        str, typer.Option(help="How to handle documents longer than a row.", **o.choices("split", "cut", "drop"))
    ] = "split",
    min_tokens: Annotated[int, typer.Option(help="Skip documents with fewer tokens.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(help="Skip documents with more tokens.")] = None,
    no_bos: NoBos = False,
    no_eos: NoEos = False,
    tokenized: Tokenized = False,
    reading: TrainingReading,
    loading: TrustLoading,
    as_json: o.Json = False,
) -> None:
    """Pack documents into rows of equal length. Document boundaries are kept in position_ids.

    Example: longlens data pack books/ --tokenizer smollm2 --length 65536 -o packed
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.next_step import after_packing
    from longlens.data.mixture import pack_folder
    from longlens.data.packing import packing_of
    from longlens.models import load_tokenizer
    from longlens.runs.processes import Processes
    from longlens.settings.recipe import parse_integer

    counts = pack_folder(
        docs,
        load_tokenizer(tokenizer, trust_remote_code=loading.trust_remote_code),
        out,
        length=parse_integer(length, "length"),
        packing=packing_of(packing, keep_remainder=not drop_remainder),
        too_long=too_long,  # type: ignore[arg-type]  # checked by pack
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        bos=not no_bos,
        eos=not no_eos,
        tokenized=tokenized,
        reading=reading,
    )
    if Processes().rank > 0:
        return
    if as_json:
        print_json({"schema_version": 1, "out": str(out), **counts})
        return
    shown = [(name.replace("_", " "), f"{value:,}") for name, value in counts.items() if value or name == "documents"]
    print_table(("", "number"), shown)
    print(f"{counts['rows']:,} rows in {printable(str(out))}")
    after_packing(out)


@data.command()
def weigh(
    command: typer.Context,
    *,
    docs: o.Docs,
    scores: Annotated[Path, typer.Option(help="Run directory of longlens score on the same documents.")],
    out: Out,
    gamma: Annotated[float, typer.Option(help="Maximum token weight.")] = GAMMA,
    short_logprobs: Annotated[
        bool,
        typer.Option(
            "--short-logprobs",
            help="Store short-context log-probabilities instead of weights; LSD is then computed during training.",
        ),
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model to train, if its tokenizer differs from that of the scores.")
    ] = None,
    at: Annotated[KeyRule, Part(("context", "stride"))],
    tokenized: Tokenized = False,
    reading: TrainingReading,
    loading: TrustLoading,
    as_json: o.Json = False,
) -> None:
    """Write tokenized documents with LongCE weights from stored scores. Training with them needs no short-context pass.

    Example: longlens data weigh books/ --scores scores/smollm2 -o weighed
    """
    from longlens.cli.console import print_json, say
    from longlens.cli.next_step import suggest
    from longlens.data.weigh import weigh_folder
    from longlens.errors import UserError
    from longlens.runs.processes import Processes
    from longlens.scoring.reader import open_scores

    if short_logprobs:
        o.refuse(command, "with --short-logprobs, which writes no weights (pass gamma in training)", "gamma")
    if tokenized and tokenizer is not None:
        raise UserError("--tokenizer applies to texts, but --tokenized rows contain tokens: leave one of them out")
    encoder: Any = None
    if tokenizer is not None:
        from longlens.models import load_encoder

        encoder = load_encoder(tokenizer, trust_remote_code=loading.trust_remote_code)
    counts = weigh_folder(
        docs,
        open_scores(scores, context=at.context, stride=at.stride),
        out,
        gamma=gamma,
        what="short_logprobs" if short_logprobs else "token_weights",
        encoder=encoder,
        tokenized=tokenized,
        reading=reading,
    )
    if Processes().rank > 0:
        return
    if as_json:
        print_json({"schema_version": 1, "out": str(out), **counts})
        return
    say(f"{counts['documents']:,} documents, {counts['tokens']:,} tokens in {out}")
    if "mean_weight" in counts:
        say(f"mean weight {counts['mean_weight']:.3f}, {counts['at_gamma']:,} tokens at gamma")
    suggest(("data", "pack", out, "--tokenizer", "MODEL", "--length", "LENGTH", "-o", "PACKED"))


@data.command()
def qa(
    *,
    docs: o.Docs,
    model: Annotated[str, typer.Option(help=f"Model that writes the questions. {o.MODEL_HELP}")],
    out: Out,
    pairs: Annotated[int, typer.Option(help="Questions per document, each about a different passage.")] = 1,
    passage_tokens: Annotated[int, typer.Option(help="Maximum passage length in tokens.")] = 384,
    max_length: Annotated[
        int, typer.Option(help="Row length in tokens; longer documents are truncated around the passage.")
    ] = MAX_LENGTH,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model to train, whose tokenizer counts the tokens.  [default: --model]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the passage positions.")] = 0,
    grounded: Annotated[
        bool, typer.Option("--grounded", help="Reject answers with words that are not in the passage.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(help="Maximum tokens per generated pair; longer pairs are rejected.")
    ] = 256,
    loading: Annotated[Loading, Part(but=("batch_tokens", "tensor_parallel"))],
    reading: TrainingReading,
    as_json: o.Json = False,
) -> None:
    """Generate question-answer pairs from documents with a model. For fine-tuning; rerun the same command to resume.

    Example: longlens data qa books/ --model smollm2 --pairs 2 -o long-qa
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.progress import ProgressBar
    from longlens.corpus import read_documents
    from longlens.data.qa import QASettings
    from longlens.data.qa_folder import qa_folder
    from longlens.runs.processes import Processes

    Processes().require_one("longlens data qa runs in one process: start it without torchrun")
    settings = QASettings(
        pairs=pairs, passage_tokens=passage_tokens, max_length=max_length, seed=seed, grounded=grounded
    )
    read_documents(docs, reading)  # reports missing files before a model is loaded

    from longlens.models import load_tokenizer
    from longlens.models.generate import load_generator

    generator = load_generator(model, max_new_tokens=max_new_tokens, **asdict(loading))
    counted_by = generator.tokenizer
    if tokenizer is not None:
        counted_by = load_tokenizer(tokenizer, trust_remote_code=loading.trust_remote_code)
    counts = qa_folder(docs, generator, counted_by, out, settings, reading=reading, progress=ProgressBar())
    if as_json:
        print_json({"schema_version": 1, "out": str(out), **counts})
        return
    if counts["refused"]:
        print_table(("rejected", "pairs"), [(reason, f"{number:,}") for reason, number in counts["refused"].items()])
    print(
        f"{counts['rows']:,} of {counts['pairs']:,} pairs on {counts['documents']:,} documents, "
        f"{counts['cut_rows']:,} cut, in {printable(str(out))}"
    )


def _parse_sources(pairs: list[str]) -> dict[str, str]:
    """Converts ``["books=/data/books"]`` to ``{"books": "/data/books"}``.

    Raises:
        UserError: A text is not NAME=PATH, or a name occurs twice.
    """
    from longlens.errors import UserError

    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UserError(f"--source is {pair!r}; expected NAME=PATH, such as --source books=/data/books")
        if name in found:
            raise UserError(f"--source {name} occurs twice: pass one path per source")
        found[name] = path
    return found
