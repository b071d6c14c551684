"""The library speaks of parameters, the command line of flags; its log and its progress are lines on stderr."""

import itertools
import json
import logging
import warnings
from dataclasses import fields
from typing import Annotated, get_args, get_type_hints

import pytest
import typer
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from longlens.cli import console
from longlens.cli.app import app
from longlens.cli.command import App, Part, with_flags
from longlens.cli.console import say
from longlens.cli.progress import ProgressBar, TimeLeft
from longlens.errors import LonglensWarning, UserError
from longlens.settings.options import Engine, KeyRule, Loading, Reading, Truncation
from tests.cli.test_output import NAME, assert_harmless

_LOGGER = logging.getLogger("longlens.tests")


def options(*path):
    """Of a command, as typer has them."""
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return command.params


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("longppl", "`max_length` is 5; expected 2", "--max-length is 5; expected 2"),
        ("longppl", "pass `context=64` or `extrapolate=True`", "pass --context 64 or --extrapolate"),
        ("longppl", "with `lcl=False`, or `use_lcl=False`", "with --no-lcl, or --no-lcl"),
        ("longppl", "`out`", "--out"),
        ("score", "such as `context=[64, 128, 256]`", "such as --context 64,128,256"),
        ("score", "such as `bos=\"published\"` or `bos='window'`", "such as --bos published or --bos window"),
        ("score", "`evaluator` of `documents`, `model(x)`, ``", "`evaluator` of `documents`, `model(x)`, ``"),
        ("score", "`split` and `alpha=2`", "--split and `alpha=2`"),
        ("report", "`alpha` or `beta` and `max_length`", "--alpha or --beta and `max_length`"),
        ("bench run", "`overlong=middle`, `split=validation`", "--overlong middle, --set split=validation"),
        ("bench run", "`template_arguments`, `split`", "--template-arg, `split`"),
        ("train", "`loss` with `training.steps=5`", "`loss` with --set training.steps=5"),
        ("keys", "`docs` and `sources`", "`docs` and `sources`"),  # an argument has no flag
        ("score", "no '`context`.txt', give `context`", "no '`context`.txt', give --context"),  # a name that is quoted
        ("score", "the model's `context` isn't `stride`", "the model's --context isn't --stride"),
        ("score", "'it\\'s `bos`' and \"'s `bos`\", `bos`", "'it\\'s `bos`' and \"'s `bos`\", --bos"),
    ],
)
def test_parameters_become_flags_of_the_command(command, message, shown):
    assert with_flags(message, options(*command.split())) == shown


def test_warnings_of_json_have_flags_and_nothing_else(capsys):
    toy = App("toy", "A toy.")

    @toy.command()
    def shows(*, rule: KeyRule) -> None:
        """Shows."""
        found = {"warnings": ["lower `alpha`"], "text": ["`alpha`"]}
        console.print_json(found | {"results": [found]})

    typer.main.get_command(toy).main([], standalone_mode=False)
    shown = {"warnings": ["lower --alpha"], "text": ["`alpha`"]}
    assert json.loads(capsys.readouterr().out) == shown | {"results": [shown]}


def run_toy():
    """A command that says all kinds of things with the library's names, and fails."""
    toy = App("toy", "A toy.")

    @toy.command()
    def fails(*, rule: KeyRule) -> None:
        """Fails."""
        _LOGGER.info("cut to `gamma=%d`; see `alpha`, not `max_length`", 5)
        _LOGGER.info("%s with `beta`", "`alpha` by name")
        _LOGGER.debug("not shown")
        _LOGGER.warning("slow `context`")
        logging.getLogger("other").warning("not ours")
        for _ in range(2):
            warnings.warn("nothing with `lcl=True`, lower `alpha`", LonglensWarning, stacklevel=1)
        raise UserError("`beta` is 0, such as `beta=5`")

    with pytest.raises(UserError, match=r"^--beta is 0, such as --beta 5$"):
        typer.main.get_command(toy).main([], standalone_mode=False)


def test_what_the_library_says_is_printed_with_flags(capsys):
    logger = logging.getLogger("longlens")
    before = list(logger.handlers), logger.level
    for _ in range(2):  # the handler of the first run is gone
        run_toy()
        assert capsys.readouterr().err.splitlines() == [
            "cut to --gamma 5; see --alpha, not `max_length`",
            "`alpha` by name with --beta",
            "warning: slow --context",
            "warning: nothing with `lcl=True`, lower --alpha",
        ]
    assert (logger.handlers, logger.level) == before


def test_of_torchruns_processes_the_first_one_logs(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run_toy()
    assert capsys.readouterr().err == "warning: nothing with `lcl=True`, lower --alpha\n"


def test_torchruns_summary_has_the_reason(run, work, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(work / "error.json"))
    error = run("score", "nosuch.txt", "--model", "llama", "-o", "s").error
    assert ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(work / "error.json")).message == error


def test_after_a_command_nothing_is_translated(run, capsys):
    run("bench", "path")
    say("`gamma` and `out`")
    assert capsys.readouterr().err == "`gamma` and `out`\n"


def test_names_of_files_and_folders_are_printed_as_they_are(run, work):
    (work / "`context`.txt").write_text("Words of a text. " * 9)
    assert "no such file or folder: '`stride`.txt'" in run("score", "`stride`.txt", "--model", "llama", "-o", "s").error
    (work / "`model`").symlink_to(work / "llama")
    options = ["--model", "`model`", "--context", 32, "--stride", 16, "-o", "`out`"]
    ended = run("score", "`context`.txt", *options)
    assert ended.code == 0
    assert "`model`: LlamaForCausalLM" in ended.err
    said, steps = ended.err.split("1 documents in `out`\n")
    assert "--" not in said
    assert steps.startswith("next: longlens perplexity '`out`'\n")
    changed = run("score", "`context`.txt", *options, "--no-text").error
    assert changed.startswith("error: `out` contains a different run: ")


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr("longlens.cli.progress.time.monotonic", lambda: now[0])
    return now


