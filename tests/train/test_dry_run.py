"""What `prefloop train --dry-run` says of a flow-matching model and of a U-Net."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.cost.dry_run import dry_run


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.saved("sd35", tmp_path_factory.mktemp("dry") / "sd35"))


def lines_of(text: str) -> dict[str, str]:
    """First word → the line after it, without the settings."""
    return {
        line.split()[0]: line[10:]
        for line in text.splitlines()
        if line and line[0].isalpha() and " = " not in line[:40]
    }


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_flow_model_shows_its_sigma_its_lora_and_the_size_of_its_prompts(
    labelled: PairStore, config: TrainConfig, sd35: str
):
    settings = replace(config, model=sd35, lora_rank=4, mixed_precision="bf16")
    text, values = dry_run(settings, labelled)
    lines = lines_of(text)
    assert lines["family"].startswith("sd3, predicts flow (sigma logit-normal, shift 3); ")
    # 8 attention linears in 2 blocks but 1, 4 in the second attention, 2 MLPs for the image and 1 for the text
    assert (
        "; the LoRA adds 4,352, on 25 of " in lines["weights"]
    )  # 19 of 16 x 16 and 6 of 16 x 64: 4 (19 x 32 + 6 x 80)
    assert lines["weights"].endswith(" linear layers")
    # 20 tokens of CLIP and 256 of T5, 48 wide, and 40 pooled values
    n_tokens = 256 + _clip_tokens(sd35)
    assert values["estimate"]["bytes_per_prompt"] == 2 * (n_tokens * 48 + 40)
    assert "each prompt is counted at the greatest length, " in lines["disk"]
    assert (values["timestep_density"], values["timestep_shift"]) == ("logit-normal", 3.0)
    assert (values["estimate"]["n_lora_layers"], values["estimate"]["n_trained"]) == (25, 4352)
    assert not list((labelled.path / "cache").glob("*"))


def _clip_tokens(folder: str) -> int:
    import json

    return json.loads((Path(folder) / "text_encoder" / "config.json").read_text())["max_position_embeddings"]


@pytest.mark.slow(reason="counts the operations of whole models")
def test_the_settings_of_the_run_decide_sigma_and_layers(labelled: PairStore, config: TrainConfig, sd35: str):
    settings = replace(config, model=sd35, timestep_density="uniform", timestep_shift="1.5")
    text, _ = dry_run(replace(settings, lora_rank=4, lora_targets=("attn.to_q",)), labelled)
    assert "sd3, predicts flow (sigma uniform, shift 1.5); " in text
    assert "; the LoRA adds 256, on 2 of " in text  # 2 x 4 x (16 + 16)
    whole = dry_run(replace(settings, lora_rank=0), labelled)[0]
    assert lines_of(whole)["weights"].endswith(", all trained")


@pytest.mark.slow(reason="counts the operations of whole models")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ['format = "lora"', 'device = "cpu"']),
        ({"format": "kohya"}, ['format = "kohya"', 'device = "cpu"']),  # kohya = … would be a second way to say it
        ({"kohya": True}, ['format = "lora"', "kohya = true", 'device = "cpu"']),
        ({"lora_rank": 0}, ['format = "pipeline"', 'device = "cpu"']),
        ({"format": "unet", "device": None, "cpu": True}, ['format = "unet"', 'device = "cpu"']),
    ],
)
def test_of_settings_that_say_the_same_the_one_that_applies_is_shown(
    labelled: PairStore, config: TrainConfig, changes: dict, expected: list[str]
):
    settings = replace(config, **({"lora_rank": 4, "device": "cpu", "cpu": False} | changes))
    lines = dry_run(settings, labelled)[0].splitlines()
    assert [line for line in lines if line.split(" ")[0] in ("format", "kohya", "cpu", "device")] == expected
    assert any(line.startswith("lora-alpha = ") for line in lines) == (settings.lora_rank > 0)


@pytest.mark.slow(reason="counts the operations of whole models")
def test_a_u_net_has_no_sigma(labelled: PairStore, config: TrainConfig):
    text, values = dry_run(config, labelled)
    assert lines_of(text)["family"].startswith("sd, predicts epsilon; ")
    assert values["timestep_density"] is values["timestep_shift"] is None
