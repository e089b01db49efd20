"""Which checkpoints HPSv3 reads, what its revision depends on, and what it says of the others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_qwen as tiny
import torch
from prefloop.relabel.scorers.hpsv3 import HPSv3
from prefloop.relabel.scorers.hpsv3_prompt import TEMPLATE
from prefloop.store import IntegrityError, PrefloopError
from safetensors.torch import load_file, save_file
from test_faithful import noise

CONFIG = tiny.CONFIG
REWARD = "<|Reward|>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    tokenizer = tiny.tokenizer(TEMPLATE)
    state = tiny.weights(tokenizer.get_vocab_size() + 1)
    folder = tiny.save(tmp_path_factory.mktemp("hpsv3"), state, tokenizer)
    return SimpleNamespace(folder=folder, state=state, tokenizer=tokenizer, score=score(folder))


@pytest.fixture
def folder(made: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be changed."""
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


def score(folder: Path) -> float:
    return float(HPSv3(str(folder), "cpu").score(["a cat"], [noise(64, 40)])[0])


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(PrefloopError, match=message) as caught:
        score(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_in_three_files_scores_as_in_one(made: SimpleNamespace, tmp_path: Path):
    parts = tiny.save(tmp_path, made.state, made.tokenizer, parts=3)
    assert score(parts) == made.score
    assert [path.name for path in HPSv3(str(parts), "cpu").files] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]


def test_the_names_of_newer_versions_of_transformers_score_the_same(made: SimpleNamespace, tmp_path: Path):
    def newer(name: str) -> str:
        if name.startswith("model."):
            return name.replace("model.", "model.language_model.", 1)
        return f"model.{name}" if name.startswith("visual.") else name

    text = {
        name: CONFIG[name]
        for name in CONFIG
        if name not in ("vision_config", "model_type", "rope_scaling", "rope_theta")
    }
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [1, 1, 2]}
    config = {
        "model_type": "qwen2_vl",
        "vision_config": CONFIG["vision_config"],
        "text_config": text | {"rope_parameters": rope},
    }
    state = {newer(name): value for name, value in made.state.items() if name != "lm_head.weight"}
    assert score(tiny.save(tmp_path, state, made.tokenizer, config)) == made.score


def test_a_tokenizer_that_has_the_reward_token_names_its_number(made: SimpleNamespace, tmp_path: Path):
    # one further token after it: the number of the reward token is then not the last
    named = tiny.tokenizer(TEMPLATE, [*tiny.SPECIAL, REWARD, "<|further|>"])
    state = dict(made.state)
    extra = torch.zeros(1, tiny.HIDDEN)
    state["model.embed_tokens.weight"] = torch.cat([state["model.embed_tokens.weight"], extra])
    folder = tiny.save(tmp_path, state, named)
    assert HPSv3(str(folder), "cpu").reward_id == made.tokenizer.get_vocab_size() == named.token_to_id(REWARD)
    assert score(folder) == made.score


def test_the_language_head_is_not_read_into_the_score(made: SimpleNamespace, folder: Path):
    save_file(made.state | {"lm_head.weight": torch.ones(3, 3)}, folder / "HPSv3.safetensors")
    assert score(folder) == made.score


def test_the_revision_depends_on_all_that_can_change_a_score(made: SimpleNamespace, tmp_path: Path):
    def with_json(folder: Path, file: str, key: str, value: object) -> None:
        change_json(folder / file, lambda content: content.update({key: value}))

    def with_weight(folder: Path) -> None:
        save_file(made.state | {"rm_head.5.bias": torch.zeros(2)}, folder / "HPSv3.safetensors")

    def without_last_pair(folder: Path) -> None:
        change_json(folder / "tokenizer.json", lambda content: content["model"]["merges"].pop())

    changes: dict[str, Callable[[Path], None]] = {
        "nothing": lambda folder: None,  # noqa: ARG005
        "a file's name": lambda folder: (folder / "HPSv3.safetensors").rename(folder / "model.safetensors") and None,
        "weights": with_weight,
        "settings": lambda folder: with_json(folder, "config.json", "rms_norm_eps", 1e-5),
        "rope": lambda folder: with_json(folder, "config.json", "rope_theta", 10_000.0),
        "tokenizer": without_last_pair,
        # not read: the head of the language model's vocabulary, and what only training uses
        "nothing that is read": lambda folder: with_json(folder, "config.json", "attention_dropout", 0.5),
    }
    revisions = {}
    for name, change in changes.items():
        folder = Path(shutil.copytree(made.folder, tmp_path / name))
        change(folder)
        revisions[name] = HPSv3(str(folder), "cpu").revision
    same = {revisions.pop(name) for name in ("nothing", "a file's name", "nothing that is read")}
    revisions["dtype"] = HPSv3(str(made.folder), "cpu", "bfloat16").revision
    assert len(same) == 1
    assert len({*same, *revisions.values()}) == 1 + 5


