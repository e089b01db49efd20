"""Build a Qwen2-VL of transformers from known settings and safetensors files; no loader of transformers reads the folder."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import IntegrityError, PrefloopError
from ...core.progress import quiet_libraries
from . import checkpoints as files
from . import settings as s
from .pixels import MEAN, STD

PATCH, MERGE, FRAMES = 14, 2, 2  # of every Qwen2-VL; used where a file does not name them
_TEXT: dict[str, s.Check] = {
    "hidden_size": s.WIDTH,
    "intermediate_size": s.WIDTH,
    "num_hidden_layers": s.LAYERS,
    "num_attention_heads": s.WIDTH,
    "num_key_value_heads": s.WIDTH,
    "rms_norm_eps": s.positive_number,
}
_FIXED: dict[str, s.Check] = {
    "hidden_act": s.one_of("silu"),
    "use_sliding_window": lambda value: value is False,
    "rope_theta": s.positive_number,
}
_ROPE: dict[str, s.Check] = {
    "type": s.one_of("mrope", "default"),
    "rope_type": s.one_of("mrope", "default"),
    "rope_theta": s.positive_number,
    "mrope_section": lambda value: (
        isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 < n <= 4_096 for n in value)
    ),
}
_VISION: dict[str, s.Check] = {
    "depth": s.LAYERS,
    "embed_dim": s.WIDTH,
    "hidden_size": s.WIDTH,
    "num_heads": s.WIDTH,
}
_VISION_FIXED: dict[str, s.Check] = {
    "mlp_ratio": s.positive_integer(64),
    "patch_size": s.positive_integer(256),
    "spatial_merge_size": s.positive_integer(16),
    "temporal_patch_size": s.positive_integer(16),
    "hidden_act": s.one_of("quick_gelu"),
}
# names of today's classes, from those that transformers before 4.52 and after it saved
_RENAMED = (
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.language_model\."), "language_model."),
    (re.compile(r"^model\."), "language_model."),
)


def qwen_settings(path: Path) -> dict[str, Any]:
    """text_config and vision_config for transformers' Qwen2VLConfig, from a config.json of any version.

    Raises:
        IntegrityError: if the file does not describe a Qwen2-VL.
    """
    content = s.read_json(path)
    section = "text_config" if isinstance(content.get("text_config"), dict) else ""
    text = content[section] if section else content
    values = _all_of(path, text, _TEXT, section) | s.known(path, text, _FIXED, section)
    values.pop("use_sliding_window", None)
    rope = s.known(path, text.get("rope_parameters") or text.get("rope_scaling") or {}, _ROPE, "rope_parameters")
    if "mrope_section" not in rope:
        raise IntegrityError(f"{path} has no mrope_section: it does not describe a Qwen2-VL; download it again")
    theta = rope.get("rope_theta", values.pop("rope_theta", None))
    values.pop("rope_theta", None)
    if theta is None:
        raise IntegrityError(f"{path} has no rope_theta: it does not describe a Qwen2-VL; download it again")
    values["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": float(theta),
        "mrope_section": rope["mrope_section"],
    }
    seen = content.get("vision_config", {})
    vision = {"mlp_ratio": 4, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": FRAMES}
    vision |= _all_of(path, seen, _VISION, "vision_config") | s.known(path, seen, _VISION_FIXED, "vision_config")
    return {"text_config": values, "vision_config": vision}


def _all_of(path: Path, values: Any, checks: Mapping[str, s.Check], section: str) -> dict[str, Any]:
    found = s.known(path, values, checks, section)
    for name in checks:
        if name not in found:
            full = f"{section}.{name}" if section else name
            raise IntegrityError(f"{path} has no {full}: it does not describe a Qwen2-VL; download it again")
    return found


def refuse_other_preprocessing(path: Path, vision: Mapping[str, Any]) -> None:
    """
    Raises:
        IntegrityError: if a preprocessor_config.json asks for other pixels than `qwen2_vl_inputs` makes.
    """
    if path.exists():
        close = lambda expected: lambda value: _numbers_are(value, expected)  # noqa: E731
        expected = {"patch_size": "patch_size", "merge_size": "spatial_merge_size"}
        expected |= {"temporal_patch_size": "temporal_patch_size"}
        checks: dict[str, s.Check] = {name: s.exactly(vision[key]) for name, key in expected.items()}
        s.known(path, s.read_json(path), checks | {"image_mean": close(MEAN), "image_std": close(STD)})


def _numbers_are(value: Any, expected: Sequence[float]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(expected)
        and all(type(number) in (int, float) for number in value)
        and all(math.isclose(number, other, abs_tol=1e-6) for number, other in zip(value, expected, strict=True))
    )


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    shape: tuple[int, ...]


def weight_files(path: Path) -> list[Path]:
    """A .safetensors file, or those of a folder: the parts that its index names, or its only one.

    Raises:
        PrefloopError: if there are none.
        IntegrityError: if the index names other files than .safetensors of the folder.
    """
    if path.is_file() and path.suffix != ".safetensors":
        raise IntegrityError(f"{path} is not a .safetensors file; other formats are not read for this scorer")
    if not path.is_dir():
        return [path]
    indices = sorted(path.glob("*.safetensors.index.json"))
    if not indices:
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise PrefloopError(f"no .safetensors file in {path}")
        return found
    parts = s.read_json(indices[0]).get("weight_map")
    names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name:
            raise IntegrityError(f"{indices[0]}: {name[:80]!r} is not a .safetensors file of this folder")
    if not names:
        raise IntegrityError(f"{indices[0]} names no files; download it again")
    return [path / name for name in names]


def stored_tensors(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """Name in the files → where it is and its shape. No values are read.

    Raises:
        IntegrityError: if a file cannot be read, or two have a tensor of the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for name, shape in files.tensor_shapes(path).items():
            if name in tensors:
                raise IntegrityError(f"{name} is both in {tensors[name].path} and in {path.name}; keep one of them")
            tensors[name] = StoredTensor(path, shape)
    return tensors


