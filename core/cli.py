"""Shared by all commands: the --store option, safe output, and options derived from a config's fields."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from .options import Field, config_fields
from .text import visible_lines

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the store.")]
DEFAULT = Path("prefloop-store")


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
    other_models: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for each field of `config`. Its first argument is a dict of the fields given on the command line.

    Defaults and help come from the fields. A tuple or a dict becomes an option that may be repeated, named in the singular.

    Args:
        panels: heading in the help → names of its fields, separated by spaces.
        names: field → option, if it is not the field's own name.
        parsers: dict field → function that makes the dict from the strings given.
        skip: fields without an option.
        other_models: fields whose default is for the built-in models only; the help says so.
    """
    chosen = [field for field in config_fields(config) if field.name not in skip]
    panel_of = {name: panel for panel, listed in (panels or {}).items() for name in listed.split()}
    assert panel_of.keys() <= {field.name for field in chosen}, panel_of

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
            _parameter(field, (names or {}).get(field.name), panel_of.get(field.name), field.name in other_models)
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


def _parameter(field: Field, name: str | None, panel: str | None, built_in_only: bool) -> inspect.Parameter:
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
    )
    annotation = Annotated[field.type, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


class Command(typer.core.TyperCommand):
    """A command whose help leaves out --no-X of a switch that is off anyway: the column would take a third of 80."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        negative = [(parameter, parameter.secondary_opts) for parameter in self.params if not parameter.default]
        for parameter, _ in negative:
            parameter.secondary_opts = []
        try:
            super().format_help(ctx, formatter)
        finally:
            for parameter, options in negative:
                parameter.secondary_opts = options


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
