"""Build a CLIP of transformers from known settings and tensors; no loader of transformers reads the folder."""

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
    "layer_norm_eps": s.positive_number,
}
_TEXT = _BOTH | {"vocab_size": s.VOCABULARY, "max_position_embeddings": s.TOKENS, "eos_token_id": s.token_id}
_VISION = _BOTH | {"image_size": s.PIXELS, "patch_size": s.PIXELS, "num_channels": s.LAYERS, "projection_dim": s.WIDTH}
Part = Literal["text", "vision"]


def clip_settings(path: Path) -> dict[str, Any]:
    """projection_dim, text_config and vision_config of a whole CLIP, as far as the file sets them."""
    content = s.read_json(path)
    return {
        **s.known(path, content, {"projection_dim": s.WIDTH}),
        "text_config": _part(path, content, "text_config", _TEXT),
        "vision_config": _part(path, content, "vision_config", _VISION),
    }


def vision_settings(path: Path) -> dict[str, Any]:
    """Settings of the vision model, from a file of its own or from that of a whole CLIP."""
    content = s.read_json(path)
    if isinstance(content.get("vision_config"), dict):
        return s.known(path, content["vision_config"], _VISION, "vision_config")
    return s.known(path, content, _VISION)


def _part(path: Path, content: dict[str, Any], name: str, checks: dict[str, s.Check]) -> dict[str, Any]:
    # files from before 2023 have both sections; then *_dict is the one that counts
    old = content.get(f"{name}_dict")
    return s.known(path, content.get(name, {}) if old is None else old, checks, name)


def load_clip(settings: dict[str, Any], path: Path, dtype: Any, digest: str) -> Any:
    """The CLIPModel of `clip_settings` with the tensors of a file, on the CPU; every weight must exist.

    Args:
        digest: sha256 of the file when `settings` were read.
    """
    from transformers import CLIPConfig, CLIPModel

    return _load(CLIPModel, CLIPConfig, settings, path, dtype, digest)


def load_clip_vision(settings: dict[str, Any], path: Path, dtype: Any, digest: str) -> Any:
    """The CLIPVisionModelWithProjection of `vision_settings`, loaded in the same way."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return _load(CLIPVisionModelWithProjection, CLIPVisionConfig, settings, path, dtype, digest)


def _load(kind: Any, config: Any, settings: dict[str, Any], path: Path, dtype: Any, digest: str) -> Any:
    """
    Raises:
        IntegrityError: if a weight is missing or has another shape, or the settings contradict each other.
    """
    quiet_libraries()
    state = files.load_tensors(path, digest)
    try:
        model, info = kind.from_pretrained(
            None,  # no folder: neither its settings nor an adapter in it are read
            config=config(**settings),
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise IntegrityError(f"{path.with_name('config.json')} does not describe a {kind.__name__}: {line}") from error
    bad_keys = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if bad_keys:
        raise IntegrityError(
            f"{path} does not fit {kind.__name__}: missing or with another shape: "
            f"{', '.join(bad_keys[:3])}{' …' if len(bad_keys) > 3 else ''}"
        )
    return model.eval()
