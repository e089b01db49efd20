"""What all commands share: the store's option, safe output, and options derived from a config's fields."""

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
    """Print for a person or a machine; names and prompts in it cannot steer the terminal."""
    typer.echo(visible_lines(text), err=err)


def options_of(
    config: type,
    *,
    panels: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    parsers: Mapping[str, Callable[[list[str]], object]] | None = None,
    skip: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of `config`. It gets `given`: the fields given on the command line, by name.

    Defaults and help come from the fields; a tuple or a dict is an option that may be repeated, named in the singular.

    Args:
        panels: heading of the help → fields below it, separated by spaces.
        names: field → option, where it is not the field's own name.
        parsers: dict field → function from the texts given to the dict.
        skip: fields that the command takes in another way.
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
        derived = [_parameter(field, (names or {}).get(field.name), panel_of.get(field.name)) for field in chosen]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        # what the command adds stands after the options without a heading
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [context, *derived, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _parameter(field: Field, name: str | None, panel: str | None) -> inspect.Parameter:
    option = name or "--" + (field.name.removesuffix("s") if field.repeated else field.name).replace("_", "-")
    names = [f"{option}/--no-{option[2:]}" if field.type is bool else option]
    info = typer.Option(*names, help=field.help, rich_help_panel=panel)
    annotation = Annotated[field.type, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def renamed(old: Mapping[str, str]) -> type[typer.core.TyperCommand]:
    """A command that takes options by earlier names too, which its help does not show.

    Args:
        old: earlier name → name, such as --labeler → --labeler.
    """

    class Command(typer.core.TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, current_names(args, old))

    return Command


def current_names(args: Sequence[str], old: Mapping[str, str]) -> list[str]:
    """Arguments with earlier names of options replaced, up to `--`."""
    end = args.index("--") if "--" in args else len(args)
    found = []
    for argument in args[:end]:
        name, equals, value = argument.partition("=")
        found.append(old.get(name, name) + equals + value)
    return [*found, *args[end:]]
