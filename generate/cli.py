"""`prefloop generate`."""

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..store.cli import DEFAULT, StoreOption, say
from ..store.pairstore import PairStore
from .config import GenerateConfig

_SAMPLER = "Sampler"
_MACHINE = "Machine"


def generate(
    model: Annotated[str, typer.Option(help="shapes (built in), a folder, or a hub id.")] = GenerateConfig.model,
    prompts: Annotated[
        Optional[str],
        typer.Option(
            help="A .txt, .jsonl, .json, .csv, .tsv or .parquet file, shapes or shapes-heldout; "
            "shapes for the built-in model."
        ),
    ] = GenerateConfig.prompts,
    images_per_prompt: Annotated[
        int, typer.Option(help="Candidate images per prompt.")
    ] = GenerateConfig.images_per_prompt,
    pairs: Annotated[str, typer.Option(help="all, random or adjacent.")] = GenerateConfig.pairs,
    store: StoreOption = DEFAULT,
    limit: Annotated[Optional[int], typer.Option(help="Use the first so many prompts.")] = GenerateConfig.limit,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = GenerateConfig.seed,
    num_inference_steps: Annotated[
        Optional[int], typer.Option(help="Denoising steps; the model's usual number.", rich_help_panel=_SAMPLER)
    ] = GenerateConfig.num_inference_steps,
    guidance_scale: Annotated[
        Optional[float],
        typer.Option(help="Classifier-free guidance; 1 is none; the model's usual one.", rich_help_panel=_SAMPLER),
    ] = GenerateConfig.guidance_scale,
    resolution: Annotated[
        Optional[int], typer.Option(help="Side in pixels; the model's own if not given.", rich_help_panel=_SAMPLER)
    ] = GenerateConfig.resolution,
    scheduler: Annotated[
        Optional[str],
        typer.Option(help="ddim, dpm++, euler, … or a diffusers class.", rich_help_panel=_SAMPLER),
    ] = GenerateConfig.scheduler,
    negative_prompt: Annotated[
        str, typer.Option(help="What the images shall not show.", rich_help_panel=_SAMPLER)
    ] = GenerateConfig.negative_prompt,
    batch_size: Annotated[
        int, typer.Option(help="Images drawn at once.", rich_help_panel=_MACHINE)
    ] = GenerateConfig.batch_size,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, float16 or bfloat16.", rich_help_panel=_MACHINE)
    ] = GenerateConfig.dtype,
    device: Annotated[
        Optional[str], typer.Option(help="cuda, mps or cpu; the best there is if not given.", rich_help_panel=_MACHINE)
    ] = GenerateConfig.device,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be drawn, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Draw candidate images for prompts, and pair them. Only what is missing is drawn.

    Example: prefloop generate --prompts shapes --images-per-prompt 4 --store prefloop-store
    """
    config = GenerateConfig(
        model=model,
        prompts=prompts,
        images_per_prompt=images_per_prompt,
        pairs=pairs,  # type: ignore[arg-type]  # checked by the config
        limit=limit,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        resolution=resolution,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        dtype=dtype,  # type: ignore[arg-type]  # checked by the config
        device=device,
    )
    from .defaults import described
    from .stage import generate as draw_and_pair
    from .stage import plan

    there = PairStore(Path(store)).exists()
    # names are looked up before a store is made, so that a mistyped one leaves nothing behind
    planned = plan(config, PairStore.open(store) if there else None)
    if dry_run:
        n, missing = len(planned.wanted), len(planned.missing)
        summary = {
            "prompts": len(planned.prompts),
            "images": n,
            "missing": missing,
            "batches": -(-missing // batch_size),
        }
        line = f"{n} images for {len(planned.prompts)} prompts; {missing} are missing, {summary['batches']} batches; nothing was drawn"
    else:
        sampler = None
        if not there:  # a model that cannot be loaded must leave no store behind
            from .sampler import Sampler

            sampler = Sampler(planned.model, planned.config)
        summary = draw_and_pair(planned.config, PairStore.create(store), sampler)
        line = (
            f"{summary['drawn']} images drawn, {summary['images']} for {summary['prompts']} prompts in all; "
            f"{summary['pairs']} pairs, {summary['new_pairs']} of them new; store: {store}"
        )
        if summary["truncated"]:
            say(f"{summary['truncated']} prompts are longer than the text encoder reads and were cut", err=True)
        if not summary["drawn"] and not summary["new_pairs"]:
            line = f"nothing to do: {line}"
    summary = {**summary, "sampler": planned.config.sampler()}
    say(json.dumps(summary) if as_json else f"{line} ({described(planned.config)})")
