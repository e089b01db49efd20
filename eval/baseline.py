"""What a model is compared with, and the settings both use: resolved before anything is generated."""

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


def find_baseline(config: EvalConfig, tuned: Model) -> Model:
    """The model named with --baseline, or the one that the tuned model was trained on.

    Raises:
        UsageError: if neither is known, or it is the tuned model itself.
    """
    base = tuned.trained_on if config.baseline is None else find_model(config.baseline)
    if base is None:
        raise UsageError(
            f"what {tuned.name} was trained on is not known; name the model to compare it with: --baseline"
        )
    if base.model_id == tuned.model_id:
        raise UsageError(f"{tuned.name} and {base.name} are the same model; name the tuned one with --model")
    return base


def resolve_settings(config: EvalConfig, base: Model, tuned: Model, store: PairStore) -> EvalConfig:
    """The config with every default filled in: both models use the prompts and settings that suit the tuned one.

    Raises:
        UsageError: if the models are of different kinds, so that no settings and no noise suit both.
    """
    tuned_kind, base_kind = traits_of(tuned), traits_of(base)
    for field in fields(PipelineTraits):
        if field.name == "side" and config.resolution is not None:
            continue
        tuned_value, base_value = getattr(tuned_kind, field.name), getattr(base_kind, field.name)
        if tuned_value != base_value:
            raise UsageError(
                f"{tuned.name} and {base.name} cannot be compared: they differ in {_WORDS[field.name]}, "
                f"{_text(tuned_value)} against {_text(base_value)}; name a model of the same kind with --baseline"
            )
    settings = resolve_defaults(config.generate_config(tuned.name), tuned, store, built_in_prompts="shapes-heldout")
    return replace(
        config,
        baseline=base.name,
        prompts=settings.prompts,
        **{name: getattr(settings, name) for name in FROM_A_RUN},
    )


def _text(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
