"""`prefloop eval`."""

from typing import Annotated, Optional

import typer

from ..core.errors import BadDataError
from ..relabel.config import parse_weights
from ..store.cli import DEFAULT, StoreOption, say
from ..store.pairstore import PairStore
from .config import EvalConfig

_SAMPLER = "Sampler"


def evaluate(
    model: Annotated[str, typer.Option(help="The tuned model: a folder, or a hub id.")],
    against: Annotated[
        Optional[str], typer.Option(help="The model it is compared with; the one it was trained on if not given.")
    ] = EvalConfig.against,
    prompts: Annotated[
        Optional[str],
        typer.Option(
            help="A prompts file as for generate, shapes or shapes-heldout; shapes-heldout for the built-in model."
        ),
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
    num_inference_steps: Annotated[
        Optional[int],
        typer.Option(help="As the training images were drawn, or the model's usual number.", rich_help_panel=_SAMPLER),
    ] = EvalConfig.num_inference_steps,
    guidance_scale: Annotated[
        Optional[float], typer.Option(help="Likewise; 1 is none.", rich_help_panel=_SAMPLER)
    ] = EvalConfig.guidance_scale,
    resolution: Annotated[Optional[int], typer.Option(rich_help_panel=_SAMPLER)] = None,
    scheduler: Annotated[Optional[str], typer.Option(rich_help_panel=_SAMPLER)] = None,
    negative_prompt: Annotated[str, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.negative_prompt,
    batch_size: Annotated[int, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.batch_size,
    dtype: Annotated[str, typer.Option(rich_help_panel=_SAMPLER)] = EvalConfig.dtype,
    device: Annotated[Optional[str], typer.Option(rich_help_panel=_SAMPLER)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Say how often a tuned model wins, with intervals, and write a report.

    Example: prefloop eval --model tuned --scorer hps --scorer oracle --weights shapes
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
    from .stage import as_json as strict_json
    from .stage import evaluate as run_evaluation

    result = run_evaluation(config, opened)
    say(strict_json(result) if as_json else table(result))
    if result["without_result"]:
        raise BadDataError(
            f"{', '.join(result['without_result'])} gave no finite score on both images of any of the {result['n_pairs']} pairs"
        )


def table(result: dict) -> str:
    """The result as lines for a terminal."""
    lines = [
        f"{result['model']} against {result['against']}: {result['n_pairs']} pairs for {result['n_prompts']} prompts of "
        f"{result['prompts']}, {_trained(result['n_trained_prompts'])}; {result['settings']}",
        f"{'scorer':<12}{'win rate':>9}  {'95 % interval':<17}{'base':>9}{'tuned':>9}{'diff':>9}  95 % interval",
    ]
    for name, row in result["scorers"].items():
        lines.append(
            f"{name:<12}{row['win_rate']:>9.1%}  {row['low']:.1%} – {row['high']:.1%}    {row['base_mean']:>9.4f}"
            f"{row['tuned_mean']:>9.4f}{row['diff']:>+9.4f}  {row['diff_low']:+.4f} – {row['diff_high']:+.4f}"
            + ("  in-sample" if row["in_sample"] else "")
            + (f"  {row['n_pairs']} of {result['n_pairs']} pairs" if row["n_left_out"] else "")
        )
    lines.append(f"report: {result['report']}/report.html")
    return "\n".join(lines)


def _trained(n: int | None) -> str:
    if n is None:
        return "which of them were trained on is not known"
    return f"{n or 'none'} of them trained on"


__all__ = ["evaluate", "table"]
