"""Settings from TOML files, checked against the fields of a config."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from .errors import PrefloopError, UsageError
from .options import container, words_beside

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def read_toml(path: Path) -> dict[str, Any]:
    """
    Raises:
        UsageError: if the file is not TOML in UTF-8.
        PrefloopError: if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise PrefloopError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from error
    except ValueError as error:  # also of an integer with thousands of digits
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except RecursionError:
        raise UsageError(f"{path} is not valid TOML: it is nested too deeply") from None


def settings_of(
    source: Path | str, table: Mapping[str, Any], config: type, command: str, aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A table of a file as arguments of a config, by the names of its fields.

    Args:
        source: of the table, for messages.
        command: whose help lists the options, for messages.
        aliases: other name → field. A repeated option's name may be in the singular, as on the command line.

    Raises:
        UsageError: if it sets an unknown option, one option twice, or a value of another type.
    """
    types = get_type_hints(config)
    names = {field.name: field.name for field in fields(config)}
    names |= {name.removesuffix("s"): name for name in names if container(types[name]) is not None}
    names |= aliases or {}
    settings: dict[str, Any] = {}
    for key, value in table.items():
        for item in (key, *_items(value)):
            if isinstance(item, str) and "\0" in item:
                raise UsageError(f"{source} sets {key!r} to {value!r}; a setting cannot hold a NUL character")
            if isinstance(item, int) and abs(item) >= 1 << 63:
                raise UsageError(f"{source} sets {key} to {str(item)[:20]}…, an integer of more than 64 bits")
        setting = names.get(key.replace("-", "_"))
        if setting is None:
            raise UsageError(f"{source} sets {key!r}, which is not an option; `prefloop {command} --help` lists them")
        if setting in settings:
            raise UsageError(f"{source} sets {setting} twice, the second time as {key}; remove one")
        settings[setting] = _value(source, key, value, types[setting])
    return settings


def parse_option(text: str, config: type, name: str) -> Any:
    """A value written on the command line, as TOML would have it; text needs no quotes.

    Args:
        name: the field it is for; that of a field of text is taken as it is.
    """
    hint = get_type_hints(config).get(name)
    kinds = {hint, *get_args(hint)}
    if kinds & {bool, int, float} or get_origin(hint) is dict or text[:1] in ("[", "{", '"', "'"):
        try:
            values = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):
            return text
        return values["value"] if len(values) == 1 else text  # with a line break it could set another value
    return text


def _items(value: Any) -> list[Any]:
    """What a value holds: those of a list, names and values of a table, or itself."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else [value]


def _value(source: Path | str, key: str, value: Any, hint: Any) -> Any:
    kind = container(hint) or hint
    if kind is tuple:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise _wrong(source, key, value, "a string or a list of strings")
    if kind is dict:
        item_type = get_args(hint)[1]
        if isinstance(value, dict) and all(_fits(item, item_type) for item in value.values()):
            return value
        raise _wrong(source, key, value, f"a table, each of whose values is {_WORDS[item_type]}")
    if isinstance(value, str) and value in words_beside(bool, hint):
        return value
    wanted = next((kind for kind in (bool, int, float, str) if kind is hint or kind in get_args(hint)), str)
    if not _fits(value, wanted):
        raise _wrong(source, key, value, " or ".join([_WORDS[wanted], *words_beside(bool, hint)]))
    return value


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _wrong(source: Path | str, key: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"{source} sets {key} to {value!r}, which is not {expected}")
