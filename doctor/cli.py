"""`prefloop doctor`."""

import json
from typing import Annotated

import typer

from ..core.cli import DEFAULT, StoreOption, say


def doctor(
    store: StoreOption = DEFAULT,
    network: Annotated[bool, typer.Option("--network", help="Also try whether the hub answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what this machine has: versions, devices, disk, scorers, cached models, and how to get what is missing.

    Example: prefloop doctor --store prefloop-store
    """
    from dataclasses import asdict

    from ..core.json import plain
    from .facts import all_facts, as_text

    facts = all_facts(store, network=network)
    say(json.dumps(plain([asdict(fact) for fact in facts])) if as_json else as_text(facts))
