"""A CLIP of transformers from its settings' known numbers and its tensors; no loader sees the folder itself."""

from pathlib import Path
from typing import Any, Literal

from ...core.errors import IntegrityError
from ...core.progress import quiet_libraries
from . import checkpoints as files
from . import settings as s

_BOTH: dict[str, s.Check] = {
    "hidden_size": s.WIDTH,
    "intermediate_size": s.WIDTH,
    "num_hidden_layers": s.LAYERS,
    "num_attention_heads": s.WIDTH,
    "hidden_act": s.one_of("gelu", "quick_gelu"),
    "layer_norm_eps": s.number,
}
_TEXT = _BOTH | {"vocab_size": s.WORDS, "max_position_embeddings": s.TOKENS, "eos_token_id": s.token}
_VISION = _BOTH | {"image_size": s.PIXELS, "patch_size": s.PIXELS, "num_channels": s.LAYERS, "projection_dim": s.WIDTH}
Part = Literal["text", "vision"]


def clip_settings(path: Path) -> dict[str, Any]:
    """Of a whole CLIP: projection_dim, text_config and vision_config, as far as the file sets them."""
    found = s.read_json(path)
    return {
        **s.known(path, found, {"projection_dim": s.WIDTH}),
        "text_config": _part(path, found, "text_config", _TEXT),
        "vision_config": _part(path, found, "vision_config", _VISION),
    }


def vision_settings(path: Path) -> dict[str, Any]:
    """Of the image tower, in a file of its own or as the part of a whole CLIP's."""
    found = s.read_json(path)
    if isinstance(found.get("vision_config"), dict):
        return s.known(path, found["vision_config"], _VISION, "vision_config")
    return s.known(path, found, _VISION)


def _part(path: Path, found: dict[str, Any], name: str, checks: dict[str, s.Check]) -> dict[str, Any]:
    # files of before 2023 say it twice, and then the section *_dict is the one that counts
    older = found.get(f"{name}_dict")
    return s.known(path, found.get(name, {}) if older is None else older, checks, name)


def load_clip(settings: dict[str, Any], path: Path, dtype: Any) -> Any:
    """The CLIPModel of `clip_settings` with the tensors of a file, on the CPU; every weight must be there."""
    from transformers import CLIPConfig, CLIPModel

    return _loaded(CLIPModel, CLIPConfig, settings, path, dtype)


def load_clip_vision(settings: dict[str, Any], path: Path, dtype: Any) -> Any:
    """The CLIPVisionModelWithProjection of `vision_settings`, in the same way."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return _loaded(CLIPVisionModelWithProjection, CLIPVisionConfig, settings, path, dtype)


def _loaded(kind: Any, config: Any, settings: dict[str, Any], path: Path, dtype: Any) -> Any:
    """
    Raises:
        IntegrityError: where a weight is missing or of another shape, or the settings do not go together.
    """
    quiet_libraries()
    state = files.load_tensors(path)
    try:
        model, info = kind.from_pretrained(
            None,  # no folder: neither its settings nor an adapter's are looked at
            config=config(**settings),
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise IntegrityError(f"{path.with_name('config.json')} makes no {kind.__name__}: {line}") from error
    wrong = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if wrong:
        raise IntegrityError(
            f"{path} does not fit {kind.__name__}: missing or of another shape: "
            f"{', '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}"
        )
    return model.eval()
