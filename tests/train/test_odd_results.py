"""Results from other people: an odd prefloop.json or hostile weights end in one line, and no code in them runs."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prefloop.core.hashing import RESULT_FILE, digests
from prefloop.core.hub import hub_id
from prefloop.models.lineage import DEEPEST
from prefloop.models.loading import load_component
from prefloop.models.names import LORA_FILE
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from results import refused, respell, rewrite
from safetensors.torch import load_file


def deep(folder: Path) -> None:
    (folder / RESULT_FILE).write_text("[" * 100_000)


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not JSON": (lambda f: (f / RESULT_FILE).write_text("{'a': 1"), "cannot be read as JSON"),
    "not text": (lambda f: (f / RESULT_FILE).write_bytes(b"\xff\xfe{}"), "cannot be read as JSON"),
    "nested": (deep, "cannot be read as JSON"),
    "a folder": (lambda f: ((f / RESULT_FILE).unlink(), (f / RESULT_FILE).mkdir()), "cannot be read as JSON"),
    "a list": (lambda f: (f / RESULT_FILE).write_text("[]"), "contains a list, but train writes an object"),
    "empty": (lambda f: (f / RESULT_FILE).write_text("{}"), "no base_model"),
    "no labelers": (lambda f: rewrite(f, labelers=[1]), "labelers is '[1]'"),
    "labelers": (lambda f: rewrite(f, labelers={"a": []}), "labelers.a is '[]'"),
    "scorers": (lambda f: rewrite(f, labelers={"a": {"scorers": {"b": 1}}}), "labelers.a.scorers"),
    "config": (lambda f: rewrite(f, config="x"), "config is 'x'"),
    "files": (lambda f: rewrite(f, files={LORA_FILE: 1}), "files is"),
    "base_model": (lambda f: rewrite(f, base_model={}), "base_model is"),
    "no place": (lambda f: rewrite(f, trained_on={}), "trained_on.id is 'None'"),
    "no folder": (lambda f: rewrite(f, trained_on={"id": str(hub_id("a/b", None))}), "trained_on is"),
    "NUL": (lambda f: rewrite(f, trained_on={"folder": "/a\0b", "id": "1"}), "trained_on.folder"),
    "hub id": (lambda f: rewrite(f, trained_on={"hub": "../a", "id": str(hub_id("../a", None))}), "trained_on.hub"),
    "other hub id": (lambda f: rewrite(f, trained_on={"hub": "a/c", "id": str(hub_id("a/b", None))}), "has changed"),
    "built-in": (lambda f: rewrite(f, trained_on={"built_in": ["x"], "id": "1"}), "unknown built-in model"),
    "part": (
        lambda f: rewrite(f, trained_on=json.loads((f / RESULT_FILE).read_text())["trained_on"] | {"vae": 1}),
        "trained_on.vae is not an object",
    ),
    "itself": (
        lambda f: rewrite(f, trained_on={"folder": str(f), "id": str(hub_id("a/b", None))}),
        "trained on itself",
    ),
    "first format, itself": (lambda f: rewrite(f, trained_on=None, base_model=str(f)), "trained_on is 'None'"),
}


@pytest.mark.parametrize("how", ODD)
def test_an_odd_record_is_refused_in_one_line(lora: Path, how: str):
    spoil, line = ODD[how]
    spoil(lora)
    error = refused(lora)
    assert line in error
    assert str(lora) in error


def test_a_circular_or_very_deep_lineage_is_refused(lora: Path, tmp_path: Path):
    other = Path(shutil.copytree(lora, tmp_path / "other"))
    for folder, base in ((lora, other), (other, lora)):
        rewrite(folder, trained_on={"folder": str(base), "id": str(hub_id("a/b", None))})
    assert "trained on itself" in refused(lora)
    below = lora
    for number in range(DEEPEST + 1):
        above = Path(shutil.copytree(other, tmp_path / f"{number}"))
        rewrite(above, trained_on={"folder": str(below), "id": str(hub_id("a/b", None))})
        below = above
    assert f"trained on a chain of more than {DEEPEST} models" in refused(below)


LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pickle": (lambda f: (f / LORA_FILE).write_bytes(pickle.dumps({"a": 1})), "that can be loaded safely"),
    "cut off": (lambda f: (f / LORA_FILE).write_bytes((f / LORA_FILE).read_bytes()[:-9]), "that can be loaded safely"),
    "one matrix": (lambda f: respell(f, {f"{LAYER}.lora_A.weight": None}), "do not belong together"),
    "another shape": (
        lambda f: respell(f, {f"{LAYER}.lora_A.weight": torch.ones(2, 5)}),
        f"does not fit the UNet2DConditionModel it is put on: {LAYER.removeprefix('unet.')}",
    ),
    "two ranks": (
        lambda f: respell(
            f, {f"{LAYER}.lora_A.weight": torch.ones(3, 16), f"{LAYER}.lora_B.weight": torch.ones(16, 3)}
        ),
        "2 ranks",
    ),
    "no such layer": (
        lambda f: respell(f, {"unet.a.lora_A.weight": torch.ones(2, 5), "unet.a.lora_B.weight": torch.ones(5, 2)}),
        "does not fit",
    ),
    "no linear layer": (
        lambda f: respell(
            f, {"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": torch.ones(16, 2)}
        ),
        "does not fit",
    ),
    "text encoder": (
        lambda f: respell(f, {"text_encoder.a.lora_A.weight": torch.ones(2, 5)}),
        "only LoRAs of a U-Net",
    ),
    "dora": (lambda f: respell(f, {}, {"unet.use_dora": True}), "made with use_dora"),
    "bias": (lambda f: respell(f, {}, {"unet.bias": "all"}), "made with bias"),
    "alpha": (lambda f: respell(f, {}, {"unet.lora_alpha": "4"}), "alpha '4'"),
    "huge": (lambda f: respell(f, {}, {"unet.lora_alpha": 10**400}), "not those of a LoRA"),
    "infinite": (lambda f: respell(f, {}, {"unet.lora_alpha": float("inf")}), "alpha inf"),
    "rank": (lambda f: respell(f, {}, {"unet.r": 7}), "says rank 7"),
    "list": (lambda f: respell(f, {}, [1]), "not those of a LoRA"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_or_broken_lora_is_refused_in_one_line(lora: Path, how: str):
    spoil, line = HOSTILE[how]
    spoil(lora)
    rewrite(lora, files=digests(lora))
    error = refused(lora)
    assert line in error
    assert LORA_FILE in error


def test_settings_in_a_loras_header_import_nothing(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "core.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_k"], "peft_type": "LORA"}
    settings |= {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"}
    respell(lora, {}, {f"unet.{name}": value for name, value in settings.items()})
    assert load_pipeline(find_model(str(lora)), "cpu", torch.float32)
    assert load_component(find_model(str(lora)))
    assert not (tmp_path / "imported").exists()
    # diffusers' own loader imports it
    pipeline: Any = load_pipeline(find_model(str(lora)).root, "cpu", torch.float32)
    with pytest.raises(Exception, match=r".*"):
        pipeline.load_lora_weights(lora)
    assert (tmp_path / "imported").exists()


def test_a_pickle_beside_a_unet_is_not_loaded(lora: Path, tiny_pipeline: Path):
    (lora / LORA_FILE).unlink()
    shutil.copytree(tiny_pipeline / "unet", lora / "unet")
    state = load_file(lora / "unet" / "diffusion_pytorch_model.safetensors")
    (lora / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, lora / "unet" / "diffusion_pytorch_model.bin")
    rewrite(lora, output="unet", files=digests(lora))
    assert f"cannot load the U-Net {lora}: " in refused(lora)