def test_progress_is_a_line_now_and_then(capsys, clock):
    bar = ProgressBar()
    bar.start(f"score {NAME}", unit="characters", total=2000, done=500)
    bar.update(600)
    clock[0] = 20.0
    bar.update(1000, note="10 tokens/s")
    bar.update(2000, note="20 tokens/s")
    bar.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert_harmless(err)
    title = console.printable(f"score {NAME}")
    assert err.splitlines() == [
        f"{title}: 1,000 of 2,000 characters, 10 tokens/s, about 40 s left",
        f"{title}: 1,500 characters in 20.0 s, 20 tokens/s",
    ]


def test_the_time_left_does_not_jump_by_factors(clock):
    """One unit of cost 100 among units of cost 1: the rate of the last units alone would say 100 times as much."""
    left = TimeLeft(0, 100)
    costs = [1.0] * 40 + [100.0] + [1.0] * 59
    shown = []
    for number, cost in enumerate(costs, start=1):
        clock[0] += cost
        left.update(number)
        shown.append(left.seconds)
    assert shown[38] == pytest.approx(61)
    assert shown[40] < 3 * shown[39] < 100 * 59
    ratios = [after / before for before, after in itertools.pairwise(shown[:90])]
    assert max(max(ratios), 1 / min(ratios)) < 3
    assert left.seconds == 0


def test_without_a_total_there_is_no_time_left(capsys, clock):
    for total, left in ((40, " of 40 steps, about 30 s left"), (None, " steps")):
        bar = ProgressBar()
        bar.start("run", unit="steps", total=total)
        clock[0] += 10
        bar.update(10)
        assert capsys.readouterr().err == f"run: 10{left}\n"


def test_nothing_is_said_where_nothing_was_done_or_by_another_process(capsys, monkeypatch):
    bar = ProgressBar()
    bar.start("run", unit="steps", total=20, done=20)
    bar.finish()
    monkeypatch.setenv("RANK", "1")
    bar = ProgressBar()
    bar.start("run", unit="steps", total=20)
    bar.update(20)
    bar.finish()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    bar = ProgressBar()
    bar.start("vt", unit="samples", total=2)
    bar.update(1, note="loss 1.000")
    assert (bar._bar.tasks[0].completed, bar._bar.tasks[0].total) == (1, 2)
    assert bar._bar.tasks[0].fields["state"] == "1 of 2 samples, loss 1.000"
    bar.finish()
    bar.finish()
    assert bar._bar is None
    assert capsys.readouterr().out == ""


# --- groups of settings -----------------------------------------------------------------------------------------------


def called(*arguments):
    """What a command with groups of settings is called with; the exit code where it is not called."""
    seen = []
    toy = App("toy", "A toy.")

    @toy.command()
    def command(
        *,
        name: str = "x",
        loading: Annotated[Loading, Part(("dtype", "trust_remote_code"))],
        reading: Annotated[Reading, Part(but=("min_tokens",), defaults={"split": "train"})],
        rule: KeyRule,
    ) -> None:
        """Does nothing."""
        seen.append((name, loading, reading, rule))

    @toy.callback()
    def root() -> None:
        """A toy."""

    typer.main.get_command(toy).main(["command", *arguments], standalone_mode=False)
    return seen[0]


def test_groups_are_made_of_the_options():
    assert called() == ("x", Loading(), Reading(split="train"), KeyRule())
    given = ("--dtype", "float32", "--trust-remote-code", "--no-lcl", "--alpha", "1", "--name", "y", "--samples", "3")
    assert called(*given) == (
        "y",
        Loading(dtype="float32", trust_remote_code=True),
        Reading(split="train", samples=3),
        KeyRule(alpha=1.0, lcl=False),
    )


def test_what_a_group_refuses_is_said_with_flags():
    with pytest.raises(UserError, match=r"^--samples is 0, expected at least 1"):
        called("--samples", "0")
    with pytest.raises(UserError, match=r"^--beta is 1.0, and --no-lcl selects without beta"):
        called("--no-lcl", "--beta", "1")
    for absent in ("--device", "--min-tokens", "--lcl"):
        with pytest.raises(typer.TyperException, match="No such option"):
            called(absent, "1")


def test_the_library_says_the_same_with_its_own_names():
    with pytest.raises(UserError, match=r"^`samples` is 0, expected at least 1"):
        Reading(samples=0)
    with pytest.raises(UserError, match=r"^`device` would have no effect with `device_map`"):
        Loading(device="cpu", device_map="auto")
    with pytest.raises(UserError, match=r"^`device_map` would have no effect with `tensor_parallel`"):
        Loading(device_map="auto", tensor_parallel=2)
    with pytest.raises(UserError, match=r"^`beta` is 1, and `use_lcl=False` selects without beta"):
        KeyRule(lcl=False, beta=1)


def test_every_group_has_a_help_text_for_each_field():
    for group in (Loading, Engine, Reading, Truncation, KeyRule):
        hints = get_type_hints(group, include_extras=True)
        for field in fields(group):
            _, help = get_args(hints[field.name])
            assert help.text.endswith((".", "]")), field.name


def test_the_log_is_printed_once_where_the_root_logger_has_a_handler():
    """As some libraries give it one."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.name)
    logging.getLogger().addHandler(handler)
    try:
        run_toy()
    finally:
        logging.getLogger().removeHandler(handler)
    assert seen == ["other"]
    assert logging.getLogger("longlens").propagate
