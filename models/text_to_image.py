"""Which pipelines of diffusers generate images from prompts alone, and how to call them for that and nothing more."""

import copy
import inspect
from typing import Any, cast

import diffusers
from diffusers import DiffusionPipeline

from ..core.errors import PrefloopError, UsageError
from .families import Family

REWRITING = ("caption_upsample_temperature", "prompt_enhancer")
"""Arguments with which a pipeline lets a language model rewrite the prompt; None is off."""
OTHER_INPUTS = ("image", "video", "num_frames", "audio_length_in_s", "control_image")


def pipeline_class(name: str) -> Any:
    """The class of diffusers by its name.

    Raises:
        UsageError: if there is none with that name, or it needs more than prompts.
    """
    kind = getattr(diffusers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)):
        raise UsageError(f"diffusers {diffusers.__version__} has no pipeline {name}")
    parameters = inspect.signature(kind.__call__).parameters
    if not {"prompt", "num_inference_steps"} <= parameters.keys() or (
        any(word in parameters for word in OTHER_INPUTS) and not _is_text_to_image(kind)
    ):
        raise UsageError(f"a {name} does not generate images from prompts alone")
    return kind


def _is_text_to_image(kind: Any) -> bool:
    """Whether a pipeline that takes images or more also generates from prompts alone."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING  # hundreds of modules

    return kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() and "Control" not in kind.__name__


def own_defaults(name: str) -> tuple[int, float] | None:
    """Steps and guidance scale that a pipeline uses by default; None if it has no defaults."""
    parameters = inspect.signature(pipeline_class(name).__call__).parameters
    steps, guidance = (
        parameters[word].default if word in parameters else None for word in ("num_inference_steps", "guidance_scale")
    )
    return (steps, float(guidance)) if isinstance(steps, int) and isinstance(guidance, int | float) else None


def without_filters(kind: Any) -> dict[str, Any]:
    """Arguments for `from_pretrained` that disable what would change an image after it is generated.

    A safety checker blacks images out, and black ones would become candidates; SDXL's watermark depends on what else is
    installed, so images would differ between machines.
    """
    parameters = inspect.signature(kind.__init__).parameters
    arguments: dict[str, Any] = {"add_watermarker": False} if "add_watermarker" in parameters else {}
    if "safety_checker" in parameters:
        arguments |= {"safety_checker": None, "requires_safety_checker": False}
        arguments |= {"feature_extractor": None} if "feature_extractor" in parameters else {}
    return arguments


def set_scheduler(pipeline: Any, name: str | None, steps: int) -> None:
    """Replace the noise scheduler by another class of diffusers, on the model's own noise schedule.

    Raises:
        UsageError: if the class does not exist or does not fit the model.
    """
    if name is None:
        return
    kind: Any = getattr(diffusers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UsageError(f"diffusers has no scheduler {name!r}")
    own, scheduler_class = pipeline.scheduler, cast("Any", kind)  # pyright does not see that a scheduler has a config
    try:
        scheduler = scheduler_class.from_config(own.config)
        copy.deepcopy(scheduler).set_timesteps(steps, **_any_shift(scheduler))
    except Exception as error:  # a class made for other models may raise anything
        raise UsageError(f"{_does_not_fit(name, pipeline)}: {first_line(error)}") from error
    missing = [
        word
        for word in ("scale_model_input", "init_noise_sigma")
        if hasattr(own, word) and not hasattr(scheduler, word)
    ]
    if missing:
        raise UsageError(f"{_does_not_fit(name, pipeline)}: it has no {' and no '.join(missing)}")
    if _is_flow(own) != _is_flow(scheduler):
        kinds = ("flow matching", "diffusion") if _is_flow(own) else ("diffusion", "flow matching")
        raise UsageError(
            f"{_does_not_fit(name, pipeline)}: the model was trained by {kinds[0]}, and it is for {kinds[1]}"
        )
    pipeline.scheduler = scheduler


def _is_flow(scheduler: Any) -> bool:
    """Whether a noise scheduler is for models trained by flow matching."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def _any_shift(scheduler: Any) -> dict[str, float]:
    """The argument without which a schedule that is shifted by the image's size cannot be made."""
    shifted = scheduler.config.get("use_dynamic_shifting")
    return {"mu": 1.0} if shifted and "mu" in inspect.signature(scheduler.set_timesteps).parameters else {}


