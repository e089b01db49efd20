"""Shared by all commands: the --store option, safe output, and options derived from a config's fields."""

import inspect
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from .options import Field, config_fields
from .text import visible_lines

StoreOption = Annotated[Path, typer.Option("--store", envvar="PREFLOOP_STORE", help="Folder of the store.")]
DEFAULT = Path("prefloop-store")


def say_next(*words: object, store: Path) -> None:
    """Tell what to type next."""
    where = () if store == Path(os.environ.get("PREFLOOP_STORE", DEFAULT)) else ("--store", store)
    say(f"next: {shlex.join(map(str, ('prefloop', *words, *where)))}", err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print text whose names and prompts cannot control the terminal."""
    typer.echo(visible_lines(text), err=err)


def options_of(
    config: type,
    *,
    panels: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    parsers: Mapping[str, Callable[[list[str]], object]] | None = None,
    skip: Collection[str] = (),
    values: Mapping[str, Callable[[], Iterable[str]]] | None = None,
    other_models: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for each field of `config`. Its first argument is a dict of the fields given on the command line.

    Defaults and help come from the fields. A tuple or a dict becomes an option that may be repeated, named in the singular.

    Args:
        panels: heading in the help → names of its fields, separated by spaces.
        names: field → option, if it is not the field's own name.
        parsers: dict field → function that makes the dict from the strings given.
        skip: fields without an option.
        values: field → function that lists what a shell completes; those of a Literal are known.
        other_models: fields whose default is for the built-in models only; the help says so.
    """
    chosen = [field for field in config_fields(config) if field.name not in skip]
    panel_of = {name: panel for panel, listed in (panels or {}).items() for name in listed.split()}
    assert panel_of.keys() <= {field.name for field in chosen}, panel_of
    headings = [None, *(panels or {})]  # in this order, also for fields that a config inherits, which come first in it
    chosen.sort(key=lambda field: headings.index(panel_of.get(field.name)))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **values: Any) -> None:
            given = {}
            for field in chosen:
                value, source = values.pop(field.name), context.get_parameter_source(field.name)
                if source is not None and source.name == "COMMANDLINE":
                    parse = (parsers or {}).get(field.name, tuple if field.repeated else None)
                    given[field.name] = value if parse is None else parse(value)
            command(given, **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        derived = [
            _parameter(
                field,
                (names or {}).get(field.name),
                panel_of.get(field.name),
                (values or {}).get(field.name),
                field.name in other_models,
            )
            for field in chosen
        ]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        # the command's own options come after those without a heading
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [context, *derived, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _parameter(
    field: Field, name: str | None, panel: str | None, values: Callable[[], Iterable[str]] | None, built_in_only: bool
) -> inspect.Parameter:
    option = name or field.option
    is_switch = field.type is bool
    names = f"{option}/--no-{option[2:]}" if is_switch else option
    # "[default: no-cpu]" would say what an option without a word already says
    info = typer.Option(
        names,
        help=field.help,
        rich_help_panel=panel,
        show_default=f"{field.default} for shapes, else the recipe's"
        if built_in_only
        else not is_switch or field.default,
        metavar="<str>" if field.repeated else None,
        autocompletion=_completion(values or (lambda: field.choices)),
    )
    annotation = Annotated[field.type, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def _completion(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of a value."""
    return lambda incomplete: [value for value in values() if value.startswith(incomplete)]


class Command(typer.core.TyperCommand):
    """A command whose help leaves out what a switch does not need: that it is a <bool>, and --no-X of one that is off anyway, whose
    column would take a third of 80."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        negative = [(parameter, parameter.secondary_opts) for parameter in self.params if not parameter.default]
        switches: list[Any] = [parameter for parameter in self.get_params(ctx) if getattr(parameter, "is_flag", False)]
        for parameter, _ in negative:
            parameter.secondary_opts = []
        for switch in switches:
            switch.metavar = ""
        try:
            super().format_help(ctx, formatter)
        finally:
            for parameter, options in negative:
                parameter.secondary_opts = options
            for switch in switches:
                switch.metavar = None


class App(typer.Typer):
    """An app, or a group of commands, whose commands have the help above."""

    def command(self, *args: Any, cls: type[Any] | None = None, **settings: Any) -> Any:
        return super().command(*args, cls=cls or Command, **settings)


def renamed(old: Mapping[str, str]) -> type[Command]:
    """A command that takes options by earlier names too, which its help does not show.

    Args:
        old: earlier name → name, such as --labels → --labeler.
    """

    class Renamed(Command):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, current_names(args, old))

    return Renamed


def current_names(args: Sequence[str], old: Mapping[str, str]) -> list[str]:
    """Arguments with earlier names of options replaced, up to `--`."""
    end = args.index("--") if "--" in args else len(args)
    renamed_args = []
    for argument in args[:end]:
        name, equals, value = argument.partition("=")
        renamed_args.append(old.get(name, name) + equals + value)
    return [*renamed_args, *args[end:]]
