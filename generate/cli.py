"""`prefloop generate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.cli import DEFAULT, StoreOption, options_of, say
from ..store.pairstore import PairStore
from .config import GenerateConfig


@options_of(
    GenerateConfig,
    panels={
        "Sampling": "num_inference_steps guidance_scale resolution scheduler negative_prompt",
        "Machine": "batch_size dtype device",
    },
)
def generate(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be generated, and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Generate candidate images for prompts, and pair them. Only missing images are generated.

    Example: prefloop generate --prompts shapes --images-per-prompt 4 --store prefloop-store
    """
    config = GenerateConfig(**given)
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
            "batches": -(-missing // config.batch_size),
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
