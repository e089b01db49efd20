"""The fields of a config as command line options: name, help, type and default of each."""

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
    """The docstring under the field, or its metadata's `help`."""
    type: Any
    """str for a Literal, whose choices the config checks itself; list[str] for a tuple or a dict."""
    default: Any
    """None for a tuple or a dict, and for a field that must be given."""
    repeated: bool
    """A tuple or a dict: the option may be given several times."""
    choices: tuple[str, ...] = ()
    """Of a Literal, or in the metadata: what a shell completes."""
    hidden: bool = False
    """An earlier option that still works: not in the help."""
    switch: bool = False
    """A switch that also takes a word, such as --gradient-checkpointing auto: a str, with true and false among its choices."""

    @property
    def option(self) -> str:
        """--labeler for a repeated field labelers."""
        return "--" + (self.name.removesuffix("s") if self.repeated else self.name).replace("_", "-")


def config_fields(config: type) -> list[Field]:
    """The fields of a dataclass in their order. A field whose help is computed has it in its metadata."""
    docs, types = {}, get_type_hints(config)
    for parent in reversed(config.__mro__[:-1]):
        docs |= _docs(parent)
    options = []
    for field in fields(config):
        hint = types[field.name]
        repeated = container(hint) is not None
        default = None if repeated or field.default is MISSING else field.default
        choices: tuple[str, ...] = tuple(field.metadata.get("choices", ()))
        if repeated:
            hint = list[str] | None
        elif get_origin(hint) is Literal:
            choices = get_args(hint)
            hint = type(choices[0])
        elif words := words_beside(bool, hint):
            hint, choices, default = str, ("true", "false", *words), str(default).lower()
        elif field.default is MISSING:
            hint = hint | None
        text = field.metadata.get("help") or docs.get(field.name, "")
        hidden, switch = bool(field.metadata.get("hidden")), bool(words_beside(bool, types[field.name]))
        options.append(Field(field.name, text, hint, default, repeated, choices, hidden, switch))
    return options


def words_beside(kind: type, hint: Any) -> tuple[str, ...]:
    """The words that a setting may have instead of a value of the kind: ("auto",) of bool | Literal["auto"]."""
    parts = get_args(hint)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ()) if kind in parts else ()


def container(hint: Any) -> type | None:
    """tuple or dict for a setting of several values, also for one that may be None; None for one value."""
    kinds = (hint,) if get_origin(hint) in (tuple, dict) else get_args(hint)
    return next((kind for kind in map(get_origin, kinds) if kind in (tuple, dict)), None)


def _docs(config: type) -> dict[str, str]:
    """The docstring under each field, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs
