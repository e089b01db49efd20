"""`prefloop generate` and `prefloop pair`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, options_of, say, say_next
from ..core.document import answer
from ..core.signals import StopSignal
from ..core.text import plural
from ..models.completion import known_models
from ..store import completion
from .config import GenerateConfig
from .pair_config import PairConfig
from .prompt_sets.names import known_prompts


@options_of(
    GenerateConfig,
    panels={
        "Sampling": "num_inference_steps guidance_scale resolution scheduler negative_prompt",
        "Machine": "batch_size auto_batch_size dtype vae_dtype device workers",
    },
    values={"model": known_models, "prompts": known_prompts},
)
def generate(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be generated, and the time and disk it takes, and exit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate candidate images for prompts, and pair them. Only missing images are generated.

    Example: prefloop generate --prompts shapes --images-per-prompt 4 --store prefloop-store
    """
    config = GenerateConfig(**given)
    from ..models.checkpoints import best_checkpoint
    from ..store.creation import refuse_uncreatable
    from ..store.pairstore import PairStore
    from .announce import announcement
    from .defaults import built_in_base, describe_sampling
    from .image_worker import image_workers
    from .stage import model_facts, plan, run_plan

    existing = PairStore.open(store) if PairStore(Path(store)).exists() else None
    # names are looked up before a store is created, so that a mistyped one leaves nothing behind
    planned = plan(config, existing)
    if (best := best_checkpoint(planned.model)) is not None:
        say(f"a sweep found a better checkpoint of {config.model}: --model {best}", err=True)
    if dry_run:
        from .estimate import describe, estimate

        n, missing = len(planned.generations), len(planned.missing)
        estimated = estimate(planned)
        summary: dict[str, Any] = {
            "prompts": len(planned.prompts),
            "images": n,
            "missing": missing,
            "batches": -(-missing // config.batch_size),
            "estimate": None if estimated is None else asdict(estimated),
        }
        line = (
            f"{plural(n, 'image')} for {plural(summary['prompts'], 'prompt')}, {missing} of them missing, in "
            f"{plural(summary['batches'], 'batch', 'batches')}; {describe(estimated, planned.model.settings.pipeline_class)}; "
            "nothing was generated"
        )
    else:
        with image_workers(planned) as workers:
            if existing is None:  # a model that cannot be loaded must leave no store behind
                refuse_uncreatable(PairStore(store))
                with StopSignal().listening() as stop:
                    model_facts(workers, [], stop)
            filled = existing or PairStore.create(store)

            def begin() -> None:
                if (line := announcement(planned, store, chosen_prompts=config.prompts is not None)) is not None:
                    say(line, err=True)

            summary = run_plan(planned, filled, workers, begin)
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
    if as_json:
        answer(summary)
    else:
        say(f"{line} ({describe_sampling(planned.config)})")
    if not dry_run and not as_json and summary["pairs"]:
        weights = () if built_in_base(planned.model) is None else ("--checkpoint", "shapes")
        say_next("relabel", "--scorer", "pickscore", *weights, store=store)


@options_of(PairConfig, values={"models": known_models, "scorer": completion.scorers})
def pair(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print how many pairs there would be, and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Pair images that are in the store, of any models and rounds. Pairs that exist are not added again.

    Example: prefloop pair --pairing close --scorer pickscore --pairs-per-prompt 2
    """
    config = PairConfig(**given)
    from ..store.pairstore import PairStore
    from .pair_stage import pair as add_pairs
    from .pair_stage import plan as plan_pairs

    opened = PairStore.open(store)
    summary = plan_pairs(config, opened) if dry_run else add_pairs(config, opened)
    if as_json:
        answer(summary)
    else:
        _print_pairs(summary, config, store, dry_run)


def _print_pairs(summary: dict[str, int], config: PairConfig, store: Path, dry_run: bool) -> None:
    counts = f"{plural(summary['pairs'], 'pair')}, {summary['new_pairs']} of them new"
    line = f"{plural(summary['images'], 'image')} of {plural(summary['prompts'], 'prompt')}: {counts}"
    if dry_run:
        say(f"{line}; nothing was added")
    else:
        say(f"{line if summary['new_pairs'] else f'nothing to do: {line}'}; store: {store}")
    if n := summary["eval_images"]:
        say(
            f"left out: {plural(n, 'image')} of {plural(summary['eval_prompts'], 'prompt')} that an evaluation used; "
            "--include-eval pairs them too, and later evaluations on these prompts are then worthless",
            err=True,
        )
    if n := summary["unscored_images"]:
        say(
            f"left out: {plural(n, 'image')} without a score by {config.scorer}; `prefloop relabel --scorer "
            f"{config.scorer} --store {store}` scores the images of pairs",
            err=True,
        )
    if not summary["pairs"] and summary["images"]:
        say(_WITHOUT_PAIRS.get(config.pairing, "no prompt has two images that can be paired"), err=True)
    if summary["pairs"] and not dry_run:
        say(f"next: `prefloop label --store {store}` for people, or `prefloop relabel --store {store}` for a scorer")


_WITHOUT_PAIRS = {
    "across-models": "no prompt has images of two known models; generate with another --model, same --prompts",
    "best-worst": "no prompt has two images with different scores",
}
