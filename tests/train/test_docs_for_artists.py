"""docs/for-artists.md: its commands run as written on a tiny pipeline, and the LoRA they end with is one that diffusers loads."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from content import two_folders
from diffusers import StableDiffusionPipeline
from prefloop.cli import app
from prefloop.models.pipelines import load_pipeline
from prefloop.models.resolve import find_model
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "for-artists.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
# what makes the recipe of Stable Diffusion 1.5 a matter of seconds on a tiny model
SMALL = (
    "--max-train-steps 2 --gradient-accumulation-steps 1 --lr-warmup-steps 0 --learning-rate 1e-2 --mixed-precision no"
)
SMALL += " --resolution 32 --validation-steps 2 --dataloader-num-workers 0 --no-allow-tf32 --cpu"


def run(*words: str) -> str:
    ended = CliRunner().invoke(app, list(words))
    assert ended.exit_code == 0, (words, ended.output)
    return ended.stdout


def images(pipeline: Any) -> torch.Tensor:
    settings: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    return pipeline("a castle", **settings, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.slow(reason="runs the commands of a document")
def test_the_page_goes_from_two_folders_to_a_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path):
    monkeypatch.chdir(tmp_path)
    two_folders(Path("mine"))
    printed = []
    for words in COMMANDS:
        more = ["--model", str(tiny_pipeline), *SMALL.split()] if words[1] == "train" else []
        printed.append(run(*words[1:], *more))
    # 2 prompts x 2 good x 2 bad
    assert printed[0].startswith("8 pairs from folders, 8 of them new, 8 new labels by imported")
    assert "my-taste/my-taste.safetensors" in TEXT
    file = Path("my-taste/my-taste.safetensors")
    assert f"for ComfyUI (models/loras) and AUTOMATIC1111 (models/Lora): {file}" in printed[2]
    base = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    before = images(base)
    base.load_lora_weights("my-taste", weight_name=file.name)
    tuned = images(base)
    torch.testing.assert_close(
        images(load_pipeline(find_model("my-taste"), "cpu", torch.float32)), tuned, atol=1e-4, rtol=0
    )
    assert (tuned - before).abs().max() > 1e-3
    card = Path("my-taste/README.md").read_text()
    assert "put `my-taste.safetensors` into `models/loras`" in card
    assert "no trigger words" in card


@pytest.mark.slow(reason="runs the commands of a document")
@pytest.mark.parametrize("loss", ["dpo", "kto", "sft"])
def test_images_of_one_prompt_can_be_trained_on_by_every_loss_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path, loss: str
):
    monkeypatch.chdir(tmp_path)
    two_folders(Path("mine"), ("keep", "drop"), captions=False)
    maps = ["--map", "chosen=keep", "--map", "rejected=drop", "--prompt", "an illustration"]
    assert "16 pairs from folders" in run("store", "import", "mine", "--store", "s", *maps)
    words = ["--config", "sd15-lora", "--model", str(tiny_pipeline), *SMALL.split()]
    run(
        "train",
        *words,
        "--loss",
        loss,
        "--labeler",
        "imported",
        "--store",
        "s",
        "--output-dir",
        "out",
        "--train-batch-size",
        "2",
    )
    assert find_model("out").kind == "lora"


def test_every_option_and_link_of_the_page_exists():
    helps = {verb: run(*verb.split(), "--help") for verb in ("store import", "train")}
    for option in re.findall(r"`(--[a-z-]+)", TEXT):
        assert any(option in text for text in helps.values()), option
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert all((ROOT / "docs" / target).exists() for target in targets)


def test_kohyas_file_is_named_as_the_folder_and_the_summary_and_help_say_so(tmp_path: Path):
    from prefloop.train import TrainConfig

    def named(folder: Path, **settings: Any) -> str | None:
        return TrainConfig(output_dir=str(folder), labelers=("x",), **settings).kohya_file

    assert named(tmp_path / "my style", format="kohya") == "my style.safetensors"
    assert named(tmp_path / "x", kohya=True) == "kohya.safetensors"
    assert named(tmp_path / "x") is None
    # the name of the file in diffusers' layout, which lies beside it
    assert named(tmp_path / "pytorch_lora_weights", format="kohya") == "kohya.safetensors"
    with pytest.raises(Exception, match="kohya is a format for LoRAs"):
        named(tmp_path, format="kohya", lora_rank=0)
