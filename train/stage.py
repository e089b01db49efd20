"""The training stage: from labelled pairs in the store to a folder that diffusers loads."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from safetensors import SafetensorError

from ..core.errors import cannot_write, is_full
from ..core.signals import StopSignal
from ..models.families import family_of
from ..models.parts import with_parts
from ..models.resolve import find_model
from ..store import PairStore, PrefloopError
from ..store.runs import Run, run
from .automatic import with_choices
from .checkpoint import write_error
from .config import TrainConfig
from .distributed import on_cpu, refuse_unshared
from .layer_checks import refuse_unfit
from .preflight import refuse_impossible, refuse_unsuitable
from .ranks import Ranks, is_lost_process, lost_process
from .resources import checkpoint_bytes, out_of_memory
from .run_folder.claim import claim_folder
from .run_folder.location import refuse_overlap, refuse_resume_with_overwrite
from .run_folder.saved_pairs import Selection
from .sharding_checks import refuse_one_process
from .trainer import Trainer


def train(
    config: TrainConfig,
    store: PairStore,
    *,
    selection: Selection | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stop: StopSignal | None = None,
    about: Sequence[str] = (),
) -> dict:
    """Tune a model on the labels of a store.

    The same call continues an interrupted run, on the pairs it began with. `output_dir` gets the result: the whole pipeline,
    its U-Net, or a LoRA. `prefloop.json` records what it was made from; `metrics.csv` and `validation.csv` record the run.

    Args:
        selection: what `select_for_run` gives for these settings, if it was called already.
        resume: continue a finished run up to a larger max_train_steps.
        overwrite: start over in a folder that holds a run; the old run stays until the new one has a checkpoint.
        stop: a signal handler that was installed before this call.
        about: lines to print before the first step, such as where the settings come from.

    Returns:
        n_pairs, steps, loss, implicit_accuracy, validation (its last row for all timesteps), output_dir, beta_mean, beta_sum,
        beta_for_dpo_weight_0_2 (see monitor/beta_probe.py), diagnoses.

    Raises:
        UsageError: if the folder holds a finished run, a run with other settings, or something else, or if the run reads from
            it; or if the settings cannot run on this machine.
        NumericalError: if a loss or gradient is not finite; nothing is written in that case.
        PrefloopError: if memory or disk space runs out, a package is not installed, or the hub refuses the result.
    """
    refuse_resume_with_overwrite(resume, overwrite)
    output = Path(config.output_dir)
    refuse_impossible(config)
    with (stop or StopSignal()).listening() as stop, ExitStack() as held:
        model = with_parts(find_model(config.model, config.revision), config.init_from, config.vae)
        family = family_of(model)
        refuse_unsuitable(config, family)
        refuse_overlap(config, store.path, model)
        refuse_unfit(config, family, model)
        stop.check("nothing was trained yet")
        AcceleratorState._reset_state()  # otherwise a second run in a process keeps the first one's precision
        tracker: dict[str, Any] = (
            {"log_with": config.report_to, "project_dir": str(output / "logs")} if config.report_to else {}
        )
        distributed = DistributedDataParallelKwargs(find_unused_parameters=family.has_unused_weights)
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=on_cpu(config.on_cpu),
            kwargs_handlers=[distributed, InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))],
            **tracker,
        )
        ranks = Ranks.of(accelerator)
        main = ranks.is_main
        refuse_one_process(config, ranks.world)
        ranks.on_main(
            lambda: held.enter_context(
                claim_folder(output, config, resume, overwrite, checkpoint_bytes(config, model))
            ),
        )
        refuse_unshared(output, "the output folder", ranks)
        refuse_unshared(store.path / "cache", "the store's folder", ranks)
        config = with_choices(config, family, accelerator.device, ranks)
        if main:
            for line in about:
                print(line, file=sys.stderr)
        settings = config.resolved() | {"output_dir": str(output.absolute())}  # `browse` looks there from any folder
        # one row for the run, however many processes train
        with run(store, "train", settings) if main else nullcontext(Run(uuid4(), "train", {})) as record:
            try:
                trainer = Trainer(config, store, stop, accelerator, model, overwrite, selection)
                record.summary |= trainer.train(str(record.run_id))
            except torch.OutOfMemoryError as error:
                raise PrefloopError(out_of_memory(config)) from error
            except (OSError, RuntimeError, SafetensorError) as error:
                if ranks.world > 1 and is_lost_process(error):
                    raise lost_process(error) from error
                if (cause := write_error(error)) is None or not is_full(cause):
                    raise
                raise cannot_write(output, cause) from error
    return record.summary
