"""Builds typer commands: expands groups of settings into options, and prints library messages with flags."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from longlens.cli.console import message, say, translating
from longlens.errors import QUOTED, LonglensWarning, UserError
from longlens.runs.processes import Processes
from longlens.settings.options import Help

HELP = {"help_option_names": ["-h", "--help"]}
OPTIONS = {
    "arguments": "model_args",
    "max_factor": "factor",
    "keep_remainder": "drop_remainder",
    "sources": "source",
    "lengths": "length",
    "template_arguments": "template_args",
    "use_lcl": "lcl",
}
"""Library parameters whose option has a different name."""

_PARAMETER = re.compile(r"`([a-z_][a-z_0-9.]*)(?:=([^`]+))?`")
_QUOTED_OR_PARAMETER = re.compile(f"{QUOTED}|{_PARAMETER.pattern}")


def with_flags(message: str, options: Sequence[Any], scoring: Sequence[Any] = (), given: Collection[str] = ()) -> str:
    """Replaces parameter names in backticks by flags, for parameters that are options of the command.

    "`max_length` is 5" becomes "--max-length is 5", "`context=64`" becomes "--context 64", "`extrapolate=True`" becomes
    "--extrapolate" and "`lcl=False`" becomes "--no-lcl". Quoted text, such as a file name, and all other names are
    unchanged. Other names with a value become ``--set NAME=VALUE`` if the command has --set.

    Args:
        message: A message of the library.
        options: Parameters of the command, as typer defines them.
        scoring: Parameters of longlens score. A message such as "score it with `context=64`" refers to them if the
            command has no such option.
        given: Values that the user passed, such as the name of a directory; they are unchanged.
    """
    flags, of_score = (
        {option.name: option for option in parameters if option.param_type_name == "option"}
        for parameters in (options, scoring)
    )

    def translated(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name is None:
            return found[0]
        name = OPTIONS.get(name, name)
        if name not in flags and f"no_{name}" in flags and value in (None, "False"):
            return _flag(flags[f"no_{name}"])
        if name in flags:
            flag = _flag(flags[name])
            return flag if value is None or flags[name].is_flag else f"{flag} {_plain(value)}"
        if value is not None and any("--set" in option.opts for option in flags.values()):
            return f"--set {name}={_plain(value)}"
        if value is not None and name in of_score:
            return with_flags(found[0], scoring)
        return found[0]

    names = [re.escape(text) for text in given if "`" in text]
    return re.sub("|".join([*names, _QUOTED_OR_PARAMETER.pattern]), translated, message)


def _flag(option: Any) -> str:
    return str(max(option.opts, key=len))


def _plain(value: str) -> str:
    """Formats a Python value for a shell.

    ``"middle"`` becomes ``middle``, ``[64, 256]`` becomes ``64,256``, ``{"books": PATH}`` becomes ``books=PATH``.
    """
    if value[0] == "{":
        return ",".join("=".join(part.strip(" '\"") for part in pair.split(":", 1)) for pair in value[1:-1].split(","))
    if value[0] in "[(":
        return ",".join(part.strip().strip("'\"") for part in value[1:-1].split(",") if part.strip())
    return value.strip("'\"")


class Part(NamedTuple):
    """The fields of a group of settings that are options of a command: ``Annotated[Loading, Part(("dtype",))]``.

    Attributes:
        only: Fields to include; all fields if empty.
        but: Fields to exclude.
        defaults: Defaults that replace those of the fields.
    """

    only: Collection[str] = ()
    but: Collection[str] = ()
    defaults: Mapping[str, Any] = {}


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with one option per field of those parameters that are groups, such as `Loading`."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        group, *extra = get_args(parameter.annotation) or (parameter.annotation,)
        if isinstance(group, type) and is_dataclass(group):
            part = next((found for found in extra if isinstance(found, Part)), Part())
            names = [f.name for f in fields(group) if f.name not in part.but and (not part.only or f.name in part.only)]
            groups[parameter.name] = group, names
            parameters += [_option(group, name, part.defaults) for name in names]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        for name, (group, names) in groups.items():
            # `no_lcl` is the option that sets `lcl` to False; without it, `lcl` is None.
            given = {n: values.pop(n) if n in values else False if values.pop(f"no_{n}") else None for n in names}
            values[name] = group(**given)
        return function(**values)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _option(group: type, name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    annotation, help = get_args(get_type_hints(group, include_extras=True)[name])
    default = defaults.get(name, next(field.default for field in fields(group) if field.name == name))
    text = _PARAMETER.sub(lambda found: "--" + found[1].replace("_", "-"), help.text)
    flags = [] if help.flag is None and annotation is not bool else [help.flag or "--" + name.replace("_", "-")]
    if help.alone is not None:
        _VALUE_OPTIONAL["--" + name.replace("_", "-")] = help
    if help.flag is not None:
        name, annotation, default = help.flag.strip("-").replace("-", "_"), bool, False
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[
            annotation,
            typer.Option(
                *flags,
                help=text,
                rich_help_panel=getattr(group, "PANEL", None),
                **(choices(*help.metavar.split("|")) if "|" in (help.metavar or "") else {"metavar": help.metavar}),
            ),
        ],
    )


def choices(*names: str) -> dict[str, Any]:
    """Returns keywords of ``typer.Option`` for an option with fixed choices: metavar and shell completion."""
    return {"metavar": "|".join(names), "autocompletion": lambda: list(names)}


def _repeated(args: Sequence[str], options: Sequence[Any]) -> list[str]:
    """Repeats these options before each of their values: ``--of a b`` becomes ``--of a --of b``."""
    flags = {flag for option in options for flag in option.opts}
    given: list[str] = []
    current: str | None = None
    for at, argument in enumerate(args):
        if argument == "--":
            return [*given, *args[at:]]
        if argument.startswith("-") and len(argument) > 1:
            current = argument if argument in flags else None
        elif current is not None and given[-1] != current:
            given.append(current)
        given.append(argument)
    return given


SEVERAL = "..."
"""Suffix of the metavar of an option that accepts several values, up to the next option."""
_VALUE_OPTIONAL: dict[str, Help] = {}
"""Flags whose value is optional, which typer does not support."""


class Command(TyperCommand):
    """A command that prints the library's log and warnings as lines on stderr while it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Inserts the value of flags that are passed without one, and repeats options with several values."""
        given: list[str] = []
        args = _repeated(args, [option for option in self.params if str(option.metavar).endswith(SEVERAL)])
        for at, argument in enumerate(args):
            given.append(argument)
            help = _VALUE_OPTIONAL.get(argument) if "--" not in given else None
            if help is not None and not re.fullmatch(help.value, args[at + 1] if at + 1 < len(args) else ""):
                given.append(str(help.alone))
        rest: list[str] = super().parse_args(ctx, given)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options to the help; the options of each group of settings have their own title."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Raises:
            UserError: The error of the command, with flags instead of parameter names.
        """
        score = getattr(ctx.find_root().command, "commands", {}).get("score")
        lists = [value if isinstance(value, (list, tuple)) else [value] for value in ctx.params.values()]
        translate = functools.partial(
            with_flags,
            options=self.params,
            scoring=() if score is None else score.params,
            given=[str(text) for values in lists for text in values],
        )
        with translating(translate), _reporting():
            try:
                _refuse_idle(ctx)
                return super().invoke(ctx)
            except UserError as error:
                raise type(error)(translate(str(error))) from error


def _is_given(command: typer.Context, name: str) -> bool:
    """Returns whether the user passed this option of the running command."""
    source = command.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def refuse(command: typer.Context, why: str, *useless: str | type) -> None:
    """Rejects options of the running command that would have no effect.

    Args:
        command: The running command.
        why: The reason, for the message.
        useless: Names of options, or groups of settings.

    Raises:
        UserError: The user passed one of these options.
    """
    names = [name for one in useless for name in ([one] if isinstance(one, str) else [f.name for f in fields(one)])]
    given = [f"`{name}`" for name in names if _is_given(command, name) or _is_given(command, f"no_{name}")]
    if given:
        raise UserError(f"{', '.join(given)} would have no effect {why}: leave it out")


def _refuse_idle(command: typer.Context) -> None:
    """Rejects options for reading and loading that have no effect because of the command's other options."""
    values = command.params
    if not any(str(source).startswith("hf:") for source in values.get("docs") or values.get("sources") or ()):
        refuse(command, "without an hf: dataset", "subset", "split")
    if values.get("tokenized_with") is not None or values.get("tokenized"):
        refuse(command, "for rows that are already tokenized", "text_field")
    if values.get("device_map") is not None and "devices" not in values:  # longlens plan has --devices
        refuse(command, "with `device_map`", "device")