def test_a_plain_qwen2_vl_is_refused(made: SimpleNamespace, folder: Path):
    save_file({k: v for k, v in made.state.items() if not k.startswith("rm_head.")}, folder / "HPSv3.safetensors")
    refused(folder, r"copy has no reward head \(rm_head.…\): it is a Qwen2-VL or another model, not HPSv3")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rm_head.0.weight", torch.zeros(64, tiny.HIDDEN), "rm_head.0.weight is 64 x 32, expected 1024 x 32"),
        ("rm_head.5.weight", torch.zeros(1, 16), "rm_head.5.weight is 1 x 16, expected 2 x 16"),
        ("rm_head.3.bias", None, "rm_head.3.bias is absent, expected 16"),
        ("rm_head.7.weight", torch.zeros(2, 2), "rm_head.7.weight is 2 x 2, expected absent"),
        ("rm_head.0.weight", torch.zeros(1024, 8), "the head in .* does not fit the settings' hidden_size"),
        (
            "model.layers.1.mlp.up_proj.weight",
            None,
            "missing or with another shape: language_model.layers.1.mlp.up_proj",
        ),
        ("visual.merger.mlp.2.bias", torch.zeros(3), "missing or with another shape: visual.merger.mlp.2.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    made: SimpleNamespace, folder: Path, name: str, value: torch.Tensor | None, message: str
):
    state = {key: tensor for key, tensor in made.state.items() if key != name} | (
        {} if value is None else {name: value}
    )
    save_file(state, folder / "HPSv3.safetensors")
    refused(folder, message)


@pytest.mark.parametrize("further", [-1, 1, 400])
def test_a_reward_token_without_an_embedding_of_its_own_is_refused(made: SimpleNamespace, folder: Path, further: int):
    rows = made.tokenizer.get_vocab_size() + 1 + further  # 400 more: not resized, as in a plain Qwen2-VL
    save_file(made.state | {"model.embed_tokens.weight": torch.zeros(rows, tiny.HIDDEN)}, folder / "HPSv3.safetensors")
    refused(
        folder,
        rf"has {rows} token embeddings, .* tokens, <\|Reward\|> not among them: the reward token has no embedding",
    )


def test_a_vocabulary_of_another_model_is_refused(folder: Path):
    change_json(folder / "tokenizer.json", lambda content: content.update(added_tokens=content["added_tokens"][:2]))
    refused(folder, "tokenizer.json is not the tokenizer of a Qwen2-VL; put the tokenizer.json of Qwen/Qwen2-VL-7B")
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer.json in .*; put that of Qwen/Qwen2-VL-7B-Instruct there")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rms_norm_eps"), "config.json has no rms_norm_eps: it does not describe a Qwen2-VL"),
        (lambda c: c.pop("rope_scaling"), "config.json has no mrope_section"),
        (lambda c: c.update(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_parameters.type cannot be 'yarn'"),
        (lambda c: c.update(use_sliding_window=True), "use_sliding_window cannot be 'True'"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act cannot be 'gelu'"),
        (lambda c: c["vision_config"].pop("embed_dim"), "config.json has no vision_config.embed_dim"),
        (lambda c: c.update(num_attention_heads=3), "do(es)? not (describe|fit) a? ?Qwen2-VL"),
    ],
)
def test_settings_of_another_model_are_refused(folder: Path, change: Callable[[dict], Any], message: str):
    change_json(folder / "config.json", change)
    refused(folder, message)


def test_a_preprocessor_that_makes_other_pixels_is_refused(folder: Path, made: SimpleNamespace):
    # as preprocessor_config.json of Qwen/Qwen2-VL-7B-Instruct
    right: dict[str, Any] = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    for change in ({"image_mean": [0.5, 0.5, 0.5]}, {"patch_size": 16}, {"merge_size": 1}, {"image_std": [1]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(right | change))
        (name,) = change
        refused(folder, rf"preprocessor_config.json: {name} cannot be")
    (folder / "preprocessor_config.json").write_text(json.dumps(right))
    assert score(folder) == made.score


@pytest.mark.parametrize("name", ["../outside.safetensors", "weights.bin", "/etc/passwd", "a\\b.safetensors"])
def test_an_index_that_names_other_files_is_refused(folder: Path, name: str):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"rm_head.0.weight": name}}))
    refused(folder, r"is not a \.safetensors file of this folder")


def test_a_pickle_is_never_read(made: SimpleNamespace, folder: Path):
    torch.save(made.state, folder / "HPSv3.pth")
    refused(folder / "HPSv3.pth", r"HPSv3.pth is not a \.safetensors file")
    assert score(folder) == made.score  # it is ignored beside the right one
    (folder / "HPSv3.safetensors").unlink()
    refused(folder, r"no \.safetensors file in")


def test_a_tensor_in_two_files_is_refused(folder: Path):
    state = load_file(folder / "HPSv3.safetensors")
    save_file({"rm_head.5.bias": state["rm_head.5.bias"]}, folder / "other.safetensors")
    refused(folder, r"rm_head.5.bias is both in .*HPSv3.safetensors and in other.safetensors; keep one")


def test_no_setting_of_a_folder_runs_code(made: SimpleNamespace, folder: Path):
    code = "raise SystemExit('this was run')"
    (folder / "evil.py").write_text(code)
    naming = {"auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}, "trust_remote_code": True}
    change_json(
        folder / "config.json", lambda content: content.update(naming | {"_attn_implementation": "someone/kernel"})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(naming | {"chat_template": "{{ 1 / 0 }}"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(naming))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"}))
    assert score(folder) == made.score


def test_a_damaged_file_is_refused_before_anything_is_scored(folder: Path):
    data = (folder / "HPSv3.safetensors").read_bytes()
    (folder / "HPSv3.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match="does not contain weights that can be loaded safely"):
        HPSv3(str(folder), "cpu")
