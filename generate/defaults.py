"""The settings and prompts that suit a model, for whatever the user leaves open. The only place that knows them."""

import json
from dataclasses import replace
from itertools import islice
from typing import Any

from ..core.errors import UsageError
from ..core.text import plural
from ..models.families import known_family, traits_of
from ..models.model import Model, built_in_base, training_chain
from ..store import PairStore
from .config import GenerateConfig

USUAL_BUILT_IN = {"shapes": (10, 2.5), "shapes-flow": (8, 1.5)}
"""Built-in model → steps and guidance scale."""
FROM_A_RUN = ("num_inference_steps", "guidance_scale", "resolution", "scheduler")


def describe_sampling(config: GenerateConfig) -> str:
    """The sampling settings in words, such as "10 steps, guidance 2.5". Steps and guidance scale must have been resolved."""
    assert config.num_inference_steps is not None
    assert config.guidance_scale is not None
    words = [plural(config.num_inference_steps, "step"), f"guidance {config.guidance_scale:g}"]
    words += [f"{config.resolution} pixels"] * (config.resolution is not None)
    return ", ".join([*words, *filter(None, [config.scheduler])])


def resolve_defaults(
    config: GenerateConfig, model: Model, store: PairStore | None, built_in_prompts: str = "shapes"
) -> GenerateConfig:
    """The config with prompts, steps and guidance scale filled in.

    What the user gives comes first; then the settings of the images that the model was trained on, if the store holds them;
    then what is usual for its kind of model.

    Raises:
        UsageError: if prompts must be named, or the model does not generate images from prompts alone.
    """
    if config.prompts is None:
        if built_in_base(model) is None:
            raise UsageError(f"name the prompts with --prompts: the built-in ones do not suit {model.name}")
        config = replace(config, prompts=built_in_prompts)
    requested = {name: getattr(config, name) for name in FROM_A_RUN}
    if None not in requested.values():
        return config
    trained = (None if store is None else training_sampling(model, store)) or {}
    resolved: dict[str, Any] = {
        name: trained.get(name) if value is None else value for name, value in requested.items()
    }
    if resolved["num_inference_steps"] is None or resolved["guidance_scale"] is None:
        steps, guidance = usual_settings(model)
        resolved["num_inference_steps"] = resolved["num_inference_steps"] or steps
        resolved["guidance_scale"] = guidance if resolved["guidance_scale"] is None else resolved["guidance_scale"]
    return replace(config, **resolved)


def training_sampling(model: Model, store: PairStore) -> dict[str, Any] | None:
    """The sampling settings of most of the images that a result was trained on; None if the store does not have them."""
    labels = (model.trained_with or {}).get("labelers")
    before = next(islice(training_chain(model), 1, None), None)
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


def usual_settings(model: Model) -> tuple[int, float]:
    """Steps and guidance scale that are usual for its kind of model, or else the defaults of the pipeline itself.

    Raises:
        UsageError: if neither is known.
    """
    if (built_in := built_in_base(model)) is not None:
        return USUAL_BUILT_IN[built_in]
    traits, family = traits_of(model), known_family(model)
    if family is not None:
        return family.usual
    from ..models.text_to_image import own_defaults

    own = own_defaults(traits.pipeline_class)
    if own is None:
        raise UsageError(
            f"what is usual for a {traits.pipeline_class} is not known; give --num-inference-steps and --guidance-scale"
        )
    return own
