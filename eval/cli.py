"""`prefloop eval`."""

from typing import Annotated, Optional

import typer

from ..relabel.config import parse_weights
from ..store.cli import DEFAULT, StoreOption, say
from ..store.pairstore import PairStore
from .config import EvalConfig

_SAMPLER = "Sampler"


def evaluate(
    model: Annotated[str, typer.Option(help="The tuned model: a folder, or a hub id.")],
    against: Annotated[str, typer.Option(help="The model it is compared with.")] = EvalConfig.against,
    prompts: Annotated[
        str, typer.Option(help="shapes-heldout or shapes (built in), or a prompts file as for generate.")
    ] = EvalConfig.prompts,
    scorer: Annotated[
        Optional[list[str]],
        typer.Option(
            help="A scorer's name or module:Class; again for several. pickscore, hps, clip, aesthetics if none."
        ),
    ] = None,
    weights: Annotated[
        Optional[list[str]],
        typer.Option(help="PATH, SCORER=PATH, a hub id, or shapes; the official ones if not given."),
    ] = None,
    store: StoreOption = DEFAULT,
    images_per_prompt: Annotated[int, typer.Option(help="Pairs per prompt.")] = EvalConfig.images_per_prompt,
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise, the same for both models.")] = EvalConfig.seed,
    report: Annotated[Optional[str], typer.Option(help="Folder of the report; below the store if not given.")] = None,
    num_inference_steps: Annotated[int, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.num_inference_steps,
    guidance_scale: Annotated[float, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.guidance_scale,
    resolution: Annotated[Optional[int], typer.Option(rich_help_panel=_SAMPLER)] = None,
    scheduler: Annotated[Optional[str], typer.Option(rich_help_panel=_SAMPLER)] = None,
    negative_prompt: Annotated[str, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.negative_prompt,
    batch_size: Annotated[int, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.batch_size,
    dtype: Annotated[str, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.dtype,
    device: Annotated[Optional[str], typer.Option(rich_help_panel=_SAMPLER)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Say how often a tuned model wins, with intervals, and write a report.

    Example: prefloop eval --model tuned --against shapes --scorer hps --scorer oracle --weights shapes
    """
    config = EvalConfig(
        model=model,
        against=against,
        prompts=prompts,
        scorers=tuple(scorer or ("pickscore", "hps", "clip", "aesthetics")),
        weights=parse_weights(weights or []),
        images_per_prompt=images_per_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        resolution=resolution,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        seed=seed,
        limit=limit,
        dtype=dtype,
        device=device,
        report=report,
    )
    opened = PairStore.open(store)
    from .run import as_json as strict_json
    from .run import evaluate as run_evaluation

    result = run_evaluation(config, opened)
    say(strict_json(result) if as_json else table(result))


def table(result: dict) -> str:
    """The result as lines for a terminal."""
    lines = [
        f"{result['model']} against {result['against']}: {result['n_pairs']} pairs for {result['n_prompts']} prompts",
        f"{'scorer':<12}{'win rate':>9}  {'95 % interval':<17}{'base':>9}{'tuned':>9}{'diff':>9}  95 % interval",
    ]
    for name, row in result["scorers"].items():
        lines.append(
            f"{name:<12}{row['win_rate']:>9.1%}  {row['low']:.1%} – {row['high']:.1%}    {row['base_mean']:>9.4f}"
            f"{row['tuned_mean']:>9.4f}{row['diff']:>+9.4f}  {row['diff_low']:+.4f} – {row['diff_high']:+.4f}"
            + ("  in-sample" if row["in_sample"] else "")
        )
    if result["n_trained_prompts"]:
        lines.append(f"{result['n_trained_prompts']} of these prompts were trained on")
    lines.append(f"report: {result['report']}/report.html")
    return "\n".join(lines)


__all__ = ["evaluate", "table"]
