"""`prefloop train`."""

import json
from typing import Annotated, Optional

import typer

from ..store.cli import DEFAULT, StoreOption
from ..store.pairstore import PairStore
from .config import TrainConfig

_OPTIMIZER = "Optimizer"
_DATA = "Data"
_MACHINE = "Machine"
_RUN = "Run"


def train(
    labels: Annotated[list[str], typer.Option(help="Labeler whose choices are learned; give it again for several.")],
    output_dir: Annotated[str, typer.Option(help="Folder of the result and its checkpoints.")],
    model: Annotated[str, typer.Option(help="shapes (built in), a folder, or a hub id.")] = TrainConfig.model,
    store: StoreOption = DEFAULT,
    where: Annotated[
        Optional[str], typer.Option(help='SQL condition over preferences, such as "margin > 0.1".')
    ] = TrainConfig.where,
    loss: Annotated[str, typer.Option(help="dpo or sft.")] = TrainConfig.loss,
    beta_dpo: Annotated[
        float, typer.Option(help="Pull towards the reference; times a per-element mean (SD 1.5: 2000 to 5000).")
    ] = TrainConfig.beta_dpo,
    lora_rank: Annotated[int, typer.Option(help="Rank of a LoRA; 0 tunes every weight.")] = TrainConfig.lora_rank,
    lora_alpha: Annotated[Optional[float], typer.Option(help="The rank if not given.")] = TrainConfig.lora_alpha,
    learning_rate: Annotated[
        float, typer.Option(help="For the built-in world; SD 1.5: 1e-5 (LoRA).", rich_help_panel=_OPTIMIZER)
    ] = TrainConfig.learning_rate,
    lr_scheduler: Annotated[str, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.lr_scheduler,
    lr_warmup_steps: Annotated[int, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.lr_warmup_steps,
    max_train_steps: Annotated[
        int, typer.Option(help="Optimizer steps.", rich_help_panel=_OPTIMIZER)
    ] = TrainConfig.max_train_steps,
    train_batch_size: Annotated[
        int, typer.Option(help="Pairs per device and pass.", rich_help_panel=_OPTIMIZER)
    ] = TrainConfig.train_batch_size,
    gradient_accumulation_steps: Annotated[
        int, typer.Option(help="Passes per optimizer step.", rich_help_panel=_OPTIMIZER)
    ] = TrainConfig.gradient_accumulation_steps,
    adam_beta1: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.adam_beta1,
    adam_beta2: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.adam_beta2,
    adam_weight_decay: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.adam_weight_decay,
    adam_epsilon: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.adam_epsilon,
    max_grad_norm: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZER)] = TrainConfig.max_grad_norm,
    proportion_empty_prompts: Annotated[
        float, typer.Option(help="Share of pairs that are learned without prompt.", rich_help_panel=_DATA)
    ] = TrainConfig.proportion_empty_prompts,
    random_flip: Annotated[
        bool, typer.Option("--random-flip", help="Mirror half of the pairs, both images alike.", rich_help_panel=_DATA)
    ] = TrainConfig.random_flip,
    resolution: Annotated[
        Optional[int], typer.Option(help="Side in pixels; the model's own if not given.", rich_help_panel=_DATA)
    ] = TrainConfig.resolution,
    noise_offset: Annotated[float, typer.Option(rich_help_panel=_DATA)] = TrainConfig.noise_offset,
    input_perturbation: Annotated[float, typer.Option(rich_help_panel=_DATA)] = TrainConfig.input_perturbation,
    seed: Annotated[int, typer.Option(rich_help_panel=_DATA)] = TrainConfig.seed,
    mixed_precision: Annotated[
        str, typer.Option(help="no, fp16 or bf16.", rich_help_panel=_MACHINE)
    ] = TrainConfig.mixed_precision,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=_MACHINE)
    ] = TrainConfig.gradient_checkpointing,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Train on the CPU even where there is a GPU.", rich_help_panel=_MACHINE)
    ] = False,
    checkpointing_steps: Annotated[int, typer.Option(rich_help_panel=_RUN)] = TrainConfig.checkpointing_steps,
    checkpoints_total_limit: Annotated[int, typer.Option(rich_help_panel=_RUN)] = TrainConfig.checkpoints_total_limit,
    validation_steps: Annotated[
        int, typer.Option(help="Steps between looks at the held-out pairs.", rich_help_panel=_RUN)
    ] = TrainConfig.validation_steps,
    report_to: Annotated[
        Optional[str], typer.Option(help="tensorboard, wandb or trackio.", rich_help_panel=_RUN)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a finished run.", rich_help_panel=_RUN)] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Empty the folder and begin anew.", rich_help_panel=_RUN)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Tune a model on the labels of a store. The same command goes on with an interrupted run.

    Example: prefloop train --labels pickscore --output-dir tuned --where "margin > 0.1"
    """
    config = TrainConfig(
        output_dir=output_dir,
        labels=tuple(labels),
        model=model,
        where=where,
        loss=loss,  # type: ignore[arg-type]  # checked by the config
        beta_dpo=beta_dpo,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        learning_rate=learning_rate,
        lr_scheduler=lr_scheduler,
        lr_warmup_steps=lr_warmup_steps,
        train_batch_size=train_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_train_steps=max_train_steps,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        adam_weight_decay=adam_weight_decay,
        adam_epsilon=adam_epsilon,
        max_grad_norm=max_grad_norm,
        mixed_precision=mixed_precision,  # type: ignore[arg-type]  # checked by the config
        gradient_checkpointing=gradient_checkpointing,
        resolution=resolution,
        random_flip=random_flip,
        proportion_empty_prompts=proportion_empty_prompts,
        noise_offset=noise_offset,
        input_perturbation=input_perturbation,
        seed=seed,
        checkpointing_steps=checkpointing_steps,
        checkpoints_total_limit=checkpoints_total_limit,
        validation_steps=validation_steps,
        report_to=report_to,
        cpu=cpu,
    )
    # what can be wrong in the store or in names is found before anything slow is imported
    from ..store.models import find_model
    from .pairs import select_pairs

    opened = PairStore.open(store)
    find_model(config.model)
    select_pairs(opened, config)
    from .loop import train as run_training

    summary = run_training(config, opened, resume=resume, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    held = summary["validation"].get("implicit_accuracy")
    typer.echo(
        f"{summary['steps']} steps on {summary['n_pairs']} pairs, beta {summary['beta_mean']:g} per element mean = "
        f"{summary['beta_sum']:.4g} per sum"
        + (
            f"; implicit accuracy on held-out pairs {held:.3f} (n={summary['validation']['n_pairs']})"
            if held is not None
            else ""
        )
        + f"; the model is in {summary['output_dir']}"
    )
