"""`prefloop generate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.cli import DEFAULT, StoreOption, options_of, say
from ..core.text import plural
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
    from .defaults import describe_sampling
    from .stage import plan, run_plan

    existing = PairStore.open(store) if PairStore(Path(store)).exists() else None
    # names are looked up before a store is created, so that a mistyped one leaves nothing behind
    planned = plan(config, existing)
    if dry_run:
        n, missing = len(planned.generations), len(planned.missing)
        summary = {
            "prompts": len(planned.prompts),
            "images": n,
            "missing": missing,
            "batches": -(-missing // config.batch_size),
        }
        line = (
            f"{plural(n, 'image')} for {plural(summary['prompts'], 'prompt')}, {missing} of them missing, in "
            f"{plural(summary['batches'], 'batch', 'batches')}; nothing was generated"
        )
    else:
        sampler = None
        if existing is None:  # a model that cannot be loaded must leave no store behind
            from .sampler import ImageSampler

            sampler = ImageSampler(planned.model, planned.config)
        summary = run_plan(planned, existing or PairStore.create(store), sampler)
        line = (
            f"{plural(summary['generated'], 'image')} generated, {summary['images']} for "
            f"{plural(summary['prompts'], 'prompt')} in total; {plural(summary['pairs'], 'pair')}, "
            f"{summary['new_pairs']} of them new; store: {store}"
        )
        if summary["truncated"]:
            say(f"truncated to the text encoder's limit: {plural(summary['truncated'], 'prompt')}", err=True)
        if not summary["generated"] and not summary["new_pairs"]:
            line = f"nothing to do: {line}"
    if config.images_per_prompt == 1:
        say("no pairs from one image per prompt; give --images-per-prompt 2 or more to get some", err=True)
    summary = {**summary, "sampling": planned.config.sampling()}
    say(json.dumps(summary) if as_json else f"{line} ({describe_sampling(planned.config)})")
