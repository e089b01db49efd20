"""What a model is compared with, and how both draw: decided before anything is drawn."""

from dataclasses import fields, replace

from ..generate.defaults import FROM_A_RUN, resolve_defaults
from ..models.families import PipelineTraits, traits_of
from ..models.model import Model
from ..models.resolve import find_model
from ..store import PairStore, UsageError
from .config import EvalConfig

_WORDS = {
    "name": "kind",
    "pipeline_class": "pipeline",
    "latent_channels": "number of latent channels",
    "side": "side in pixels",
    "text_encoders": "text encoders",
}


def baseline(config: EvalConfig, tuned: Model) -> Model:
    """The model that is asked for, or the one that the tuned model was trained on.

    Raises:
        UsageError: where neither is known, or it is the tuned model itself.
    """
    found = tuned.trained_on if config.baseline is None else find_model(config.baseline)
    if found is None:
        raise UsageError(
            f"what {tuned.name} was trained on is not known; name the model to compare it with: --baseline"
        )
    if found.model_id == tuned.model_id:
        raise UsageError(f"{tuned.name} and {found.name} are the same model; name the tuned one with --model")
    return found


def decided(config: EvalConfig, base: Model, tuned: Model, store: PairStore) -> EvalConfig:
    """The config with nothing left open: both models draw the same prompts with the settings that suit the tuned one.

    Raises:
        UsageError: where the models are of two kinds, so that no settings and no noise would suit both.
    """
    one, other = traits_of(tuned), traits_of(base)
    for field in fields(PipelineTraits):
        if field.name == "side" and config.resolution is not None:
            continue
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if mine != its:
            raise UsageError(
                f"{tuned.name} and {base.name} cannot be compared: they differ in {_WORDS[field.name]}, {_text(mine)} "
                f"against {_text(its)}; name a model of the same kind with --baseline"
            )
    drawing = resolve_defaults(config.drawing(tuned.name), tuned, store, built_in_prompts="shapes-heldout")
    return replace(
        config,
        baseline=base.name,
        prompts=drawing.prompts,
        **{name: getattr(drawing, name) for name in FROM_A_RUN},
    )


def _text(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
