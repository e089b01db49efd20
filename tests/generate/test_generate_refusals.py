"""Models and settings that cannot generate end in one line, and signals are obeyed while weights load and between batches."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import content
import pyarrow.parquet as pq
import pytest
import tiny
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from PIL import Image
from prefloop.cli import app
from prefloop.core.errors import Interrupted, PrefloopError
from prefloop.core.executor import InProcess
from prefloop.generate import GenerateConfig
from prefloop.generate.image_worker import ImageWorker
from prefloop.generate.sampler import ImageSampler
from prefloop.generate.stage import Generation, generate, plan, run_plan
from prefloop.shapes.words import tokenizer
from prefloop.store import PairStore
from prefloop.store.check import check
from transformers import T5Config, T5EncoderModel
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small PixArt-Sigma, which generates 32 x 32 images in patches of 2 x 2 latents."""
    words: Any = tokenizer()
    text = T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    parts: dict[str, Any] = {
        "tokenizer": words,
        "text_encoder": T5EncoderModel(text),
        "vae": AutoencoderKL(**tiny.CODER),
        "transformer": PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=16,
            sample_size=4,
            patch_size=2,
            caption_channels=16,
            norm_num_groups=1,
        ),
        "scheduler": DPMSolverMultistepScheduler(),
    }
    folder = tmp_path_factory.mktemp("models") / "pixart"
    PixArtSigmaPipeline(**parts).save_pretrained(folder)
    return folder


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    start = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--images-per-prompt", "1"]
    return [*start, "--device", "cpu", "--store", str(tmp_path / "new")]


def refused(words: list[str], *more: object) -> str:
    """The one line with which a refused command ends."""
    ended = CliRunner().invoke(app, [*words, *map(str, more)])
    assert ended.exit_code == 2, ended.output
    assert isinstance(ended.exception, SystemExit), "a traceback"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("prefloop: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("settings", [[], ["--num-inference-steps", "2", "--guidance-scale", "5"]])
def test_a_refiner_cannot_generate(words: list[str], tmp_path: Path, settings: list[str]):
    folder = tiny.saved("sdxl-refiner", tmp_path / "refiner")
    line = refused(words, "--model", folder, *settings)
    assert "starts from an image" in line or "does not generate images from prompts alone" in line
    assert not (tmp_path / "new").exists()


def test_a_pipeline_that_needs_an_image_cannot_generate(words: list[str], tiny_pipeline: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "inpaint")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline", "StableVideoDiffusionPipeline"):
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        assert f"{name} does not generate images from prompts alone" in refused(words, "--model", folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", "it has no scale_model_input"),
        ("VQDiffusionScheduler", "missing 1 required positional argument"),  # from_config raises
        ("UnCLIPScheduler", "only supports `beta_schedule`"),
        ("NoScheduler", "diffusers has no scheduler 'NoScheduler'"),
        ("RePaintScheduler", "cannot generate with these settings"),  # its step raises
    ],
)
def test_a_scheduler_that_does_not_fit_is_named(words: list[str], tiny_pipeline: Path, scheduler: str, message: str):
    line = refused(words, "--model", tiny_pipeline, "--num-inference-steps", 2, "--scheduler", scheduler)
    assert scheduler in line
    assert message in line


def test_a_second_generate_is_refused_before_its_model_is_loaded(
    words: list[str], store: PairStore, tiny_pipeline: Path, tmp_path: Path
):
    broken = shutil.copytree(tiny_pipeline, tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    arguments = [*words[:-1], str(store.path), "--model", str(broken)]
    planned = plan(GenerateConfig(model=str(broken), prompts=words[2], images_per_prompt=1, device="cpu"), store)

    def load() -> ImageWorker:
        """What the first process does meanwhile."""
        second = CliRunner().invoke(app, arguments)
        assert second.exit_code == 4, second.output
        assert second.stderr.splitlines() == [
            f"prefloop: this generate run of {store.path} is in use by process {os.getpid()}; "
            "wait for it to finish, or stop it"
        ]
        return ImageWorker(ImageSampler(planned.model, planned.config))

    with pytest.raises(PrefloopError, match="broken"):
        run_plan(planned, store, InProcess(load))
    alone = CliRunner().invoke(app, arguments)
    assert alone.exit_code not in (0, 4), alone.output
    assert len(alone.stderr.splitlines()) == 1, "what is generated was announced before the model was refused"
    assert store.rows("select count(*) from runs") == [(0,)]


def test_the_image_sizes_of_a_pipeline_are_checked(words: list[str], pixart: Path, tmp_path: Path):
    settings = ["--model", pixart, "--num-inference-steps", 2]
    # 8 pixels to a latent, 2 latents to a patch
    assert "must be a multiple of 16 for a PixArtSigmaPipeline, got 24" in refused(words, *settings, "--resolution", 24)
    assert not (tmp_path / "new").exists()
    # the pipeline has tables of sizes for the published models only, and they are not used
    ended = CliRunner().invoke(app, [*words, *map(str, settings), "--resolution", "32"])
    assert ended.exit_code == 0, ended.output


class Signalled(ImageSampler):
    """Receives a signal while it generates its second batch."""

    n_batches = 0

    def batches(self, missing: Sequence[Generation]) -> Iterator[tuple[Sequence[Generation], list[Image.Image]]]:
        self.n_batches += 1
        if self.n_batches == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from super().batches(missing)


@pytest.mark.slow(reason="generates images in several runs")
def test_a_signal_ends_generate_after_its_batch(store: PairStore, tiny_pipeline: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(5)))
    prompts = str(tmp_path / "prompts.txt")
    config = GenerateConfig(model=str(tiny_pipeline), prompts=prompts, images_per_prompt=2, batch_size=2, device="cpu")
    planned = plan(config, store)
    with pytest.raises(Interrupted, match=r"4 of 10 images are in .*; the same command continues") as ended:
        run_plan(planned, store, InProcess(lambda: ImageWorker(Signalled(planned.model, planned.config))))
    assert ended.value.exit_code == 143
    assert store.rows("select status from runs") == [("interrupted",)]
    assert PairStore.open(store.path).rows("select count(*) from generations") == [(4,)]
    assert generate(config, store)["generated"] == 6
    assert check(store) == []


