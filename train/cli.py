"""`prefloop train`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, completing, options_of, say, say_next, say_recipes
from ..core.document import answer
from ..core.errors import UsageError
from ..core.stats import interval_text
from ..core.text import plural
from ..core.validate import positive
from ..models.completion import known_models
from ..store import completion
from .config import NEEDED, TrainConfig


def _recipes() -> dict[str, str]:
    from .recipes import recipes

    return recipes()


@options_of(
    TrainConfig,
    panels={
        "Objective": "loss beta label_smoothing soft_labels safeguard anchor sft_weight min_snr_gamma timestep_density "
        "timestep_shift min_timestep max_timestep lora_rank lora_alpha lora_targets",
        "Optimizer": "learning_rate scale_lr lr_scheduler lr_warmup_steps optimizer max_train_steps train_batch_size "
        "gradient_accumulation_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm ema_decay",
        "Data": "max_train_samples proportion_empty_prompts resolution random_crop aspect_buckets random_flip noise_offset "
        "input_perturbation reference_draws dataloader_num_workers seed",
        "Monitoring": "validation_steps early_stopping sample_steps n_samples report_to tracker_project_name",
        "Output": "format kohya push_to_hub",
        "Machine": "device mixed_precision quantize gradient_checkpointing compile allow_tf32 cpu fsdp process_timeout",
        "Run": "revision vae vae_dtype init_from reference checkpointing_steps checkpoints_total_limit",
    },
    other_models=NEEDED,
    values={"labelers": completion.labelers, "model": known_models, "reference": known_models},
)
def train(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    config: Annotated[
        Optional[str],
        typer.Option(
            autocompletion=completing(lambda _: _recipes()),
            help="A recipe's name or a TOML file of options; by default the recipe for the model's family. Options on the "
            "command line take precedence; --no-kohya and the like turn a switch off.",
        ),
    ] = None,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="List the recipes and exit; with --dry-run, on which GPUs each fits.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings, estimated memory and time, and exit.")
    ] = False,
    pairs: Annotated[
        Optional[int],
        typer.Option(
            "--pairs",
            help="With --dry-run: assume this many pairs; needs no store, labels or folder.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a finished run.", rich_help_panel="Run")] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the run in the folder once the new one has a checkpoint.",
            rich_help_panel="Run",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tune a model on the labels of a store. The same command resumes an interrupted run.

    Example: prefloop train --labeler pickscore --output-dir tuned --where "margin > 0.1"
    """
    if recipes and dry_run:
        _say_cards(as_json)
        return
    if recipes:
        say_recipes(_recipes(), as_json)
        return
    if pairs is not None:
        positive("pairs", pairs, 10**9)
    if pairs is not None and not dry_run:
        raise UsageError("--pairs assumes pairs for --dry-run; --max-train-samples limits those to train on")
    from ..store.pairstore import PairStore

    given_settings: dict[str, Any] = _settings(given, config)
    if dry_run:
        if pairs is None and not (given_settings["labelers"] and PairStore(store).exists()):
            raise UsageError(
                "a dry run counts the pairs of a --store and a --labeler; without them, give their number with --pairs"
            )
        given_settings = {"output_dir": "tuned"} | given_settings | {"labelers": given_settings["labelers"] or ("any",)}
    elif not given_settings.get("output_dir"):
        raise UsageError("name a folder for the result with --output-dir")
    settings = TrainConfig(**given_settings)
    # mistakes in the store or in names are found before anything slow is imported
    from ..core.signals import StopSignal
    from ..models.families import supported_family
    from ..models.resolve import find_model
    from .defaults import describe_sources, resolve_settings, sources
    from .distributed import is_main, several_processes
    from .pairs import select_pairs
    from .preflight import refuse_impossible, refuse_other_kind
    from .run_folder.claim import refuse_early
    from .run_folder.location import refuse_overlap, refuse_resume_with_overwrite
    from .run_folder.saved_pairs import Selection, select_for_run
    from .sharding_checks import refuse_one_process

    refuse_resume_with_overwrite(resume, overwrite)
    stop = StopSignal()
    with nullcontext() if dry_run else stop.listening():
        opened = PairStore.open(store) if pairs is None else None
        resolved = resolve_settings(given_settings)
        settings, origins = TrainConfig(**resolved.settings), sources(resolved, given, config)
        selection = None
        if opened is not None:
            model = find_model(settings.model, settings.revision)
            refuse_overlap(settings, opened.path, model)
            if dry_run:
                selection = Selection(select_pairs(opened, settings))
            else:
                refuse_other_kind(settings, supported_family(model))
                if not several_processes():
                    refuse_one_process(settings, 1)
                refuse_early(Path(settings.output_dir), settings, resume, overwrite)
                refuse_impossible(settings)
                selection = select_for_run(settings, opened, overwrite=overwrite)
        if opened is None or dry_run:
            from .cost.dry_run import dry_run as estimate

            text, values = estimate(settings, opened, selection and selection.pairs, n_pairs=pairs)
            lines = describe_sources(settings, origins)
            if as_json:
                answer(values | {"sources": origins})
            else:
                say("\n".join([*lines, "", text]))
            return
        stop.check("nothing was trained yet")
        from .stage import train as run_training

        about = describe_sources(settings, origins)
        summary = run_training(
            settings, opened, selection=selection, resume=resume, overwrite=overwrite, stop=stop, about=about
        )
    if not is_main():
        return
    if as_json:
        answer(summary)
    else:
        say(summary_text(summary))
        built_in = find_model(settings.model, settings.revision).root.built_in
        prompts = () if built_in else ("--prompts", "held-out.txt")
        say_next("eval", "--model", settings.output_dir, *prompts, store=store)
    if settings.push_to_hub is not None:
        _push(settings.output_dir, settings.push_to_hub, private=False)


