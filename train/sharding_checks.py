"""What cannot be done with a model that is split over the processes. Imports nothing slow."""

from typing import TYPE_CHECKING

from ..core.errors import UsageError
from .methods import METHODS

if TYPE_CHECKING:
    from .config import TrainConfig


def refuse_unsplittable(config: "TrainConfig") -> None:
    """
    Raises:
        UsageError: if a setting cannot be used together with fsdp.
    """
    if not config.fsdp:
        return
    if config.lora_rank:
        raise UsageError(
            "fsdp splits a model of which every weight is trained; give --lora-rank 0, or leave fsdp out: a LoRA's frozen model takes "
            "2 bytes per weight with --mixed-precision bf16"
        )
    if config.needs_distance:
        what = "anchor" if config.anchor else f"the loss {config.loss}"
        raise UsageError(
            f"{what} compares predictions with the reference's, and fsdp keeps no reference; leave one out"
        )
    if config.reference is not None:
        raise UsageError(
            "reference keeps another whole model on every GPU, and fsdp is for models that do not fit; leave one out"
        )
    if config.needs_reference and not config.reference_draws:
        without = ", ".join(name for name, method in METHODS.items() if not method.needs_reference)
        raise UsageError(
            f"fsdp keeps no reference in memory; give --reference-draws, such as 4, or a loss without a reference ({without})"
        )
    if config.mixed_precision == "fp16":
        raise UsageError("fsdp does not scale the loss as fp16 needs it; give --mixed-precision bf16 or no")
    if config.compile:
        raise UsageError("compile and fsdp have not been tried together; leave one out")
    if config.aspect_buckets:
        raise UsageError(
            "aspect-buckets gives processes different numbers of batches, and a split model runs only in all of them at once; "
            "leave aspect-buckets or fsdp out"
        )


def refuse_optimizer(config: "TrainConfig", name: str) -> None:
    """
    Args:
        name: the optimizer that the settings and the model's family come to.

    Raises:
        UsageError: if its state cannot be split as the weights are.
    """
    if config.fsdp and name != "adamw":
        raise UsageError(
            f"the optimizer {name} keeps statistics of whole weights, which fsdp splits; give --optimizer adamw, or leave fsdp out"
        )


def refuse_one_process(config: "TrainConfig", n_processes: int) -> None:
    """
    Raises:
        UsageError: if there is nothing to split the model over.
    """
    if config.fsdp and n_processes == 1:
        raise UsageError(
            "fsdp splits the model over several processes, and this is the only one; start it with `torchrun --nproc-per-node N -m "
            "prefloop train …` or `accelerate launch --multi_gpu`, or leave fsdp out"
        )
