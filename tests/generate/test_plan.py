"""A command plans once: it reads its prompts and hashes its models one time each, whether or not the store exists."""

import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import content
import pytest


def _log_opened_files() -> None:
    """Log each time that Python opens the prompts or a model's U-Net; safetensors maps the file it loads, unseen here."""
    log = Path(os.environ["OPENED"])

    def on_event(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).endswith(("prompts.txt", "unet/diffusion_pytorch_model.safetensors")):
            with open(log, "a") as file:
                file.write(f"{arguments[0]}\n")

    sys.addaudithook(on_event)


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("stage", ["generate", "eval"])
def test_a_command_reads_its_prompts_and_hashes_each_model_once(tiny_pipeline: Path, tmp_path: Path, stage: str):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    models = [shutil.copytree(tiny_pipeline, tmp_path / name) for name in ("one", "two")[: 1 + (stage == "eval")]]
    for number, model in enumerate(models):
        (model / "note.json").write_text(str(number))
        # a hash is not remembered for a file that may still change, so each request for it reads the file
        later = time.time() + 3600
        os.utime(model / "unet" / "diffusion_pytorch_model.safetensors", (later, later))
    words = [stage, "--model", models[0], "--prompts", prompts, "--num-inference-steps", 1, "--device", "cpu"]
    if stage == "eval":
        words += ["--baseline", models[1], "--scorer", "little_scorers:Redness"]
        code, printed = content.finished("generate", *words[1:9], "--store", "store", cwd=tmp_path)
        assert code == 0, printed
    expected = Counter(
        {str(path): 1 for path in [prompts, *(m / "unet" / "diffusion_pytorch_model.safetensors" for m in models)]}
    )
    for _ in ("the store is new", "the store exists")[stage == "eval" :]:
        log = tmp_path / "opened"
        log.unlink(missing_ok=True)
        code, printed = content.finished(
            *words, "--store", "store", cwd=tmp_path, first=_log_opened_files, OPENED=str(log)
        )
        assert code == 0, printed
        assert Counter(log.read_text().split()) == expected