def _say_cards(as_json: bool) -> None:
    from dataclasses import asdict

    from .cost.recipe_cards import ESTIMATED, HEADER, cards_of_recipes

    if as_json:
        answer({"recipes": [asdict(cards) for cards in cards_of_recipes()]})
        return
    say(f"{HEADER}\n{'|---' * (HEADER.count('|') - 1)}|")
    for cards in cards_of_recipes():
        say(cards.row())
    say(ESTIMATED, err=True)


def card(
    folder: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    store: StoreOption = DEFAULT,
    push_to_hub: Annotated[Optional[str], typer.Option(help="Then upload the folder to this repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rewrite the model card of a result with the win rates of its evaluations.

    Example: prefloop card tuned
    """
    from ..store.pairstore import PairStore
    from .export.write_card import write_card

    n = write_card(folder, PairStore.open(store))
    if as_json:
        answer({"file": folder / "README.md", "evaluations": n})
    else:
        say(f"wrote {folder / 'README.md'} with {n} evaluation{'' if n == 1 else 's'}")
    if push_to_hub is not None:
        _push(str(folder), push_to_hub, private)


def _push(folder: str, repository: str, private: bool) -> None:
    from .export.hub import push

    say(push(Path(folder), repository, private=private), err=True)


def _settings(given: dict[str, Any], file: str | None) -> dict[str, Any]:
    """The settings of a file, overridden by those given on the command line."""
    from .recipes import merge_settings, read_settings

    settings = merge_settings(read_settings(file) if file is not None else {}, given)
    settings.setdefault("labelers", ())
    return settings


def summary_text(summary: dict) -> str:
    """What a run prints at its end."""
    from .monitor.beta_probe import KEY, probe_line

    validation = summary["validation"]
    accuracy = ""
    if validation.get("implicit_accuracy") is not None:
        low, high = validation["implicit_accuracy_low"], validation["implicit_accuracy_high"]
        accuracy = (
            f"; implicit accuracy on held-out pairs {validation['implicit_accuracy']:.3f} "
            f"({interval_text(low, high, validation['n_prompts'], '.3f')}; "
            f"{plural(validation['n_pairs'], 'pair')} of {plural(validation['n_prompts'], 'prompt')})"
        )
    beta = ""
    if summary["beta_mean"] is not None:
        beta = f", beta {summary['beta_mean']:g} per element mean = {summary['beta_sum']:.4g} per sum"
    lines = [f"{plural(summary['steps'], 'step')} on {plural(summary['n_pairs'], 'pair')}{beta}{accuracy}"]
    lines += [f"{verdict['name']}: {verdict['reason']}. {verdict['advice']}" for verdict in summary["diagnoses"]]
    if (beta_probe := summary[KEY]) is not None:
        lines.append(probe_line(beta_probe))
    if summary.get("kohya_file"):
        file = Path(summary["output_dir"]) / summary["kohya_file"]
        lines.append(f"for ComfyUI (models/loras) and AUTOMATIC1111 (models/Lora): {file}")
    return "\n".join([*lines, f"the model is in {summary['output_dir']}; training.png shows how training went"])
