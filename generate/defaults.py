"""What is not asked for: the settings and prompts that suit a model. The one place that knows them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..core.errors import UsageError
from ..models.kinds import kind_of
from ..models.model import Model
from ..store import PairStore
from .config import GenerateConfig

# Kind of model → its usual number of steps and guidance scale.
USUAL = {"built-in": (10, 2.5), "sd": (25, 7.5), "sdxl": (30, 5.0), "turbo": (4, 0.0)}
FROM_A_RUN = ("num_inference_steps", "guidance_scale", "resolution", "scheduler")


def ancestry(model: Model) -> Iterator[Model]:
    """The model, what it was trained on, and so on as far as that can be found."""
    seen, one = set(), model
    while one is not None and one.model_id not in seen:
        yield one
        seen.add(one.model_id)
        one = one.base if one.kind == "parts" else one.trained_on


def is_built_in(model: Model) -> bool:
    """Whether it is the built-in model or was trained on it."""
    return any(one.built_in for one in ancestry(model))


def described(config: GenerateConfig) -> str:
    """The sampler settings of a settled config in words."""
    assert config.num_inference_steps is not None
    assert config.guidance_scale is not None
    words = [f"{config.num_inference_steps} steps", f"guidance {config.guidance_scale:g}"]
    words += [f"{config.resolution} pixels"] * (config.resolution is not None)
    return ", ".join([*words, *filter(None, [config.scheduler])])


def settled(
    config: GenerateConfig, model: Model, store: PairStore | None, built_in_prompts: str = "shapes"
) -> GenerateConfig:
    """The config with everything decided that was not asked for.

    What is asked for goes first; then what the images were drawn with that the model was trained on, where the store holds
    them; then what is usual for models of its kind.

    Raises:
        UsageError: where prompts must be named, or the model draws no image from a prompt alone.
    """
    if config.prompts is None:
        if not is_built_in(model):
            raise UsageError(f"name the prompts with --prompts: the built-in ones do not suit {model.name}")
        config = replace(config, prompts=built_in_prompts)
    given = {name: getattr(config, name) for name in FROM_A_RUN}
    if None not in given.values():
        return config
    found = (None if store is None else drawn_with(model, store)) or {}
    known: dict[str, Any] = {name: found.get(name) if value is None else value for name, value in given.items()}
    if known["num_inference_steps"] is None or known["guidance_scale"] is None:
        steps, guidance = usual(model)
        known["num_inference_steps"] = known["num_inference_steps"] or steps
        known["guidance_scale"] = guidance if known["guidance_scale"] is None else known["guidance_scale"]
    return replace(config, **known)


def drawn_with(model: Model, store: PairStore) -> dict[str, Any] | None:
    """The sampler settings of the images that a result was trained on, those of most of them; None where they are not here."""
    labels = (model.trained_with or {}).get("labels")
    before = next((one for one in list(ancestry(model))[1:2]), None)
    if not labels or before is None:
        return None
    query = """
        select g.sampling from generations g
        semi join (
            select prompt_id, unnest([chosen, rejected]) as image_id from training_preferences
            where labeler in (select unnest($labels))
        ) t on t.prompt_id = g.prompt_id and t.image_id = g.image_id
        where g.model_id = $model and json_exists(g.sampling, '$.num_inference_steps')
        group by g.sampling order by count(*) desc, g.sampling limit 1"""
    rows = store.rows(query, {"labels": list(map(str, labels)), "model": before.model_id})
    return json.loads(rows[0][0]) if rows else None


def usual(model: Model) -> tuple[int, float]:
    """Steps and guidance scale of models of its kind; of a pipeline that is not in the table, its own.

    Raises:
        UsageError: where neither is known.
    """
    if is_built_in(model):
        return USUAL["built-in"]
    kind = kind_of(model)
    if kind.name in USUAL:
        return USUAL[kind.name]
    from ..models.text_to_image import own_defaults

    own = own_defaults(kind.pipeline_class)
    if own is None:
        raise UsageError(
            f"what is usual for a {kind.pipeline_class} is not known; give --num-inference-steps and --guidance-scale"
        )
    return own
