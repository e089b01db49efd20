"""Commands and groups: every error on one line, names that were meant, earlier names of options, and a help without noise."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import typer
import typer.core

from .document import failed, finished, start
from .errors import PrefloopError, UsageError
from .plain_help import plain_help
from .text import visible_lines

# what the parser raises; BadParameter is the one of its errors that Typer exports
ParserError: Any = typer.BadParameter.__bases__[0]
_NO_ARGUMENTS = "NoArgsIsHelpError"
_CUTOFF = 0.75


class Command(typer.core.TyperCommand):
    """A command whose help leaves out what nobody needs; see `plain_help`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with naming_context(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            error.args = (naming_options(str(error), _typed(ctx)),)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        shown = [parameter for parameter in self.get_params(ctx) if not getattr(parameter, "hidden", False)]
        pieces = (piece for parameter in shown for piece in parameter.get_usage_pieces(ctx))
        return ["[OPTIONS]", *(piece.translate({ord("{"): None, ord("}"): None}) for piece in pieces)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with plain_help(self, ctx):
            super().format_help(ctx, formatter)


class Group(typer.core.TyperGroup):
    """A group of commands that suggests the command that was meant, also one of another group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with naming_context(ctx):
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with plain_help(self, ctx):
            super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(
                f"no command {visible_lines(name)}{_did_you_mean(commands_like(ctx.find_root().command, ctx, name))}"
            )
        return super().resolve_command(ctx, args)


class Root(Group):
    """The group of all commands. It ends with one line on stderr and the exit code of the error, if the cause is known; with --json,
    stdout has one document in any case."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        start("--json" in args[: args.index("--") if "--" in args else None])
        with _reported():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _reported():
            result = super().invoke(ctx)
            finished()
            return result


class App(typer.Typer):
    """An app, or a group of commands, whose commands have the help and the errors above."""

    def __init__(self, *args: Any, cls: type[Any] | None = None, **settings: Any) -> None:
        super().__init__(*args, cls=cls or Group, **settings)

    def command(self, *args: Any, cls: type[Any] | None = None, **settings: Any) -> Any:
        return super().command(*args, cls=cls or Command, **settings)


@contextmanager
def naming_context(ctx: Any) -> Iterator[None]:
    """An error of the parser names the command; some come without."""
    try:
        yield
    except ParserError as error:
        error.ctx = error.ctx or ctx
        raise


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error into what is printed, and an exit code."""
    cause: Any
    try:
        yield
    except PrefloopError as error:
        if error.said_elsewhere:
            raise typer.Exit(error.exit_code) from None
        message, code, kind, cause = " ".join(str(error).splitlines()), error.exit_code, type(error).__name__, error
    except ParserError as error:
        if type(error).__name__ == _NO_ARGUMENTS:  # the help was printed
            raise
        message, code, kind, cause = parser_message(error), error.exit_code, "UsageError", error
    except BrokenPipeError:  # the reader has closed the pipe: typer ends silently
        raise
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        message, code, kind, cause = f"{path}{error.strerror or error}", 1, type(error).__name__, error
    except KeyboardInterrupt:
        failed("interrupted", 130, "Interrupted")
        raise
    except typer.Exit as end:
        if end.exit_code == 0:
            finished()
        raise
    except Exception as error:
        failed(f"{type(error).__name__}: {error}", 1, type(error).__name__)
        raise
    else:
        return
    typer.echo(visible_lines(f"prefloop: {message}"), err=True)
    if isinstance(cause, ParserError) and cause.ctx is not None:
        typer.echo(visible_lines(f"help: {cause.ctx.command_path} --help"), err=True)
    failed(message, code, kind)
    raise typer.Exit(code) from None


def parser_message(error: Any) -> str:
    """An error of the parser in one line that says what to do."""
    command = error.ctx.command if error.ctx is not None else None
    parameter = getattr(error, "param", None)
    if (option := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
        known = [] if command is None else options_of_command(command)
        return f"no option {visible_lines(option)}{_did_you_mean(options_like(option, known))}"
    if parameter is not None and type(error).__name__ == "MissingParameter":
        is_argument = parameter.param_type_name == "argument"
        name = (parameter.metavar or parameter.name.upper()) if is_argument else parameter.opts[0]
        about = f": {parameter.help[:1].lower()}{parameter.help[1:].rstrip('.')}" if parameter.help else ""
        return f"missing {'argument' if is_argument else 'option'} {name}{about}"
    if parameter is not None:
        name = (
            parameter.opts[0]
            if parameter.param_type_name == "option"
            else (parameter.metavar or parameter.name.upper())
        )
        reason = " ".join(error.message.split()).rstrip(".")
        if not reason.startswith("Input should be "):
            return f"{name}: {reason}"
        needed = reason.removeprefix("Input should be ").split(", unable")[0]
        return f"{name} must be {needed}{_value_of(error)}"
    text = " ".join(error.format_message().split()).rstrip(".")
    if match := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text):
        return f"unexpected argument {match[1]}"
    text = re.sub(r"^Option '([^']+)'", r"\1", text)
    return text[:1].lower() + text[1:]


def _typed(ctx: Any) -> dict[str, str]:
    """Name of each setting whose option was typed → the option."""
    options = {}
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name)
        if parameter.param_type_name == "option" and source is not None and source.name == "COMMANDLINE":
            names = (parameter.name.replace("_", "-"), parameter.opts[0].lstrip("-"))
            options |= dict.fromkeys(names, parameter.opts[0])
    return options


def naming_options(message: str, typed: Mapping[str, str]) -> str:
    """A message about settings, such as "batch-size must be positive", with the options that were typed: "--batch-size must be …".
    Settings of a file keep their names. A name of one word is one only at the beginning.

    Args:
        typed: name of a setting → its option.
    """
    for name, option in typed.items():
        place = r"(?<![\w./'\"`=-])" if "-" in name else "^"
        message = re.sub(rf"{place}{re.escape(name)}(?= (?:must|can|is|are|and|\d)\b)", option, message)
    return message


def _value_of(error: Any) -> str:
    """What was given, if the validation that failed tells it."""
    details = getattr(error.__cause__, "errors", list)()
    return f", got {details[0]['input']!r}" if details and "input" in details[0] else ""


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def options_of_command(command: Any) -> list[str]:
    """The options that its help shows."""
    return [
        name
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.hidden
        for name in (*parameter.opts, *(parameter.secondary_opts if parameter.default else ()))
        if name.startswith("--")
    ]


def options_like(typed: str, known: Sequence[str]) -> list[str]:
    """At most three options that were meant: spelled alike, beginning so, or with this as one of their words.

    Args:
        typed: an option that does not exist, such as --labelr, --output_dir or --steps.
    """
    name = "--" + typed.lstrip("-").replace("_", "-").lower()
    if name in known:
        return [name]
    if close := get_close_matches(name, known, 1, _CUTOFF):
        return close
    word = name[2:]
    alike = [option for option in known if option.startswith(name)]
    alike = alike or [option for option in known if word in option[2:].split("-")]
    if not alike and "--json" in known and get_close_matches(name, ["--format"], 1, _CUTOFF):
        return ["--json"]  # the form of what is printed, where there is one other
    return alike if len(alike) <= 3 and word else []


def commands_like(root: Any, ctx: Any, typed: str) -> list[str]:
    """At most three commands that were meant, as they are typed after the group's name."""
    if close := get_close_matches(typed, list(ctx.command.commands), 1, _CUTOFF):
        return close
    paths = [path for path, _ in walk(root)]
    alike = [path for path in paths if path[-1] == typed]
    if not alike and (close := get_close_matches(typed, sorted({path[-1] for path in paths}), 1, _CUTOFF)):
        alike = [path for path in paths if path[-1] == close[0]]
    return [" ".join((root.name or "prefloop", *path)) for path in alike[:3]]


def walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of a group and of the groups in it, with the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


def renamed(old: Mapping[str, str], switches: Mapping[str, Collection[str]] = {}) -> type[Command]:
    """A command that takes options by earlier names too, which its help does not show.

    Args:
        old: earlier name → name, such as --labels → --labeler.
        switches: option that needs no value → the values that it may have.
    """

    class Renamed(Command):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, with_values(current_names(args, old), switches))

    return Renamed


def with_values(args: Sequence[str], switches: Mapping[str, Collection[str]]) -> list[str]:
    """Arguments in which switches have their value: --x is --x=true without one of its words behind it, --no-x is --x=false."""
    end = args.index("--") if "--" in args else len(args)
    off = {f"--no-{option[2:]}": f"{option}=false" for option in switches}
    whole = [off.get(argument, argument) for argument in args[:end]]
    for at, argument in enumerate(whole):
        if argument in switches and not (at + 1 < end and whole[at + 1] in switches[argument]):
            whole[at] = f"{argument}=true"
    return [*whole, *args[end:]]


def current_names(args: Sequence[str], old: Mapping[str, str]) -> list[str]:
    """Arguments with earlier names of options replaced, up to `--`."""
    end = args.index("--") if "--" in args else len(args)
    renamed_args = []
    for argument in args[:end]:
        name, equals, value = argument.partition("=")
        renamed_args.append(old.get(name, name) + equals + value)
    return [*renamed_args, *args[end:]]