def _does_not_fit(name: str, pipeline: Any) -> str:
    return f"the scheduler {name} does not fit a {type(pipeline).__name__} with {type(pipeline.scheduler).__name__}"


def call_arguments(
    kind: Any, family: Family | None, guidance_scale: float, negative_prompt: str | None
) -> dict[str, Any]:
    """How guidance and a negative prompt go into the `__call__` of a pipeline's class, beside what the family always gives.

    Whatever would rewrite prompts is off.

    Raises:
        UsageError: if the pipeline takes no negative prompt, or takes it without using it.
    """
    parameters = inspect.signature(kind.__call__).parameters
    guidance = "guidance_scale" if family is None else family.guidance_argument
    # where guidance is an input of the model, this scale is that of negative prompts, and by default it disables them
    disabled = (
        guidance != "true_cfg_scale" and "true_cfg_scale" in parameters and parameters["true_cfg_scale"].default <= 1
    )
    arguments: dict[str, Any] = {} if family is None else dict(family.call_settings)
    if guidance in parameters:
        arguments[guidance] = guidance_scale
    if negative_prompt is None and family is not None and guidance_scale > 1:
        negative_prompt = family.negative_prompt or None
    if negative_prompt is not None:
        if "negative_prompt" not in parameters or disabled:
            raise UsageError(f"a {kind.__name__} takes no negative prompt; leave it out")
        arguments["negative_prompt"] = negative_prompt
    return arguments | {name: None for name in REWRITING if name in parameters}


def tokenizer_limits(pipeline: Any, max_sequence_length: int | None = None) -> dict[str, tuple[Any, int]]:
    """Name of each tokenizer of a pipeline → the tokenizer, and how many tokens of a prompt it keeps.

    CLIP's keeps `model_max_length`; of the other text encoders `max_sequence_length` decides.

    Args:
        max_sequence_length: what the pipeline is called with; its default if not given.
    """
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    length = max_sequence_length or (None if parameter is None else parameter.default)
    limits = {}
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        limit = tokenizer.model_max_length
        if isinstance(length, int) and "CLIP" not in type(tokenizer).__name__:
            limit = min(limit, length)
        limits[name] = (tokenizer, limit)
    return limits


def longest_tokenizer(pipeline: Any, max_sequence_length: int | None = None) -> tuple[Any, int] | None:
    """The tokenizer that keeps most of a prompt, and how many tokens it keeps; None if the pipeline has none."""
    limits = tokenizer_limits(pipeline, max_sequence_length)
    return max(limits.values(), key=lambda item: item[1], default=None)


def family_with_sizes(family: Family | None) -> Family | None:
    """The family, checked, if it knows better than the pipeline which sides a model generates.

    None for U-Nets, whose pipelines know, and for a model that can be generated with but not trained.
    """
    if family is None or family.component != "transformer":
        return None
    try:
        return family.checked()
    except PrefloopError:
        return None


def refuse_resolution(pipeline: Any, family: Family | None, resolution: int | None) -> None:
    """
    Raises:
        UsageError: if the model has no latents for images with that side.
    """
    if resolution is None:
        return
    if (sized := family_with_sizes(family)) is not None:
        step = sized.image_multiple
    else:
        step = getattr(pipeline, "vae_scale_factor", 8)
        patch = getattr(getattr(getattr(pipeline, "transformer", None), "config", None), "patch_size", 1)
        step *= patch if isinstance(patch, int) else 1
    if resolution % step:
        raise UsageError(f"resolution must be a multiple of {step} for a {type(pipeline).__name__}, got {resolution}")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
