"""No model folder can name code to run: every place where diffusers, transformers or peft look, in every stage."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import content
import pytest
import torch
from prefloop.cli import app
from prefloop.store import PairStore
from safetensors.torch import load_file
from typer.testing import CliRunner

# Each writes a file when it is imported or unpickled.
CANARY = """
import os, pathlib
pathlib.Path(os.environ["CANARY"]).write_text(__name__)
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
class Pipeline(StableDiffusionPipeline): pass
class Tokenizer(CLIPTokenizer): pass
class Encoder(CLIPTextModel): pass
class Unet(UNet2DConditionModel): pass
"""


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _pipeline_list(folder: Path) -> None:
    (folder / "evil.py").write_text(CANARY)
    change(folder / "model_index.json", _class_name=["evil", "Pipeline"])


def _component_file(folder: Path) -> None:
    (folder / "unet" / "evil.py").write_text(CANARY)
    change(folder / "model_index.json", unet=["evil", "Unet"])


def _component_file_under_a_known_name(folder: Path) -> None:
    (folder / "unet" / "diffusers.py").write_text(CANARY + "UNet2DConditionModel = Unet\n")


def _module_on_the_path(folder: Path) -> None:
    change(folder / "model_index.json", unet=["evil_module", "Unet"])


def _custom_pipeline(folder: Path) -> None:
    (folder / "pipeline.py").write_text(CANARY)
    change(folder / "model_index.json", custom_pipeline="pipeline")


def _auto_map_of_the_text_encoder(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "evil_module.Encoder"})
    change(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])


def _auto_map_of_the_tokenizer(folder: Path) -> None:
    change(
        folder / "tokenizer" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil_module.Tokenizer", None]},
        trust_remote_code=True,
    )


def _auto_class(folder: Path) -> None:
    change(folder / "model_index.json", tokenizer=["transformers", "AutoTokenizer"])


def _adapter_of_a_component(folder: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "megatron_core": "evil_module"}
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps(adapter))


def _kernel_from_the_hub(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", _attn_implementation="owner/kernel")


def _quantizer(folder: Path) -> None:
    change(folder / "unet" / "config.json", quantization_config={"quant_method": "quanto", "weights_dtype": "int8"})


def _pickled_shards(folder: Path) -> None:
    shards = {"metadata": {}, "weight_map": {"conv_in.weight": "../unet/diffusion_pytorch_model.bin"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))


def _other_weights(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", transformers_weights="model.bin")


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a list as the pipeline's class": (_pipeline_list, "evil.py: code in a model folder is never run"),
    "a component's module": (_component_file, 'unet of the StableDiffusionPipeline is ["evil", "Unet"]'),
    "a component's module under a known name": (_component_file_under_a_known_name, "diffusers.py: code in"),
    "a module on the path": (_module_on_the_path, 'unet of the StableDiffusionPipeline is ["evil_module", "Unet"]'),
    "a custom pipeline": (_custom_pipeline, "pipeline.py: code in"),
    "auto_map of the text encoder": (_auto_map_of_the_text_encoder, "auto_map names code"),
    "auto_map of the tokenizer": (_auto_map_of_the_tokenizer, "auto_map names code"),
    "an Auto class": (_auto_class, "AutoTokenizer"),
    "an adapter of a component": (_adapter_of_a_component, "adapter_config.json adds an adapter"),
    "a kernel from the hub": (_kernel_from_the_hub, "names code on the hub"),
    "a quantizer": (_quantizer, "quantized by 'quanto'"),
    "other weights than safetensors": (_other_weights, "'model.bin', which is not a safetensors file"),
    "pickled shards": (_pickled_shards, "is not a safetensors file of this folder"),
}
BROKEN: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read as JSON"),
    "a list": ("[]", "contains a list"),
    "nested beyond reading": ("[" * 100_000, "cannot be read as JSON"),
    "without a class": ("{}", "the pipeline must be a class of diffusers, got null"),
    "a class that is not there": ('{"_class_name": "EvilPipeline"}', "has no pipeline EvilPipeline"),
    "a class that is not a pipeline": ('{"_class_name": "UNet2DModel"}', "has no pipeline UNet2DModel"),
    "a path as a library": (
        '{"_class_name": "StableDiffusionPipeline", "unet": ["../unet", "Unet"]}',
        "does not name a class of diffusers or transformers",
    ),
}


@pytest.fixture(scope="module")
def labelled_once(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Pairs that 'redder' has labelled; refused commands only add failed runs to it."""
    store = PairStore.create(tmp_path_factory.mktemp("labelled") / "store")
    content.add_labeler(store, "redder")
    for pair in content.fill(store, n_prompts=12):
        content.add_label(store, pair, "redder", "a")
    store.ingest()
    return store


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that code in a folder would write; `evil_module` can be imported from the current folder."""
    (tmp_path / "evil_module.py").write_text(CANARY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    return tmp_path / "canary"


@pytest.fixture
def model(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_pipeline, tmp_path / "model")


def stages(model: Path, store: PairStore, tiny_pipeline: Path) -> dict[str, list[str]]:
    """Every command that loads a model."""
    generating = ["--prompts", "shapes", "--limit", "1", "--num-inference-steps", "2", "--guidance-scale", "1"]
    training = ["train", "--labeler", "redder", "--max-train-steps", "1", "--output-dir", "out", "--cpu"]
    evaluating = ["eval", *generating, "--scorer", "little_scorers:Redness"]
    commands = {
        "generate": ["generate", *generating, "--model", str(model)],
        "eval": [*evaluating, "--model", str(model), "--baseline", str(tiny_pipeline)],
        "eval --baseline": [*evaluating, "--model", str(tiny_pipeline), "--baseline", str(model)],
        "train": [*training, "--model", str(model)],
        "train --dry-run": [*training, "--model", str(model), "--dry-run"],
    }
    return {name: [*words, "--store", str(store.path)] for name, words in commands.items()}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line_by_every_stage(
    labelled_once: PairStore, tiny_pipeline: Path, model: Path, canary: Path, how: str
):
    make, message = HOSTILE[how]
    make(model)
    for name, words in stages(model, labelled_once, tiny_pipeline).items():
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2, (name, result.output)
        (line,) = result.stderr.splitlines()
        assert message in line
    assert not canary.exists()
    assert labelled_once.rows("select count(*) from runs where status <> 'failed'") == [(0,)]


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_index_is_refused_in_one_line(
    labelled_once: PairStore, tiny_pipeline: Path, model: Path, canary: Path, how: str
):
    text, message = BROKEN[how]
    (model / "model_index.json").write_text(text)
    for name, words in stages(model, labelled_once, tiny_pipeline).items():
        result = CliRunner().invoke(app, words)
        assert result.exit_code in (1, 2), (name, result.output)
        (line,) = result.stderr.splitlines()
        assert name != "generate" or message in line
    assert not canary.exists()


def test_a_repository_of_the_hub_is_checked_like_a_folder(
    labelled_once: PairStore, tiny_pipeline: Path, model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    cache = canary.parent / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = shutil.copytree(model, repository / "snapshots" / ("0" * 40))
    _module_on_the_path(snapshot)
    for name, words in stages(Path("owner/name"), labelled_once, tiny_pipeline).items():
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2, (name, result.output)
        (line,) = result.stderr.splitlines()
        assert "evil_module" in line
    shutil.copyfile(model / "model_index.json", snapshot / "model_index.json")
    assert CliRunner().invoke(app, stages(Path("owner/name"), labelled_once, tiny_pipeline)["generate"]).exit_code == 0
    assert not canary.exists()


def test_the_canary_is_written_if_code_is_loaded(model: Path, canary: Path):
    from diffusers import DiffusionPipeline

    _pipeline_list(model)
    DiffusionPipeline.from_pretrained(model, trust_remote_code=True)
    assert canary.exists()


class Evil:
    def __reduce__(self) -> tuple:
        return exec, (CANARY.replace("__name__", "'unpickled'"),)


@pytest.mark.parametrize(
    ("part", "weights", "evil"),
    [
        ("unet", "diffusion_pytorch_model", True),
        ("unet", "diffusion_pytorch_model", False),
        ("vae", "diffusion_pytorch_model", False),
        ("text_encoder", "pytorch_model", False),
    ],
)
def test_a_folder_with_only_a_pickle_is_refused_and_not_unpickled(
    labelled_once: PairStore, tiny_pipeline: Path, model: Path, canary: Path, part: str, weights: str, evil: bool
):
    (safe,) = (model / part).glob("*.safetensors")
    state: dict[str, Any] = dict(load_file(safe))
    torch.save(state | ({"evil": Evil()} if evil else {}), model / part / f"{weights}.bin")
    safe.unlink()
    for name, words in stages(model, labelled_once, tiny_pipeline).items():
        if name in ("generate", "eval", "train"):
            result = CliRunner().invoke(app, words)
            assert result.exit_code in (1, 5), (name, result.output)
            assert not canary.exists()
            if name != "train":
                assert "safetensors" in result.stderr.splitlines()[-1]
                assert isinstance(result.exception, SystemExit), "a traceback"


def test_the_pickle_would_run(model: Path, canary: Path):
    pickle.loads(pickle.dumps(Evil()))
    assert canary.read_text() == "unpickled"
    assert model.exists()
