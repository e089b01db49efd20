"""`prefloop doctor`."""

from typing import Annotated

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, say
from ..core.document import answer


def doctor(
    store: StoreOption = DEFAULT,
    network: Annotated[bool, typer.Option("--network", help="Also try whether the hub answers.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has: versions, devices, disk, scorers, cached models, and how to get what is missing.

    Example: prefloop doctor --store prefloop-store
    """
    from dataclasses import asdict

    from .facts import all_facts, as_text

    facts = all_facts(store, network=network)
    if as_json:
        answer([asdict(fact) for fact in facts])
    else:
        say(as_text(facts))
