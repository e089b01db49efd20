"""What the fields of a config say of themselves: the docstring under each, its type, its default."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Field:
    """A setting, as a command line needs it."""

    name: str
    help: str
    type: Any
    """str for a Literal, whose choices the config checks itself; list[str] for a tuple or a dict."""
    default: Any
    """None for a tuple or a dict, and for a field that must be given."""
    repeated: bool
    """A tuple or a dict: the option may be given several times."""


def config_fields(config: type) -> list[Field]:
    """The fields of a dataclass in their order. A field whose help is computed has it in its metadata."""
    docs, types = {}, get_type_hints(config)
    for parent in reversed(config.__mro__[:-1]):
        docs |= _docs(parent)
    found = []
    for field in fields(config):
        kind = types[field.name]
        repeated = get_origin(kind) in (tuple, dict)
        default = None if repeated or field.default is MISSING else field.default
        if repeated:
            kind = list[str] | None
        elif get_origin(kind) is Literal:
            kind = type(get_args(kind)[0])
        elif default is None and field.default is MISSING:
            kind = kind | None
        help = field.metadata.get("help") or docs.get(field.name, "")
        found.append(Field(field.name, help, kind, default, repeated))
    return found


def _docs(config: type) -> dict[str, str]:
    """The docstring under each field, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found
