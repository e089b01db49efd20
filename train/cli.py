"""`prefloop train`."""

import json
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..core.errors import UsageError
from ..store.cli import DEFAULT, StoreOption, say
from ..store.pairstore import PairStore
from .config import TrainConfig

_OBJECTIVE, _OPTIMIZER, _DATA = "Objective", "Optimizer", "Data"
_LOOKS, _OUTPUT, _MACHINE, _RUN = "Looks", "Output", "Machine", "Run"
_D = TrainConfig  # defaults


def _list_recipes(wanted: bool) -> None:
    if wanted:
        from .recipes import recipes

        for name, line in recipes().items():
            say(f"{name:12} {line}")
        raise typer.Exit


def train(
    context: typer.Context,
    labels: Annotated[
        Optional[list[str]],
        typer.Option(
            "--labels",
            "--choice-model",
            help="Labeler whose choices are learned, or LABELER=WEIGHT; give it again for several.",
        ),
    ] = None,
    output_dir: Annotated[Optional[str], typer.Option(help="Folder of the result and its checkpoints.")] = None,
    model: Annotated[str, typer.Option(help="shapes (built in), a folder, or a hub id.")] = _D.model,
    store: StoreOption = DEFAULT,
    where: Annotated[
        Optional[str], typer.Option(help='SQL condition over preferences, such as "margin > 0.1".')
    ] = _D.where,
    config: Annotated[
        Optional[str], typer.Option(help="A recipe's name or a TOML file of options; options given here win.")
    ] = None,
    recipes: Annotated[
        bool, typer.Option("--recipes", is_eager=True, callback=_list_recipes, help="List the recipes and exit.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and what they would cost, and exit.")
    ] = False,
    loss: Annotated[str, typer.Option(help="dpo, sft, ipo, hinge, mapo or kto.", rich_help_panel=_OBJECTIVE)] = _D.loss,
    beta_dpo: Annotated[
        float,
        typer.Option(
            help="Pull towards the reference; times a per-element mean (SD 1.5: 2000 to 5000).",
            rich_help_panel=_OBJECTIVE,
        ),
    ] = _D.beta_dpo,
    label_smoothing: Annotated[
        float,
        typer.Option(help="Of dpo: take every label to be wrong with this probability.", rich_help_panel=_OBJECTIVE),
    ] = _D.label_smoothing,
    soft_labels: Annotated[
        bool,
        typer.Option(
            "--soft-labels/--no-soft-labels",
            help="Of dpo: take every label as its stored probability.",
            rich_help_panel=_OBJECTIVE,
        ),
    ] = _D.soft_labels,
    safeguard: Annotated[
        Optional[float],
        typer.Option(
            help="SDPO: the rejected image may not raise the chosen one's error; mu, such as 0.9.",
            rich_help_panel=_OBJECTIVE,
        ),
    ] = _D.safeguard,
    min_snr_gamma: Annotated[
        Optional[float], typer.Option(help="Weight timesteps by min-SNR, such as 5.", rich_help_panel=_OBJECTIVE)
    ] = _D.min_snr_gamma,
    lora_rank: Annotated[
        int, typer.Option(help="Rank of a LoRA; 0 tunes every weight.", rich_help_panel=_OBJECTIVE)
    ] = _D.lora_rank,
    lora_alpha: Annotated[
        Optional[float], typer.Option(help="The rank if not given.", rich_help_panel=_OBJECTIVE)
    ] = _D.lora_alpha,
    learning_rate: Annotated[
        float, typer.Option(help="For the built-in world; SD 1.5: 1e-5 (LoRA).", rich_help_panel=_OPTIMIZER)
    ] = _D.learning_rate,
    scale_lr: Annotated[
        bool,
        typer.Option(
            "--scale-lr/--no-scale-lr", help="Multiply it by the pairs of a step.", rich_help_panel=_OPTIMIZER
        ),
    ] = _D.scale_lr,
    lr_scheduler: Annotated[
        str,
        typer.Option(
            help="constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial.",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = _D.lr_scheduler,
    lr_warmup_steps: Annotated[int, typer.Option(rich_help_panel=_OPTIMIZER)] = _D.lr_warmup_steps,
    optimizer: Annotated[
        str,
        typer.Option(
            help="adamw, adafactor, adamw8bit; auto: Adafactor for all of SDXL, else AdamW.", rich_help_panel=_OPTIMIZER
        ),
    ] = _D.optimizer,
    max_train_steps: Annotated[
        int, typer.Option(help="Optimizer steps.", rich_help_panel=_OPTIMIZER)
    ] = _D.max_train_steps,
    train_batch_size: Annotated[
        int, typer.Option(help="Pairs per device and pass.", rich_help_panel=_OPTIMIZER)
    ] = _D.train_batch_size,
    gradient_accumulation_steps: Annotated[
        int, typer.Option(help="Passes per optimizer step.", rich_help_panel=_OPTIMIZER)
    ] = _D.gradient_accumulation_steps,
    adam_beta1: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = _D.adam_beta1,
    adam_beta2: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = _D.adam_beta2,
    adam_weight_decay: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = _D.adam_weight_decay,
    adam_epsilon: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = _D.adam_epsilon,
    max_grad_norm: Annotated[
        float, typer.Option(help="Adafactor has its own.", rich_help_panel=_OPTIMIZER)
    ] = _D.max_grad_norm,
    ema_decay: Annotated[
        Optional[float],
        typer.Option(help="The result is a moving average of the weights, such as 0.999.", rich_help_panel=_OPTIMIZER),
    ] = _D.ema_decay,
    max_train_samples: Annotated[
        Optional[int], typer.Option(help="Only so many pairs.", rich_help_panel=_DATA)
    ] = _D.max_train_samples,
    proportion_empty_prompts: Annotated[
        float, typer.Option(help="Share of pairs that are learned without prompt.", rich_help_panel=_DATA)
    ] = _D.proportion_empty_prompts,
    resolution: Annotated[
        Optional[int], typer.Option(help="Side in pixels; the model's own if not given.", rich_help_panel=_DATA)
    ] = _D.resolution,
    random_crop: Annotated[
        bool,
        typer.Option(
            "--random-crop/--no-random-crop",
            help="Cut each pair at a random place, both images alike.",
            rich_help_panel=_DATA,
        ),
    ] = _D.random_crop,
    aspect_buckets: Annotated[
        bool,
        typer.Option(
            "--aspect-buckets/--no-aspect-buckets", help="Keep each pair's aspect ratio.", rich_help_panel=_DATA
        ),
    ] = _D.aspect_buckets,
    random_flip: Annotated[
        bool,
        typer.Option(
            "--random-flip/--no-random-flip", help="Mirror half of the pairs, both images alike.", rich_help_panel=_DATA
        ),
    ] = _D.random_flip,
    noise_offset: Annotated[float, typer.Option(rich_help_panel=_DATA)] = _D.noise_offset,
    input_perturbation: Annotated[
        float, typer.Option(help="Noise added to the input's noise, the same for both images.", rich_help_panel=_DATA)
    ] = _D.input_perturbation,
    cache_reference: Annotated[
        int,
        typer.Option(
            help="Draw each pair's noise only so often and keep the reference's errors.", rich_help_panel=_DATA
        ),
    ] = _D.cache_reference,
    dataloader_num_workers: Annotated[
        int, typer.Option(help="Threads that prepare batches ahead; for a GPU.", rich_help_panel=_DATA)
    ] = _D.dataloader_num_workers,
    seed: Annotated[int, typer.Option(rich_help_panel=_DATA)] = _D.seed,
    validation_steps: Annotated[
        int, typer.Option(help="Steps between looks at the held-out pairs.", rich_help_panel=_LOOKS)
    ] = _D.validation_steps,
    early_stopping: Annotated[
        int, typer.Option(help="End after so many looks that were no better; 0 is never.", rich_help_panel=_LOOKS)
    ] = _D.early_stopping,
    sample_steps: Annotated[
        int, typer.Option(help="Steps between pictures for held-out prompts; 0 is never.", rich_help_panel=_LOOKS)
    ] = _D.sample_steps,
    n_samples: Annotated[int, typer.Option(help="Pictures each time.", rich_help_panel=_LOOKS)] = _D.n_samples,
    report_to: Annotated[
        Optional[str], typer.Option(help="tensorboard, wandb or trackio, beside the CSV files.", rich_help_panel=_LOOKS)
    ] = _D.report_to,
    tracker_project_name: Annotated[str, typer.Option(rich_help_panel=_LOOKS)] = _D.tracker_project_name,
    output: Annotated[
        str,
        typer.Option(help="pipeline or unet (LoRA fused), or lora; auto is pipeline or lora.", rich_help_panel=_OUTPUT),
    ] = _D.output,
    kohya: Annotated[
        bool, typer.Option("--kohya/--no-kohya", help="Write the LoRA in kohya's layout too.", rich_help_panel=_OUTPUT)
    ] = _D.kohya,
    push_to_hub: Annotated[
        Optional[str], typer.Option(help="Repository to upload the result to.", rich_help_panel=_OUTPUT)
    ] = _D.push_to_hub,
    mixed_precision: Annotated[
        str, typer.Option(help="no, fp16 or bf16.", rich_help_panel=_MACHINE)
    ] = _D.mixed_precision,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory, more time.",
            rich_help_panel=_MACHINE,
        ),
    ] = _D.gradient_checkpointing,
    allow_tf32: Annotated[
        bool,
        typer.Option(
            "--allow-tf32/--no-allow-tf32", help="Faster float32 on Ampere and later.", rich_help_panel=_MACHINE
        ),
    ] = _D.allow_tf32,
    cpu: Annotated[
        bool,
        typer.Option("--cpu/--no-cpu", help="Train on the CPU even where there is a GPU.", rich_help_panel=_MACHINE),
    ] = _D.cpu,
    revision: Annotated[Optional[str], typer.Option(help="Of a hub id.", rich_help_panel=_RUN)] = _D.revision,
    vae: Annotated[
        Optional[str], typer.Option(help="A VAE to encode with instead of the model's.", rich_help_panel=_RUN)
    ] = _D.vae,
    unet_init: Annotated[
        Optional[str],
        typer.Option(help="A U-Net to begin from instead of the model's; the reference too.", rich_help_panel=_RUN),
    ] = _D.unet_init,
    checkpointing_steps: Annotated[int, typer.Option(rich_help_panel=_RUN)] = _D.checkpointing_steps,
    checkpoints_total_limit: Annotated[int, typer.Option(rich_help_panel=_RUN)] = _D.checkpoints_total_limit,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a finished run.", rich_help_panel=_RUN)] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the run in the folder, once the new one stands.", rich_help_panel=_RUN
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Tune a model on the labels of a store. The same command goes on with an interrupted run.

    Example: prefloop train --labels pickscore --output-dir tuned --where "margin > 0.1"
    """
    settings = _settings(context, config)
    # what can be wrong in the store or in names is found before anything slow is imported
    from ..core.signals import StopSignal
    from ..models.resolve import find_model
    from .pairs import select_pairs
    from .run_folder.kept_pairs import has_pairs
    from .run_folder.place import refuse_both, refuse_place

    refuse_both(resume, overwrite)
    stop = StopSignal()
    with nullcontext() if dry_run else stop.listening():
        opened = PairStore.open(store)
        refuse_place(settings, opened.path, find_model(settings.model, settings.revision))
        if dry_run or overwrite or not has_pairs(Path(settings.output_dir), settings):
            select_pairs(opened, settings)
        if dry_run:
            from .cost.dry_run import dry_run as estimated

            text, values = estimated(settings, opened)
            say(json.dumps(values) if as_json else text)
            return
        stop.check("nothing was trained yet")
        from .distributed import is_main
        from .trainer import train as run_training

        summary = run_training(settings, opened, resume=resume, overwrite=overwrite, stop=stop)
    if not is_main():
        return
    say(json.dumps(summary) if as_json else _told(summary))
    if settings.push_to_hub is not None:
        _pushed(settings.output_dir, settings.push_to_hub, private=False)


def card(
    folder: Annotated[Path, typer.Argument(help="Result of train.")],
    store: StoreOption = DEFAULT,
    push_to_hub: Annotated[Optional[str], typer.Option(help="Upload it to this repository then.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Write the model card of a result anew, with the win rates that eval has found since.

    Example: prefloop card tuned
    """
    opened = PairStore.open(store)
    from .export.result import write_card

    n = write_card(folder, opened)
    say(f"{folder / 'README.md'} tells of {n} evaluation{'' if n == 1 else 's'}")
    if push_to_hub is not None:
        _pushed(str(folder), push_to_hub, private)


def _pushed(folder: str, repository: str, private: bool) -> None:
    from .export.hub import push

    say(push(Path(folder), repository, private=private), err=True)


def _settings(context: typer.Context, file: str | None) -> TrainConfig:
    """The file's settings, under those given on the command line."""
    from .recipes import read_settings

    chosen: dict[str, Any] = read_settings(file) if file is not None else {}
    for name in (field.name for field in fields(TrainConfig)):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            chosen[name] = context.params[name]
    chosen["labels"] = tuple(chosen.get("labels") or ())
    if not chosen.get("output_dir"):
        raise UsageError("name a folder for the result with --output-dir")
    return TrainConfig(**chosen)


def _told(summary: dict) -> str:
    looked = summary["validation"]
    held = ""
    if looked.get("implicit_accuracy") is not None:
        held = (
            f"; implicit accuracy on held-out pairs {looked['implicit_accuracy']:.3f} "
            f"({looked['low']:.3f} to {looked['high']:.3f}, n={looked['n_pairs']})"
        )
    beta = ""
    if summary["beta_mean"] is not None:
        beta = f", beta {summary['beta_mean']:g} per element mean = {summary['beta_sum']:.4g} per sum"
    lines = [f"{summary['steps']} steps on {summary['n_pairs']} pairs{beta}{held}"]
    lines += [f"{found['name']}: {found['reason']}. {found['lever']}" for found in summary["verdicts"]]
    return "\n".join([*lines, f"the model is in {summary['output_dir']}; training.png shows how it went"])
