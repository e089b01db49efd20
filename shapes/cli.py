"""`prefloop demo`."""

from typing import Annotated, Optional

import typer

from ..core.cli import JsonOption, say, say_next
from ..core.document import answer
from .demo import DemoConfig, demo_settings


def demo(
    output_dir: Annotated[
        Optional[str],
        typer.Option(
            help="Folder of the loop: its store, result and reports; "
            "prefloop-demo if not given, followed by -flow, -seed-N or -quick as the other options ask.",
            show_default=False,
        ),
    ] = DemoConfig.output_dir,
    model: Annotated[str, typer.Option(help="shapes, or shapes-flow, a flow-matching model.")] = DemoConfig.model,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = DemoConfig.seed,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run for less than a minute, on too few prompts to prove anything.")
    ] = DemoConfig.quick,
    device: Annotated[
        Optional[str], typer.Option(help="cuda, mps or cpu; the best available if not given.", show_default=False)
    ] = DemoConfig.device,
    as_json: JsonOption = False,
) -> None:
    """Run one round of the loop on the built-in world: no network, no GPU, about five minutes on two cores.

    Example: prefloop demo --quick
    """
    settings = demo_settings(DemoConfig(model=model, output_dir=output_dir, seed=seed, quick=quick, device=device))
    from ..loop.settings_file import refuse_early

    refuse_early(settings)
    from ..eval.cli import table
    from ..loop.stage import run_loop

    result = run_loop(settings, say=lambda _: None)  # the table says all that the round's line would
    evaluation = result["rounds"][0]["against_base"]
    if as_json:
        answer(evaluation)
        return
    say(table(evaluation))
    say(f"the model is in {result['result']}; report of the loop: {result['report']}")
    say_next("browse", store=settings.loop.store_path)
