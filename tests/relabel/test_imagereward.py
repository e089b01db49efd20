"""ImageReward equals a plain implementation of BLIP, from a checkpoint with its authors' names."""

from pathlib import Path
from typing import Any

import numpy as np
import plain_clip as plain
import pytest
import torch
import torch.nn.functional as F
from prefloop.relabel.scorers.imagereward import ImageReward
from prefloop.store import IntegrityError, load_image
from test_faithful import IMAGES
from torch import Tensor
from transformers import BertTokenizer

WIDE, NARROW, LAYERS = 128, 64, 2  # heads of 64: two in the vision model, one in the text model
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s", "left", "of", "blue", "square", ","]
Weights = dict[str, Tensor]


def weights() -> Weights:
    generator = torch.Generator().manual_seed(5)
    found: Weights = {}

    def linear(name: str, to: int, of: int) -> None:
        found[f"{name}.weight"] = torch.randn(to, of, generator=generator) * of**-0.5
        found[f"{name}.bias"] = torch.randn(to, generator=generator) * 0.1

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = 1 + torch.randn(width, generator=generator) * 0.1
        found[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.1

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{vision}.cls_token"] = torch.randn(1, 1, WIDE, generator=generator)
    found[f"{vision}.pos_embed"] = torch.randn(1, 197, WIDE, generator=generator)
    found[f"{vision}.patch_embed.proj.weight"] = torch.randn(WIDE, 3, 16, 16, generator=generator) * 0.05
    found[f"{vision}.patch_embed.proj.bias"] = torch.randn(WIDE, generator=generator)
    norm(f"{vision}.norm", WIDE)
    found[f"{text}.embeddings.word_embeddings.weight"] = torch.randn(len(WORDS), NARROW, generator=generator)
    found[f"{text}.embeddings.position_embeddings.weight"] = torch.randn(40, NARROW, generator=generator)
    norm(f"{text}.embeddings.LayerNorm", NARROW)
    for n in range(LAYERS):
        for one in (1, 2):
            norm(f"{vision}.blocks.{n}.norm{one}", WIDE)
        linear(f"{vision}.blocks.{n}.attn.qkv", 3 * WIDE, WIDE)
        linear(f"{vision}.blocks.{n}.attn.proj", WIDE, WIDE)
        linear(f"{vision}.blocks.{n}.mlp.fc1", 4 * WIDE, WIDE)
        linear(f"{vision}.blocks.{n}.mlp.fc2", WIDE, 4 * WIDE)
        at = f"{text}.encoder.layer.{n}"
        for kind, of in (("attention", NARROW), ("crossattention", WIDE)):
            linear(f"{at}.{kind}.self.query", NARROW, NARROW)
            linear(f"{at}.{kind}.self.key", NARROW, of)
            linear(f"{at}.{kind}.self.value", NARROW, of)
            linear(f"{at}.{kind}.output.dense", NARROW, NARROW)
            norm(f"{at}.{kind}.output.LayerNorm", NARROW)
        linear(f"{at}.intermediate.dense", 4 * NARROW, NARROW)
        linear(f"{at}.output.dense", NARROW, 4 * NARROW)
        norm(f"{at}.output.LayerNorm", NARROW)
    for number, (to, of) in {0: (32, NARROW), 2: (16, 32), 4: (8, 16), 6: (4, 8), 7: (1, 4)}.items():
        linear(f"mlp.layers.{number}", to, of)
    found["blip.text_proj.weight"] = torch.zeros(8, NARROW)  # from its pretraining; not used
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(weights(), folder / "ImageReward.pt")
    kind: Any = BertTokenizer
    kind(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=512).save_pretrained(folder)
    return folder


def lin(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with heads of 64."""
    q, k, v = (one.unflatten(-1, (-1, 64)).transpose(0, 1) for one in (q, k, v))
    return ((q @ k.transpose(1, 2) / 8).softmax(-1) @ v).transpose(0, 1).flatten(1)


def reward(w: Weights, tokens: list[int], pixels: Tensor) -> float:
    """The reward of one image for one prompt, without padding."""
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    patches = F.conv2d(
        pixels[None], w[f"{vision}.patch_embed.proj.weight"], w[f"{vision}.patch_embed.proj.bias"], stride=16
    )
    x = torch.cat([w[f"{vision}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{vision}.pos_embed"][0]
    for n in range(LAYERS):
        at = f"{vision}.blocks.{n}"
        q, k, v = lin(w, f"{at}.attn.qkv", norm(w, f"{at}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + lin(w, f"{at}.attn.proj", attend(q, k, v))
        x = x + lin(w, f"{at}.mlp.fc2", F.gelu(lin(w, f"{at}.mlp.fc1", norm(w, f"{at}.norm2", x, 1e-6))))
    grid = norm(w, f"{vision}.norm", x, 1e-6)
    y = w[f"{text}.embeddings.word_embeddings.weight"][tokens]
    y = y + w[f"{text}.embeddings.position_embeddings.weight"][: len(tokens)]
    y = norm(w, f"{text}.embeddings.LayerNorm", y, 1e-12)
    for n in range(LAYERS):
        for kind in ("attention", "crossattention"):
            at = f"{text}.encoder.layer.{n}.{kind}"
            of = y if kind == "attention" else grid
            mixed = attend(lin(w, f"{at}.self.query", y), lin(w, f"{at}.self.key", of), lin(w, f"{at}.self.value", of))
            y = norm(w, f"{at}.output.LayerNorm", y + lin(w, f"{at}.output.dense", mixed), 1e-12)
        at = f"{text}.encoder.layer.{n}"
        wide = F.gelu(lin(w, f"{at}.intermediate.dense", y))
        y = norm(w, f"{at}.output.LayerNorm", y + lin(w, f"{at}.output.dense", wide), 1e-12)
    r = y[0]
    for number in (0, 2, 4, 6, 7):
        r = lin(w, f"mlp.layers.{number}", r)
    return (float(r) - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_equals_its_plain_implementation(folder: Path):
    w = weights()
    images = [load_image(IMAGES[kind]) for kind in ("square", "odd", "tall", "tiny", "alpha")]
    # token ids in the small vocabulary, between [CLS] and [SEP]; at most 35
    prompts = {
        "a red circle left of a blue square": [2, 5, 6, 7, 9, 10, 5, 11, 12, 3],
        "": [2, 3],
        "Red circles, square": [2, 6, 7, 8, 13, 12, 3],
        "a red " * 30: [2, *[5, 6] * 16, 5, 3],
    }
    pairs = [(prompt, image) for prompt in prompts for image in images]
    scores = ImageReward(str(folder), "cpu").score([p for p, _ in pairs], [image for _, image in pairs])
    expected = np.array([reward(w, prompts[p], plain.crop(image, rounding=True)) for p, image in pairs])
    assert scores.dtype == np.float32
    assert np.abs(scores - expected).max() < 2e-5
    assert np.diff(np.sort(expected)).min() > 2e-5  # far enough apart for the comparison to mean something


def test_imagereward_pads_prompts_only_to_the_longest_of_the_batch(folder: Path):
    scorer = ImageReward(str(folder), "cpu")
    embeddings, images = scorer._parts[1].embeddings.word_embeddings, [load_image(IMAGES["square"])] * 2
    shapes = []
    embeddings.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    together = scorer.score(["a red circle", "a"], images)  # of 5 and 3 tokens, [CLS] and [SEP] included
    alone = scorer.score(["a"], images[:1])
    scorer.score(["a", "a red " * 30], images)
    assert shapes == [(2, 5), (1, 3), (2, 35)]
    assert together[1] == pytest.approx(alone[0], abs=1e-5)
    assert abs(together[0] - together[1]) > 1e-3


def test_imagereward_counts_prompts_of_more_than_35_tokens(folder: Path):
    fits, one_more = "a " * 33, "a " * 34  # plus [CLS] and [SEP]
    assert ImageReward(str(folder), "cpu").n_truncated([fits, one_more]) == 1


@pytest.mark.parametrize("key", ["blip.visual_encoder.blocks.1.attn.qkv.bias", "mlp.layers.7.weight"])
def test_a_checkpoint_without_a_weight_is_refused(folder: Path, tmp_path: Path, key: str):
    state = weights()
    del state[key]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(state, tmp_path / "ImageReward.pt")
    scorer = ImageReward(str(tmp_path), "cpu")
    with pytest.raises(IntegrityError, match="is not an ImageReward checkpoint"):
        scorer.score(["a"], [load_image(IMAGES["tiny"])])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("blip.visual_encoder.pos_embed", torch.zeros(1)),
        ("blip.visual_encoder.patch_embed.proj.weight", torch.zeros(3, 3)),
        ("blip.text_encoder.embeddings.word_embeddings.weight", torch.zeros(len(WORDS), 32)),
        ("blip.text_encoder.encoder.layer.x.weight", torch.zeros(1)),
        ("mlp.layers.x.weight", torch.zeros(1)),
        ("mlp.layers.0.weight", torch.zeros(1)),
    ],
)
def test_weights_of_an_odd_shape_or_name_are_refused_in_one_line(
    folder: Path, tmp_path: Path, name: str, value: Tensor
):
    torch.save(weights() | {name: value}, tmp_path / "ImageReward.pt")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(IntegrityError, match="is not an ImageReward checkpoint"):
        ImageReward(str(tmp_path), "cpu").score(["a"], [load_image(IMAGES["tiny"])])
