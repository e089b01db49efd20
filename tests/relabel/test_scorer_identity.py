"""A scorer's identity changes with everything that can change a score, and with nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_imagereward
import torch
from content import fill
from PIL import Image
from prefloop.relabel import RelabelConfig
from prefloop.relabel.judges.vlm import VLM
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.relabel.scorers.registry import identity, load_scorer
from prefloop.relabel.scorers.vocabulary import read_vocabulary
from prefloop.relabel.stage import relabel
from prefloop.store import IntegrityError, PairStore, UsageError
from transformers import BertTokenizer

PROMPTS = ["a red circle left of a blue square", "two green triangles"]


def swap_words(folder: Path) -> None:
    """Swap the ids of two tokens."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    first, second = ("red", "blue") if "blue" in words else ("red</w>", "blue</w>")
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content))


def setting(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        section = content
        for key in keys[:-1]:
            section = section[key]
        assert section.get(keys[-1]) != value
        section[keys[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return change


OPEN_CLIP = "open_clip_config.json"
CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "pickscore's activation": ("pickscore", setting("config.json", "vision_config", "hidden_act", value="gelu")),
    "pickscore's heads": ("pickscore", setting("config.json", "text_config", "num_attention_heads", value=2)),
    "pickscore's epsilon": ("pickscore", setting("config.json", "vision_config", "layer_norm_eps", value=0.5)),
    "pickscore's end": ("pickscore", setting("config.json", "text_config", "eos_token_id", value=133)),
    "pickscore's words": ("pickscore", swap_words),
    "clip's activation": ("clip", setting(OPEN_CLIP, "model_cfg", "quick_gelu", value=True)),
    "clip's heads": ("clip", setting(OPEN_CLIP, "model_cfg", "vision_cfg", "head_width", value=56)),
    "clip's words": ("clip", swap_words),
    "hps' heads": ("hps", setting(OPEN_CLIP, "model_cfg", "text_cfg", "heads", value=2)),
    "hps' words": ("hps", swap_words),
    "hpsv2's words": ("hpsv2", swap_words),
    "aesthetics' activation": ("aesthetics", setting("config.json", "hidden_act", value="gelu")),
    "imagereward's words": ("imagereward", swap_words),
}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    values = np.random.default_rng(1).integers(0, 256, (2, 80, 64, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def copied(name: str, to: Path) -> Path:
    if name != "imagereward":
        return shutil.copytree(built_in("hps" if name == "hpsv2" else name), to)
    to.mkdir()
    torch.save(test_imagereward.weights(), to / "ImageReward.pt")
    kind: Any = BertTokenizer
    kind(vocab={word: number for number, word in enumerate(test_imagereward.WORDS)}).save_pretrained(to)
    return to


IDENTITIES = {
    "pickscore": "pickscore@7b2d9ce48967",
    "hps": "hps@f6b5178a5a4f",
    "clip": "clip@9c14d371af01",
    "aesthetics": "aesthetics@57c9d55abb98",
}
"""Scores are stored under these: a change of any text that is hashed into them would score every store again."""


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identities_of_the_built_in_weights_do_not_change(name: str):
    assert identity(load_scorer(name, "shapes")) == IDENTITIES[name]


def test_the_identity_of_a_vlm_does_not_change():
    assert identity(load_scorer("vlm", "http://localhost:1/v1#m")) == "vlm@ae70ed457722"


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_or_vocabulary_gives_other_scores_under_another_identity(
    tmp_path: Path, images: list[Image.Image], change: str
):
    name, modify = CHANGES[change]
    folder = copied(name, tmp_path / "weights")
    before = load_scorer(name, str(folder), "cpu")
    scores = before.score(PROMPTS, images)
    modify(folder)
    after = load_scorer(name, str(folder), "cpu")
    assert not np.array_equal(scores, after.score(PROMPTS, images))
    assert identity(before) != identity(after)
    if name != "imagereward":  # cached embeddings are kept apart too
        assert before.backbone != after.backbone  # type: ignore[attr-defined]  # dual encoders have one


@pytest.mark.parametrize("name", ["pickscore", "clip", "hps", "aesthetics", "imagereward"])
def test_a_setting_that_no_score_depends_on_does_not_change_the_identity(
    tmp_path: Path, images: list[Image.Image], name: str
):
    folder = copied(name, tmp_path / "weights")
    before = load_scorer(name, str(folder), "cpu")
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "transformers_version": "9", "note": "another"}, indent=3))
    after = load_scorer(name, str(folder), "cpu")
    assert identity(before) == identity(after)
    assert np.array_equal(before.score(PROMPTS, images), after.score(PROMPTS, images))


def test_pickscores_size_is_part_of_its_identity(tmp_path: Path):
    folder = copied("pickscore", tmp_path / "weights")
    before = load_scorer("pickscore", str(folder))
    setting("config.json", "vision_config", "image_size", value=128)(folder)
    assert identity(before) != identity(load_scorer("pickscore", str(folder)))


def test_the_question_and_the_model_are_part_of_vlms_identity(monkeypatch: pytest.MonkeyPatch):
    def of_model(model: str) -> str:
        return identity(load_scorer("vlm", f"http://localhost:1/v1#{model}"))

    first = of_model("little")
    assert first == of_model("little")
    assert first != of_model("large")
    monkeypatch.setattr(VLM, "template", replace(VLM.template, prompt=VLM.template.prompt.replace("better", "worse")))
    assert first != of_model("little")


def test_earlier_scores_stay_in_the_store_beside_the_new_ones(store: PairStore, tmp_path: Path):
    fill(store, 1)
    folder = copied("clip", tmp_path / "weights")
    config = RelabelConfig(scorers=("clip",), checkpoints={"clip": str(folder)}, device="cpu")
    relabel(config, store)
    before = store.rows("select * from scores order by all")
    setting(OPEN_CLIP, "model_cfg", "quick_gelu", value=True)(folder)
    with pytest.raises(UsageError, match="give --labeler another name"):
        relabel(config, store)
    relabel(RelabelConfig(**{**vars(config), "labeler": "clip-2"}), store)
    assert len(before) == 2
    assert store.rows("select * from scores where scorer = ? order by all", [before[0][0]]) == before
    assert store.rows("select count(*), count(distinct scorer) from scores") == [(4, 2)]


def test_a_vocabulary_reads_the_same_from_either_form_of_its_files(tmp_path: Path):
    single = read_vocabulary(built_in("clip"), "CLIP")
    (tmp_path / "vocab.json").write_text(json.dumps(single.tokens))
    merges = "".join(f"{left} {right}\n" for left, right in single.merges)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    separate = read_vocabulary(tmp_path, "CLIP")
    assert separate.digest == single.digest
    assert separate.tokenizer(135)(PROMPTS).input_ids == single.tokenizer(135)(PROMPTS).input_ids
    (tmp_path / "vocab.txt").write_text("\n".join(test_imagereward.WORDS) + "\n")
    assert read_vocabulary(tmp_path, "BERT").tokens == {
        word: number for number, word in enumerate(test_imagereward.WORDS)
    }


def test_a_vocabulary_of_another_model_is_refused():
    with pytest.raises(IntegrityError, match="tokens up to number 134, but the model has only 134 token embeddings"):
        read_vocabulary(built_in("clip"), "CLIP").tokenizer(134)
    with pytest.raises(IntegrityError, match=r"has no BERT tokenizer: tokenizer.json cannot be read as one"):
        read_vocabulary(built_in("clip"), "BERT")


def test_open_clip_counts_truncated_prompts_after_its_own_cleaning():
    scorer: Any = load_scorer("clip", "shapes", "cpu")
    fits = "red, " * 7  # 14 tokens plus start and end are 16
    assert scorer.n_truncated([fits, fits + ",", "red&#44; " * 7]) == 1
