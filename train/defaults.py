"""Learning rate, beta, batch size and so on that suit a model, for whatever the user leaves open. The only place that knows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import UsageError
from ..models.families import supported_family
from ..models.model import Model, built_in_base
from ..models.names import BUILT_IN
from ..models.resolve import find_model
from .config import NEEDED, TrainConfig
from .methods import METHODS
from .recipes import merge_settings, read_settings

DECIDED = (
    *(*NEEDED, "loss", "beta", "lr_scheduler", "optimizer", "proportion_empty_prompts", "allow_tf32"),
    *("dataloader_num_workers", "checkpointing_steps"),
)
"""What every recipe decides. Where all of it is given, as by naming a recipe, the model is not asked for its own."""
_OF_ONE_MODEL = ("vae", "resolution")  # a recipe's, for the very model that it names; another may have its own
_WORDS = {
    "learning_rate": "learning rate {}",
    "beta": "beta {}",
    "lora_rank": "LoRA rank {}",
    "train_batch_size": "batch size {}",
    "gradient_accumulation_steps": "gradient accumulation {}",
    "max_train_steps": "steps {}",
    "lr_warmup_steps": "warm-up steps {}",
    "mixed_precision": "mixed precision {}",
    "optimizer": "optimizer {}",
    "resolution": "resolution {}",
    "vae": "VAE {}",
}
DEFAULTS = "the built-in model's defaults"
COMMAND_LINE = "the command line"


@dataclass(frozen=True)
class Resolved:
    settings: dict[str, Any]
    """Arguments of TrainConfig."""
    recipe: str | None = None
    """The model's own recipe, if it was needed."""
    from_recipe: frozenset[str] = frozenset()
    """Names of the settings that it decided."""


def resolve_settings(settings: Mapping[str, Any]) -> Resolved:
    """The settings, completed by those of the recipe for the model's family. Built-in models and what was trained on them have
    the defaults of TrainConfig.

    Raises:
        UsageError: if the model has none, or one for a LoRA only, and the settings leave open what it would decide.
        PrefloopError: if the model does not exist, or its settings cannot be read or fetched.
    """
    name = settings.get("model", TrainConfig.model)
    if name in BUILT_IN or all(setting in settings for setting in DECIDED):
        return Resolved(dict(settings))
    model = find_model(name, settings.get("revision"))
    if built_in_base(model) is not None:
        return Resolved(dict(settings))
    recipe = supported_family(model).recipe
    if recipe is None:
        _refuse_open(settings, model)
        return Resolved(dict(settings))
    if settings.get("lora_rank") == 0 and "learning_rate" not in settings:
        raise UsageError(
            f"lora-rank 0 trains every weight of {name}, and its recipe, {recipe}, is for a LoRA: give --learning-rate too, or "
            "another recipe with --config; `prefloop train --recipes` lists them"
        )
    own = read_settings(recipe)
    if own.pop("model") != model.source:
        own = {setting: value for setting, value in own.items() if setting not in _OF_ONE_MODEL}
    merged = merge_settings(own, settings)
    return Resolved(merged, recipe, frozenset(merged.keys() - settings.keys()))


def _refuse_open(settings: Mapping[str, Any], model: Model) -> None:
    method = METHODS.get(settings.get("loss", TrainConfig.loss))
    # the others have the beta of their paper, whatever the model
    depends_on_latents = method is not None and method.beta == METHODS["dpo"].beta
    needed = (*NEEDED, *["beta"] * depends_on_latents)
    missing = [f"--{setting.replace('_', '-')}" for setting in needed if setting not in settings]
    if missing:
        raise UsageError(
            f"{model.name} has no recipe of its own ({supported_family(model).name}): give {', '.join(missing)}, or name one of "
            "`prefloop train --recipes` with --config"
        )


def sources(resolved: Resolved, given: Mapping[str, Any], file: str | None) -> dict[str, str]:
    """Where each setting that is worth showing comes from.

    Args:
        given: settings of the command line.
        file: what --config names.
    """
    loss, found = resolved.settings.get("loss", TrainConfig.loss), {}
    for name in _WORDS:
        if name in resolved.from_recipe:
            found[name] = f"the recipe {resolved.recipe}"
        elif name in given:
            found[name] = COMMAND_LINE
        elif name in resolved.settings:
            found[name] = f"--config {file}"
        elif name == "beta":
            if METHODS[loss].beta is not None:
                found[name] = f"the loss {loss}"
        elif name in NEEDED:
            found[name] = DEFAULTS
    return found


def describe_sources(config: TrainConfig, origins: Mapping[str, str], cure: str = "--learning-rate") -> list[str]:
    """A line for each source, such as "learning rate 1e-5, beta 5000 from the recipe sd15-lora; --learning-rate changes it".

    Args:
        origins: from `sources`.
        cure: how the first setting is changed.
    """
    values, groups = config.resolved(), dict[str, list[str]]()
    for name, origin in origins.items():
        groups.setdefault(origin, []).append(_word(name, values[name]))
    return [
        f"{', '.join(words)} from {origin}"
        + (f"; {cure} and so on change them" if origin.startswith("the recipe") else "")
        for origin, words in groups.items()
    ]


def _word(name: str, value: Any) -> str:
    if name == "mixed_precision" and value == "no":
        return "precision float32"
    return _WORDS[name].format(_short(value))


def _short(value: Any) -> str:
    """1e-5, not 1e-05."""
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