class Group(TyperGroup):
    """A command group in which commands may have two words, such as ``train list`` in addition to ``train RECIPE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the two-word command if it exists, else the one-word command."""
        two = " ".join(args[:2])
        if len(args) > 1 and two in self.commands:
            return two, self.commands[two], args[2:]
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """A group of commands with plain help, which is also printed without arguments, and plain tracebacks."""

    def __init__(self, name: str, help: str, *, completes: bool = False) -> None:
        super().__init__(
            name=name,
            cls=Group,
            help=help,
            context_settings=HELP,
            add_completion=completes,
            no_args_is_help=True,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
        )

    def command(  # type: ignore[override]  # only the settings of typer that are used here
        self, name: str | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Registers a function as a command and expands its groups of settings into options."""
        register = super().command(name, cls=Command, context_settings=HELP)
        return lambda function: register(expanded(function))


class _Lines(logging.Handler):
    """A logging handler that prints records as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        # Names of models and documents are arguments of the record, so flags are not substituted in them.
        line = message(str(record.msg))
        line = line % record.args if record.args else line
        say(f"warning: {line}" if record.levelno >= logging.WARNING else line)


@contextmanager
def _reporting() -> Iterator[None]:
    """Prints each warning once, and the log of longlens, on stderr; with torchrun, only rank 0 prints the log."""
    # Not the filter "once": documents are read more than once, and libraries that change filters reset its registry.
    tell = functools.cache(say)
    logger = logging.getLogger("longlens")
    handler = _Lines(logging.INFO) if Processes().rank == 0 else logging.NullHandler()
    level, propagates = logger.level, logger.propagate
    with warnings.catch_warnings():
        warnings.simplefilter("always", LonglensWarning)
        warnings.showwarning = lambda text, category, *_: tell(
            f"warning: {message(str(text))}"
            if issubclass(category, LonglensWarning)
            else f"{category.__name__}: {text}"
        )
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # some libraries add a handler to the root logger, which would print lines twice
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
