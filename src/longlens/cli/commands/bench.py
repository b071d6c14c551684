"""The ``longlens bench`` commands: build samples, run benchmarks, grade answers and print tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import App, Part
from longlens.cli.commands.bench_list import bench_list
from longlens.settings.options import SEED, Loading

bench = App("bench", "Run benchmarks: RULER, HELMET, LongBench and others. Also tasks of lm-evaluation-harness.")

Tasks = Annotated[
    list[str], typer.Argument(help="Tasks or suites (see longlens bench list), or sample files from bench build.")
]
Length = Annotated[
    str | None,
    typer.Option(
        "--length",
        "-l",
        help="Length of prompt and answer in tokens; several lengths as 4096,8192.",
        metavar="TOKENS[,TOKENS...]",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", "-n", help="Samples per task and length.  [default: the benchmark's own number]"),
]
Seed = Annotated[int, typer.Option(help="Random seed of the samples.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a task parameter, such as lines=1350.", metavar="KEY=VALUE"),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory with benchmark data in its published format.  [default: download from the Hub]"),
]
Haystack = Annotated[
    Path | None, typer.Option(help="File or directory of text to hide needles in.  [default: state_of_the_union]")
]
Overlong = Annotated[
    str | None,
    typer.Option(
        help="How to handle prompts that are too long.  [default: as the benchmark does]",
        **o.choices("error", "skip", "middle", "left", "context-only"),
    ),
]
ThinkMarks = Annotated[
    str | None,
    typer.Option(help="Delimiters of the model's reasoning, if longlens does not know them.", metavar="BEGIN,END"),
]


@bench.callback()
def _root() -> None:
    """Run benchmarks: RULER, HELMET, LongBench and others. Also tasks of lm-evaluation-harness."""


bench.command("list")(bench_list)


@bench.command()
def build(
    *,
    tasks: Tasks,
    tokenizer: Annotated[str, typer.Option(help=f"Model whose tokenizer counts the length. {o.MODEL_HELP}")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines file to write.")],
    length: Length = None,
    samples: Samples = None,
    seed: Seed = SEED,
    data_dir: DataDir = None,
    haystack: Haystack = None,
    settings: Set = None,
    overlong: Overlong = None,
    reserve: Annotated[int, typer.Option(help="Tokens to reserve for a chat template.")] = 0,
    loading: Annotated[Loading, Part(("trust_remote_code",))],
    as_json: o.Json = False,
) -> None:
    """Build samples and write them as JSON Lines.

    Example: longlens bench build niah_single_1 vt --length 4096,8192 --samples 5 --tokenizer smollm2 -o samples.jsonl
    """
    from longlens.bench.samples import task_batches, write_samples
    from longlens.bench.selection import make_tasks, select_tasks
    from longlens.cli.console import print_json, printable
    from longlens.cli.next_step import suggest
    from longlens.errors import UserError
    from longlens.models import load_tokenizer

    selected = select_tasks(tasks)
    if selected.harness:
        raise UserError(f"{selected.harness[0].name} is lm-evaluation-harness's, which builds its prompts itself")
    lengths = _parse_lengths(length)
    found = load_tokenizer(tokenizer, trust_remote_code=loading.trust_remote_code)
    batches = task_batches(
        make_tasks(selected.tasks, _task_options(settings, data_dir, haystack), lengths=lengths),
        lengths=lengths,
        samples=samples,
        seed=seed,
        tokenizer=found,
        overlong=overlong,
        reserve=lambda task: reserve,
    )
    sizes = write_samples(out, batches)
    count = sum(sizes.values())
    if as_json:
        print_json({"schema_version": 1, "out": str(out), "num_samples": count, "batches": sizes})
        return
    suggest(("bench", "run", out, "--model", tokenizer, "-o", f"runs/{Path(tokenizer).name}"))
    print(f"{count} samples of {len(batches)} tasks and lengths are in {printable(str(out))}")


@bench.command()
def run(
    *,
    tasks: Tasks,
    model: Annotated[str, typer.Option("--model", "-m", help=o.SCORED_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory; an unfinished run in it is resumed.")],
    length: Length = None,
    samples: Samples = None,
    seed: Seed = SEED,
    mode: Annotated[
        str,
        typer.Option(
            help="How the model answers: generation, scoring of the reference answer, or choice.",
            **o.choices("generate", "teacher-forced", "choice"),
        ),
    ] = "generate",
    template: Annotated[
        str,
        typer.Option(
            help="How the chat template is applied.", **o.choices("auto", "none", "chat", "chat-prefix", "prefill")
        ),
    ] = "auto",
    template_args: Annotated[
        list[str] | None,
        typer.Option(
            "--template-arg", help="Argument of the chat template, such as enable_thinking=false.", metavar="KEY=VALUE"
        ),
    ] = None,
    overlong: Overlong = None,
    think_tokens: Annotated[int, typer.Option(help="Additional tokens for reasoning before the answer.")] = 0,
    think_marks: ThinkMarks = None,
    few_shot: Annotated[int | None, typer.Option(help="Few-shot examples, for lm-evaluation-harness tasks.")] = None,
    data_dir: DataDir = None,
    haystack: Haystack = None,
    settings: Set = None,
    max_length: Annotated[int | None, typer.Option(help="Maximum length in tokens.  [default: the model's]")] = None,
    backend: Annotated[
        str, typer.Option(help="lm-evaluation-harness model type: hf, vllm, sglang, local-completions, ...")
    ] = "",
    model_args: Annotated[
        list[str] | None,
        typer.Option("--model-arg", help="Argument of the backend, such as num_concurrent=8.", metavar="KEY=VALUE"),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the API key.  [default: OPENAI_API_KEY, for api.openai.com only]"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer that counts the length; required for a server.")
    ] = None,
    name: o.Name = None,
    batch_size: Annotated[str, typer.Option(help="Batch size in prompts, or auto.")] = "1",
    loading: Annotated[Loading, Part(but=("batch_tokens", "tensor_parallel"))],
    no_prompts: Annotated[bool, typer.Option("--no-prompts", help="Store hashes instead of the prompts.")] = False,
    log_to: o.LogTo = None,
    as_json: o.Json = False,
) -> None:
    """Run a model on benchmarks and score its answers. Rerun the same command to resume an unfinished run.

    Example: longlens bench run longeval_lines niah_single_1 --length 512,1024 --samples 20 --model smollm2 -o run
    """
    from longlens.bench.engine import EngineSettings
    from longlens.bench.prompts import PromptSettings
    from longlens.bench.run import run_bench
    from longlens.bench.selection import BenchSettings
    from longlens.bench.table import model_name
    from longlens.cli.console import print_json
    from longlens.cli.next_step import after_bench
    from longlens.cli.progress import ProgressBar
    from longlens.cli.tracked import tracked_bench
    from longlens.reasoning import parse_marks
    from longlens.runs.processes import Processes
    from longlens.tracking import check_trackers, log_runs

    check_trackers(log_to or [])
    engine = EngineSettings(
        model=model,
        backend=backend,
        arguments=o.assignments(model_args, "--model-arg", "num_concurrent=8"),
        tokenizer=tokenizer,
        loading=loading,
        batch_size=int(batch_size) if batch_size.isdecimal() and len(batch_size) < 10 else batch_size,
        max_length=max_length,
        api_key_env=api_key_env,
    )
    asked = BenchSettings(
        tasks=tasks,
        lengths=_parse_lengths(length),
        samples=samples,
        seed=seed,
        prompts=PromptSettings(
            mode=mode,
            template=template,
            template_arguments=o.assignments(template_args, "--template-arg", "enable_thinking=false"),
            overlong=overlong,
            think_tokens=think_tokens,
        ),
        think_marks=None if think_marks is None else parse_marks(think_marks),
        few_shot=few_shot,
        settings=_task_options(settings, data_dir, haystack),
        keep_prompts=not no_prompts,
    )
    results = run_bench(engine, asked, out, name=name, progress=ProgressBar())
    if Processes().rank > 0:
        return
    if log_to:
        log_runs(log_to, [tracked_bench(results, model_name(results))])
    if as_json:
        print_json({"out": str(out), **results})
        return
    _show({str(out): results}, by_depth=False)
    after_bench(out, results)


@bench.command()
def grade(
    command: typer.Context,
    *,
    what: Annotated[Path, typer.Argument(help="Run directory, or a JSON Lines file with id and prediction.")],
    samples: Annotated[
        Path | None, typer.Option(help="Sample file from bench build that the predictions answer.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help=f"LLM judge of a run's answers. {o.MODEL_HELP}")] = None,
    nli: Annotated[str | None, typer.Option(help="Directory or Hub id of an NLI model that checks citations.")] = None,
    think_marks: ThinkMarks = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory with HELMET's key points, for the judge.")] = None,
    judge_prompts: Annotated[
        Path | None, typer.Option(help="Directory with judge prompts, such as HELMET's.  [default: longlens's own]")
    ] = None,
    loading: Annotated[Loading, Part(("dtype", "device", "trust_remote_code", "allow_pickle"))],
    as_json: o.Json = False,
) -> None:
    """Score a file of predictions, or rescore a run, optionally with an LLM judge.

    Example: longlens bench grade predictions.jsonl --samples samples.jsonl
    """
    from longlens.bench.judging import judge_run
    from longlens.bench.results import summarize_predictions, summarize_run
    from longlens.bench.store import RESULTS, set_think_marks
    from longlens.cli.console import print_json
    from longlens.errors import UserError, shown
    from longlens.files import write_json
    from longlens.reasoning import parse_marks

    if judge is None and nli is None:
        o.refuse(command, "without `judge` and `nli`, which load models", Loading)
    marks = None if think_marks is None else parse_marks(think_marks)
    found = {"data_dir": data_dir, "prompts_dir": judge_prompts}
    places = {name: str(path) for name, path in found.items() if path is not None}
    if not what.exists():
        raise UserError(f"no such file or folder: {shown(what)}; pass a run directory or a file of predictions")
    if places and judge is None:
        raise UserError("--data-dir and --judge-prompts have no effect without a judge: pass --judge too")
    if what.is_dir():
        if samples is not None:
            raise UserError(f"{what} is a run directory, which already contains its samples: leave --samples out")
        if marks is not None:
            set_think_marks(what, marks)
        if judge is not None or nli is not None:
            judge_run(what, judge=judge, nli=nli, loading=loading, places=places)
        results = summarize_run(what)
        write_json(what / RESULTS, results)
    else:
        if samples is None:
            raise UserError(f"{what} contains predictions: pass the sample file of bench build with --samples")
        if judge is not None or nli is not None:
            raise UserError("--judge and --nli score the answers of a run: pass its directory")
        results = summarize_predictions(samples, what, marks=marks)
    if as_json:
        print_json(results)
        return
    _show({str(what): results}, by_depth=False)


@bench.command()
def table(
    command: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Run directories of longlens bench run.")],
    by_depth: Annotated[bool, typer.Option("--by-depth", help="Also show scores by needle depth.")] = False,
    format_: Annotated[
        str, typer.Option("--format", help="Format of the table.", **o.choices("text", "markdown", "csv"))
    ] = "text",
    threshold: Annotated[
        float | None, typer.Option(help="Threshold of RULER's effective length, in percent.  [default: RULER's, 85.6]")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Directory for charts of score against length, and needle heatmaps, as PNG and SVG."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Compare benchmark scores of several models in one table.

    Example: longlens bench table runs/base runs/extended --by-depth
    """
    from longlens.bench.results import summarize_run
    from longlens.bench.table import FORMATS, results_table, write_charts
    from longlens.cli.console import print_json, say
    from longlens.errors import UserError

    if format_ not in FORMATS:
        raise UserError(f"--format is {format_!r}; expected one of {', '.join(FORMATS)}")
    if as_json:
        o.refuse(command, "with --json", "format_")
    chosen = {} if threshold is None else {"threshold": threshold}
    results = {str(folder): summarize_run(folder, **chosen) for folder in runs}
    if figures is not None:
        for path in write_charts(results, figures):
            say(f"wrote {path}")
    if as_json:
        print_json({"schema_version": 1, "runs": results})
        return
    if format_ == "text":
        _show(results, by_depth=by_depth)
        return
    made = results_table(results, by_depth=by_depth)
    print(made.readable().markdown() if format_ == "markdown" else made.csv(), end="")


@bench.command()
def path() -> None:
    """Print the directory for lm-evaluation-harness's --include_path.

    Example: lm_eval --include_path "$(longlens bench path)" --tasks longlens_longeval_lines --model hf ...
    """
    from longlens.bench.lm_eval.export import export_tasks

    print(export_tasks())


def _show(results: dict[str, Any], *, by_depth: bool) -> None:
    from longlens.bench.table import results_table
    from longlens.cli.console import message, print_table

    made = results_table(results, by_depth=by_depth).readable()
    print_table(made.columns, made.rows)
    for note in made.notes:
        print(message(note))


def _parse_lengths(text: str | None) -> list[int]:
    """Converts ``"4096,8192"`` to a list of integers.

    Raises:
        UserError: A part of the text is not an integer.
    """
    return [] if text is None else o.integers(text, "length")


def _task_options(changes: Sequence[str] | None, data_dir: Path | None, haystack: Path | None) -> dict[str, Any]:
    """Returns the task settings of --set, --data-dir and --haystack."""
    own = {"data_dir": data_dir, "haystack": haystack}
    return o.assignments(changes, "--set", "lines=1350") | {
        name: str(path) for name, path in own.items() if path is not None
    }
