"""What does not fit the model's layers is refused before anything is encoded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from prefloop.core.errors import PrefloopError
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run
from prefloop.train.stage import train
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("sdxl", tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="module")
def foreign_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loras") / "foreign.safetensors"
    layer = "unet.down_blocks.7.attentions.0.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "SDXL"}, "the reference .*sdxl is of another kind than .*; name a model of the same kind"),
        ({"reference": "nosuch"}, "cannot find the model 'nosuch'"),
        ({"init_from": "SDXL"}, "sdxl does not fit .*: its cross_attention_dim is 40, not 16"),
        ({"init_from": "LORA"}, r"foreign.safetensors does not fit .*: it has no layer .*down_blocks.7"),
        ({"lora_rank": 2, "lora_targets": ("to_q", "to_x")}, "no layer of the UNet2DConditionModel .* ends in to_x"),
        ({"model": "SDXL", "lora_rank": 2, "kohya": True, "lora_targets": ("time_emb_proj",)}, "leave out --kohya"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_encoded(
    labelled: PairStore,
    config: TrainConfig,
    sdxl: Path,
    foreign_lora: Path,
    changes: dict[str, Any],
    words: str,
):
    names = {"SDXL": str(sdxl), "LORA": str(foreign_lora)}
    config = replace(config, **{name: names.get(str(value), value) for name, value in changes.items()})
    for refused in (lambda: train(config, labelled), lambda: dry_run(config, labelled)):
        with pytest.raises(PrefloopError, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert not list((labelled.path / "cache").glob("*"))
    assert not Path(config.output_dir).exists()
