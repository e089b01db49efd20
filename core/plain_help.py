"""The help of a command without what nobody needs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def plain_help(command: Any, ctx: Any) -> Iterator[None]:
    """For a help that is printed in the block: a switch is not a <bool>, --no-X of one that is off anyway is left out, since its column would take
    a third of 80; a list is told by its items' type; an argument is in capitals, as in messages."""
    with ExitStack() as changes:
        for parameter in command.get_params(ctx):
            if not parameter.default:
                changes.enter_context(_changed(parameter, "secondary_opts", []))
            if getattr(parameter, "is_flag", False):
                changes.enter_context(_changed(parameter, "metavar", ""))
            shown = (parameter.display_type_rich(ctx=ctx) or "").replace("<list[", "<").replace("]>", ">")
            changes.enter_context(_changed(parameter, "display_type_rich", lambda *, ctx, shown=shown: shown))  # noqa: ARG005
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                changes.enter_context(_changed(parameter, "metavar", parameter.name.upper()))
        yield


@contextmanager
def _changed(thing: Any, name: str, value: object) -> Iterator[None]:
    """The attribute has another value for the duration of the block."""
    own = vars(thing)
    kept, before = name in own, own.get(name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        delattr(thing, name)
        if kept:
            setattr(thing, name, before)