class Waiting(PairStore):
    """Writes images only once the model generates the second batch."""

    def __init__(self, path: Path, second_batch: Event) -> None:
        super().__init__(path)
        self.second_batch = second_batch

    def write_image(self, data: bytes, width: int, height: int, extension: str = "png") -> dict:
        assert self.second_batch.wait(5), "the second batch is not generated before the first one is written"
        return super().write_image(data, width, height, extension)


class Telling(ImageSampler):
    second_batch, n_batches = Event(), 0

    def batches(self, missing: Sequence[Generation]) -> Iterator[tuple[Sequence[Generation], list[Image.Image]]]:
        self.n_batches += 1
        if self.n_batches == 2:
            self.second_batch.set()
        yield from super().batches(missing)


def test_a_batch_is_written_while_the_next_one_is_generated_and_rows_keep_their_order(
    store: PairStore, tiny_pipeline: Path, tmp_path: Path
):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    prompts = str(tmp_path / "prompts.txt")
    config = GenerateConfig(model=str(tiny_pipeline), prompts=prompts, images_per_prompt=3, batch_size=2, device="cpu")
    planned = plan(replace(config, num_inference_steps=1), store)
    sampler = Telling(planned.model, planned.config)
    run_plan(planned, Waiting(store.path, sampler.second_batch), InProcess(lambda: ImageWorker(sampler)))
    written = [
        identity
        for part in sorted(store.journal.glob("*-generations-*"))
        for identity in pq.read_table(part)["generation_id"].to_pylist()
    ]
    assert written == [item.generation_id for item in planned.generations]


def test_images_that_cannot_be_written_end_the_command_in_one_line(words: list[str], store: PairStore, tiny_pipeline):
    (store.path / "images").rmdir()
    (store.path / "images").write_text("no folder")
    settings = ["--model", str(tiny_pipeline), "--num-inference-steps", "1", "--batch-size", "1"]
    ended = CliRunner().invoke(app, [*words[:-1], str(store.path), *settings])
    assert ended.exit_code == 1, ended.output
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("prefloop: ")]
    assert line.startswith(f"prefloop: cannot write {store.path / 'images'}")
    assert store.rows("select status from runs") == [("failed",)]


def _signal_at_the_first_part() -> None:
    """Send a signal as diffusers begins to read the model, and log which of its files are opened afterwards."""
    log = Path(os.environ["OPENED"])

    def on_event(event: str, arguments: tuple) -> None:
        if event != "open" or "/model/" not in str(arguments[0]) or "from_pretrained" not in _callers():
            return
        if log.exists():
            with open(log, "a") as file:
                file.write(f"{arguments[0]}\n")
        else:
            log.touch()
            os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(on_event)


def _callers() -> set[str]:
    names, frame = set(), sys._getframe(1)
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names


@pytest.mark.slow(reason="starts processes")
@pytest.mark.parametrize("stage", ["generate", "eval"])
def test_a_signal_while_weights_load_is_obeyed_at_once(
    store: PairStore, tiny_pipeline: Path, words: list[str], tmp_path: Path, stage: str
):
    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    arguments = [*words[1:-1], store.path, "--num-inference-steps", 1, "--model", model]
    if stage == "eval":
        other = shutil.copytree(tiny_pipeline, tmp_path / "other")
        (other / "note.json").write_text("{}")
        arguments += ["--baseline", other, "--scorer", "little_scorers:Redness"]
    code, printed = content.finished(
        stage, *arguments, cwd=tmp_path, first=_signal_at_the_first_part, OPENED=str(tmp_path / "opened")
    )
    assert code == 143, printed
    assert "Traceback" not in printed
    assert "the same command continues" in printed.splitlines()[-1]
    # nothing more of the model was read, and nothing was generated with it
    assert (tmp_path / "opened").read_text() == ""
    name = str(model)
    generated = "select count(*) from generations join models using (model_id) where name = ?"
    assert PairStore.open(store.path).rows(generated, [name]) == [(0,)]
