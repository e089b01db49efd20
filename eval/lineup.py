"""Which models are compared with which, and the settings all use: resolved before anything is generated."""

from dataclasses import dataclass, fields, replace
from itertools import combinations
from uuid import UUID

from ..generate.defaults import FROM_A_RUN, resolve_defaults, training_chain
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


@dataclass(frozen=True)
class Lineup:
    names: list[str]
    """Of the models: those named, in their order, then the baselines that are not among them."""
    ids: list[UUID]
    comparisons: list[tuple[int, int]]
    """Tuned model and baseline, as indices: first each named model against its baseline, then, unless they are the
    checkpoints of one run, every other two."""
    baselines: dict[int, int]
    """Named model → baseline, of those that have one."""


def find_lineup(config: EvalConfig) -> tuple[list[Model], Lineup]:
    """The models named with --model, and the one named with --baseline or those that they were trained on.

    Raises:
        UsageError: if two of them are the same, or there is nothing to compare a model with.
    """
    models = [find_model(name) for name in config.models]
    for first, second in combinations(models, 2):
        if first.model_id == second.model_id:
            raise UsageError(f"{first.name} and {second.name} are the same model; name it once")
    n_named, named_baseline = len(models), None if config.baseline is None else find_model(config.baseline)
    baselines: dict[int, int] = {}
    for tuned, model in enumerate(models[:n_named]):
        base = named_baseline or model.trained_on
        if base is not None and base.model_id == model.model_id:
            if n_named == 1:
                raise UsageError(f"{model.name} and {base.name} are the same model; name the tuned one with --model")
            continue
        if base is None:
            if n_named == 1:
                raise UsageError(
                    f"what {model.name} was trained on is not known; name the model to compare it with: --baseline"
                )
            continue
        if (place := _place(models, base.model_id)) is None:
            place = len(models)
            models.append(base)
        baselines[tuned] = place
    comparisons = [(tuned, base) for tuned, base in baselines.items() if (base, tuned) not in baselines.items()]
    if comparisons == [(1, 0)] and len(models) == 2:  # the baseline was named first
        models.reverse()
        comparisons, baselines = [(0, 1)], {0: 1}
    compared = {frozenset(pair) for pair in comparisons}
    for first, second in combinations(range(len(models)), 2):
        if config.sweep is None and frozenset((first, second)) not in compared:
            trained_on_second = models[first].model_id in {link.model_id for link in training_chain(models[second])}
            comparisons.append((second, first) if trained_on_second else (first, second))
    names, ids = [model.name for model in models], [model.model_id for model in models]
    return models, Lineup(names, ids, comparisons, baselines)


def _place(models: list[Model], identity: UUID) -> int | None:
    return next((place for place, model in enumerate(models) if model.model_id == identity), None)


def resolve_settings(config: EvalConfig, models: list[Model], store: PairStore | None) -> EvalConfig:
    """The config with every default filled in: all models use the prompts and settings that suit the first.

    Raises:
        UsageError: if two models are of different kinds, so that no settings and no noise suit both.
    """
    first, *others = models
    kind = traits_of(first)
    for other in others:
        other_kind = traits_of(other)
        for field in fields(PipelineTraits):
            if field.name == "side" and config.resolution is not None:
                continue
            value, other_value = getattr(kind, field.name), getattr(other_kind, field.name)
            if value != other_value:
                raise UsageError(
                    f"{first.name} and {other.name} cannot be compared: they differ in {_WORDS[field.name]}, "
                    f"{_text(value)} against {_text(other_value)}; name models of the same kind"
                )
    settings = resolve_defaults(config.generate_config(first.name), first, store, built_in_prompts="shapes-heldout")
    return replace(config, prompts=settings.prompts, **{name: getattr(settings, name) for name in FROM_A_RUN})


def _text(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
