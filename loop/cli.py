"""`prefloop loop`."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..core.cli import JsonOption, completing, options_of, say, say_recipes
from ..core.document import answer
from ..core.errors import UsageError
from ..core.files import refuse_existing, write_atomic
from ..core.text import percent
from ..models.completion import known_models
from .config import LoopConfig


def _recipes() -> dict[str, str]:
    from .settings_file import recipes

    return recipes()


@options_of(LoopConfig, values={"model": known_models})
def loop(
    given: dict[str, Any],
    file: Annotated[
        Optional[str],
        typer.Argument(
            metavar="FILE",
            autocompletion=completing(lambda _: _recipes()),
            help="A recipe's name, or a TOML file with the sections loop, generate, relabel, train, eval.",
        ),
    ] = None,
    assignments: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            metavar="SECTION.OPTION=VALUE",
            help="An option of a stage, such as train.learning_rate=1e-4; repeat.",
        ),
    ] = None,
    recipes: Annotated[bool, typer.Option("--recipes", help="List the recipes and exit.")] = False,
    init: Annotated[
        Optional[Path], typer.Option("--init", help="Write the recipe to this file, with comments, and exit.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan of all rounds and what it will cost, and exit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate, label, train and evaluate, round after round. The same command resumes an interrupted loop.

    Example: prefloop loop shapes --output-dir my-loop
    """
    from .settings_file import read_loop, recipe_text, refuse_early

    if recipes:
        say_recipes(_recipes(), as_json)
        return
    if init is not None:
        text = recipe_text(file or "shapes")
        if given or assignments:
            raise UsageError("--init writes a recipe as it is; leave out the other options, and edit the file")
        refuse_existing(init)
        write_atomic(init, text.encode())
        if as_json:
            answer({"file": init})
        else:
            say(f"wrote {init}; edit it, then run `prefloop loop {init}`")
        return
    settings = read_loop(file, given, assignments or (), say=lambda line: say(line, err=True))
    if dry_run:
        from .plan import as_json as plan_json
        from .plan import plan_loop, plan_text

        plan = plan_loop(settings)
        if as_json:
            answer(plan_json(plan))
        else:
            say(plan_text(plan))
        return
    refuse_early(settings)
    from .stage import run_loop

    result = run_loop(settings, say=lambda line: say(line, err=as_json))
    if as_json:
        answer(result)
    else:
        say(summary_text(result))


def summary_text(result: dict) -> str:
    """What a loop prints at its end."""
    best = result["best"]
    lines = [f"stopped: {result['stopped']}"]
    if len(result["rounds"]) > 1:
        lines.append(f"kept round {best['number']}: {_held_out(best)}")
    if not best["beats_base"]:
        lines.append(
            f"nothing shows that round {best['number']} is better than the base: the mean win rate by "
            f"{', '.join(best['chosen_by'])} is not above one half; use the base"
        )
    return "\n".join([*lines, f"the model is in {result['result']}; report: {result['report']}"])


def _held_out(best: dict) -> str:
    from ..core.stats import interval_text

    rates = []
    for name, row in best["reported"].items():
        win_rate = row["win_rate"]
        interval = interval_text(win_rate["low"], win_rate["high"], row["n_prompts"])
        rates.append(f"{name} {percent(win_rate['value'])} ({interval})")
    if not rates:
        return "no win rates on prompts that did not choose it, because there was one prompt"
    return f"win rates against the base on the half of the prompts that did not choose it: {', '.join(rates)}"