def load_qwen(
    settings: dict[str, Any], state: dict[str, Any], n_tokens: int, image_id: int, path: Path, dtype: Any
) -> Any:
    """The Qwen2VLModel of `qwen_settings` without a language head, on the CPU; every weight must exist.

    Args:
        state: tensors under the names of any version; those of the language head are not used.
        n_tokens: rows of the token embeddings.
        image_id: the token that stands for a part of an image.
        path: for messages.

    Raises:
        IntegrityError: if a weight is missing or has another shape, or the settings contradict each other.
    """
    from transformers import Qwen2VLConfig, Qwen2VLModel

    quiet_libraries()
    kind: Any = Qwen2VLModel
    try:
        text = settings["text_config"] | {"vocab_size": n_tokens}
        text |= {
            "bos_token_id": None,
            "eos_token_id": None,
        }  # of generation; the defaults need not be in this vocabulary
        config = Qwen2VLConfig(text_config=text, vision_config=dict(settings["vision_config"]), image_token_id=image_id)
        model, info = kind.from_pretrained(
            None,  # no folder: neither its settings nor an adapter in it are read
            config=config,
            state_dict={renamed(name): value for name, value in state.items() if not name.startswith("lm_head.")},
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError, ZeroDivisionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise IntegrityError(f"the settings of {path} do not describe a Qwen2-VL: {line}") from error
    bad_keys = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    if bad_keys:
        raise IntegrityError(
            f"{path} does not fit Qwen2-VL: missing or with another shape: "
            f"{', '.join(bad_keys[:3])}{' …' if len(bad_keys) > 3 else ''}"
        )
    return model.eval()


def renamed(name: str) -> str:
    """A weight's name in Qwen2VLModel."""
    for old, new in _RENAMED:
        if old.match(name):
            return old.sub(new, name)
    return name
