"""Shared by all commands: the options --store and --json, safe output, and options derived from a config's fields."""

import inspect
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .device import DEVICES
from .document import answer
from .errors import UsageError
from .options import Field, config_fields
from .text import visible_lines

StoreOption = Annotated[Path, typer.Option("--store", envvar="PREFLOOP_STORE", help="Folder of the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, also of an error.")]
OutputDirOption = Annotated[Path | None, typer.Option("--output-dir", help="Folder to create.", show_default=False)]
OutputDirArgument = Annotated[Path | None, typer.Argument(help="Earlier form of --output-dir.", hidden=True)]
DEFAULT = Path("prefloop-store")


def say_next(*words: object, store: Path) -> None:
    """Tell what to type next."""
    where = () if store == Path(os.environ.get("PREFLOOP_STORE", DEFAULT)) else ("--store", store)
    say(f"next: {shlex.join(map(str, ('prefloop', *words, *where)))}", err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print text whose names and prompts cannot control the terminal."""
    typer.echo(visible_lines(text), err=err)


def folder_to_write(option: Path | None, argument: Path | None) -> Path:
    """The folder of --output-dir, which earlier versions took as an argument.

    Raises:
        UsageError: if there is none, or two.
    """
    if option is not None and argument is not None:
        raise UsageError(
            f"two folders to write are named, {option} and {argument}; leave out the one without --output-dir"
        )
    folder = option or argument
    if folder is None:
        raise UsageError("name a folder to create with --output-dir")
    return folder


def say_recipes(recipes: Mapping[str, str], as_json: bool) -> None:
    """Print the names of recipes and what each is for."""
    if as_json:
        answer([{"name": name, "description": line} for name, line in recipes.items()])
        return
    for name, line in recipes.items():
        say(f"{name:20} {line}")


def options_of(
    config: type,
    *,
    panels: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    parsers: Mapping[str, Callable[[list[str]], object]] | None = None,
    skip: Collection[str] = (),
    values: Mapping[str, Callable[[Path], Iterable[str]]] | None = None,
    other_models: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for each field of `config`. Its first argument is a dict of the fields given on the command line.

    Defaults and help come from the fields. A tuple or a dict becomes an option that may be repeated, named in the singular.

    Args:
        panels: heading in the help → names of its fields, separated by spaces.
        names: field → option, if it is not the field's own name.
        parsers: dict field → function that makes the dict from the strings given.
        skip: fields without an option.
        values: field → function from the store's folder to what a shell completes; those of a Literal are known.
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
                    usual = tuple if field.repeated else _switched if field.switch else None
                    parse = (parsers or {}).get(field.name, usual)
                    given[field.name] = value if parse is None else parse(value)
            command(given, **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        derived = [
            _parameter(
                field,
                (names or {}).get(field.name),
                panel_of.get(field.name),
                (values or {}).get(field.name, (lambda _: DEVICES) if field.name == "device" else None),
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


def _switched(value: str) -> bool | str:
    """The value of a switch that also takes a word."""
    return {"true": True, "false": False}.get(value, value)


def _parameter(
    field: Field,
    name: str | None,
    panel: str | None,
    values: Callable[[Path], Iterable[str]] | None,
    built_in_only: bool,
) -> inspect.Parameter:
    option = name or field.option
    is_switch = field.type is bool
    names = f"{option}/--no-{option[2:]}" if is_switch else option
    # "[default: no-cpu]" would say what an option without a word already says
    info = typer.Option(
        names,
        help=field.help,
        hidden=field.hidden,
        rich_help_panel=panel,
        show_default=f"{field.default} for shapes, else the recipe's"
        if built_in_only
        else not is_switch or field.default,
        metavar="<str>" if field.repeated else None,
        autocompletion=completing(values or (lambda _: field.choices)),
    )
    annotation = Annotated[field.type, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def completing(values: Callable[[Path], Iterable[str]]) -> Callable[..., list[str]]:
    """What a shell offers for the beginning of a value.

    Args:
        values: from the folder of the command's store, which need not exist, to all that could be meant.
    """

    def offered(ctx: typer.Context, incomplete: str) -> list[str]:
        store = Path(ctx.params.get("store") or os.environ.get("PREFLOOP_STORE", DEFAULT))
        return [value for value in values(store) if value.startswith(incomplete)]

    return offered
