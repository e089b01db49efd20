"""`prefloop demo`."""

from typing import Annotated

import typer

from .demo import DemoConfig


def demo(
    dir: Annotated[str, typer.Option(help="Folder of the store, the tuned model and the report.")] = DemoConfig.dir,
    model: Annotated[str, typer.Option(help="shapes, or shapes-flow, a flow-matching model.")] = DemoConfig.model,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = DemoConfig.seed,
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute; too few prompts to prove anything.")
    ] = DemoConfig.quick,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run the whole loop on the built-in world: no network, no GPU, about five minutes on two cores.

    Example: prefloop demo --quick
    """
    config = DemoConfig(model=model, dir=dir, seed=seed, quick=quick)
    from ..core.cli import say
    from ..eval.cli import table
    from ..eval.stage import as_json as strict_json
    from .demo import demo as run_demo

    result = run_demo(config)
    say(strict_json(result) if as_json else table(result))
