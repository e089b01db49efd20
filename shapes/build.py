"""Train all weights of the built-in world, and copy them to where the package ships them.

    python -m prefloop.shapes.build --folder shapes-build

A finished stage is loaded, not trained again; an interrupted one continues.
"""

import argparse
import shutil
from pathlib import Path

import torch

from . import WEIGHTS, denoiser, flow, prompts, scorers, vae

MAX_BYTES = 32_000_000


def build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prompts.main()
    if not (folder / "vae" / "config.json").exists():
        vae.train(folder).save_pretrained(folder / "vae")
    if not (folder / "pipeline" / "model_index.json").exists():
        denoiser.train(folder).to(dtype=torch.float16).save_pretrained(folder / "pipeline")
    if not (folder / "pipeline-flow" / "model_index.json").exists():
        flow.train(folder, folder / "vae").to(dtype=torch.float16).save_pretrained(folder / "pipeline-flow")
    for name in scorers.RECIPES:
        scorers.train(name, folder)
    install(folder)


def install(folder: Path) -> None:
    """Copy the finished models into the package."""
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    for name in ("pipeline", "pipeline-flow", *scorers.RECIPES):
        shutil.copytree(folder / name, WEIGHTS / name)
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    print(f"{WEIGHTS}: {size / 1e6:.1f} MB")
    assert size <= MAX_BYTES, "the package ships at most 32 MB of weights"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("shapes-build"))
    parser.add_argument("--install", action="store_true", help="Only copy finished models.")
    arguments = parser.parse_args()
    install(arguments.folder) if arguments.install else build(arguments.folder)
