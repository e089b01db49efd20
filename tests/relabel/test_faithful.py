"""Each scorer gives the numbers of a plain implementation, for any image and any prompt."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain_clip as plain
import pytest
import torch
from full_models import HEAD_LAYERS, HEADS, aesthetics_head, open_clip_folder, transformers_clip
from PIL import Image
from prefloop.relabel.scorers.registry import load_scorer
from prefloop.store import load_image

PROMPTS = {
    "plain": "a red circle left of a blue square",
    "empty": "",
    "long": "a very long prompt about a castle by the sea, " * 12,
    "entity": "salt &amp; pepper, &quot;quoted&quot; &lt;b&gt;",
    "full width": "ｆｕｌｌ ｗｉｄｔｈ １２３",
    "curly": "a dog\u2019s “smile”…  and\n\ttabs",
    "accents": "Cafe\u0301 ÅNGSTRÖM 猫 🎨 it's 42nd",
}


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth noise, different in every corner, so that an image moved or cropped differently gets another score."""
    coarse = np.random.default_rng(width * 7919 + height).integers(0, 256, (5, 7, len(mode)), dtype=np.uint8)
    return Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC)


def sixteen_bit() -> bytes:
    values = np.asarray(noise(90, 60).convert("L"), np.uint16) * 257 + 3
    return saved(Image.fromarray(values), "PNG")


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    return saved(noise(300, 200), "JPEG", exif=exif)


IMAGES = {
    "square": saved(noise(512, 512), "PNG"),
    "wide": saved(noise(768, 512), "PNG"),
    "odd": saved(noise(640, 427), "PNG"),  # the center crop is off by half a pixel
    "tall": saved(noise(200, 900), "WEBP", lossless=True),
    "tiny": saved(noise(3, 2), "PNG"),
    "as large as the model's": saved(noise(224, 100), "PNG"),
    "16-bit": sixteen_bit(),
    "alpha": saved(noise(300, 260, "RGBA"), "PNG"),
    "palette": saved(noise(256, 200).quantize(32), "PNG"),
    "CMYK": saved(noise(260, 240).convert("CMYK"), "JPEG"),
    "rotated": rotated(),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Checkpoint folders, and their weights under open_clip's names."""
    folder = tmp_path_factory.mktemp("weights")
    pick = transformers_clip(folder / "pickscore")
    backbone = transformers_clip(folder / "aesthetics", activation="quick_gelu")
    return SimpleNamespace(
        folder=folder,
        pickscore=plain.with_open_clip_names(pick.state_dict()),
        scale=pick.logit_scale.exp().item(),
        hps=open_clip_folder(folder / "hps", "HPS_v2.1_compressed.pt", wrapped=True),
        clip=open_clip_folder(folder / "clip", "open_clip_model.safetensors"),
        aesthetics=plain.with_open_clip_names(backbone.state_dict()),
        head=aesthetics_head(folder / "aesthetics" / "head.pth"),
    )


def pickscore(models: SimpleNamespace, prompt: str, image: Image.Image) -> float:
    w = models.pickscore
    embedding = plain.image_embedding(w, plain.crop(image, rounding=False), HEADS["vision"])
    return models.scale * float(embedding @ plain.text_embedding(w, plain.transformers_tokens(prompt), HEADS["text"]))


def hps(models: SimpleNamespace, prompt: str, image: Image.Image) -> float:
    embedding = plain.image_embedding(models.hps, plain.pad(image), HEADS["vision"])
    return float(embedding @ plain.text_embedding(models.hps, plain.open_clip_tokens(prompt), HEADS["text"]))


def clip(models: SimpleNamespace, prompt: str, image: Image.Image) -> float:
    embedding = plain.image_embedding(models.clip, plain.crop(image, rounding=True), HEADS["vision"])
    return float(embedding @ plain.text_embedding(models.clip, plain.open_clip_tokens(prompt), HEADS["text"]))


def aesthetics(models: SimpleNamespace, prompt: str, image: Image.Image) -> float:
    assert isinstance(prompt, str)  # not used
    x = plain.image_embedding(models.aesthetics, plain.crop(image, rounding=True), HEADS["vision"], quick=True)
    for number in HEAD_LAYERS:
        x = models.head[f"layers.{number}.weight"] @ x + models.head[f"layers.{number}.bias"]
    return float(x)


PLAIN = {"pickscore": pickscore, "hps": hps, "hpsv2": hps, "hpsv2.1": hps, "clip": clip, "aesthetics": aesthetics}
TOLERANCE = {"pickscore": 2e-4, "aesthetics": 2e-5}  # cosines are within 1e-5; PickScore scales them by 14


def folder_of(name: str) -> str:
    return "hps" if name.startswith("hps") else name


@pytest.mark.slow(reason="scores in several runs")
@pytest.mark.parametrize("name", PLAIN)
@torch.inference_mode()
def test_a_scorer_equals_its_plain_implementation(models: SimpleNamespace, name: str):
    scorer = load_scorer(name, str(models.folder / folder_of(name)), "cpu")
    images = {kind: load_image(data) for kind, data in IMAGES.items()}
    pairs = [(PROMPTS["plain"], image) for image in images.values()]
    pairs += [(prompt, images["wide"]) for prompt in PROMPTS.values()]
    scores = scorer.score([prompt for prompt, _ in pairs], [image for _, image in pairs])
    expected = np.array([PLAIN[name](models, prompt, image) for prompt, image in pairs])
    tolerance = TOLERANCE.get(name, 1e-5)
    assert scores.dtype == np.float32
    assert np.abs(scores - expected).max() < tolerance
    # the scores differ by enough for the comparison to mean something
    assert np.diff(np.sort(expected[: len(images)])).min() > tolerance
    by_prompt = np.sort(expected[len(images) :])
    if name != "aesthetics":
        assert (np.diff(by_prompt) > tolerance).sum() >= 5


@pytest.mark.slow(reason="scores in several runs")
def test_hps_sees_all_of_a_wide_image_and_clip_its_center(models: SimpleNamespace):
    both = [noise(768, 512), noise(768, 512)]
    changed = np.asarray(both[1]).copy()
    changed[:, :100] = 255 - changed[:, :100]  # the left edge, outside the center square of 512
    both[1] = Image.fromarray(changed)
    prompts = [PROMPTS["plain"]] * 2
    cropped = load_scorer("clip", str(models.folder / "clip"), "cpu").score(prompts, both)
    padded = load_scorer("hps", str(models.folder / "hps"), "cpu").score(prompts, both)
    assert cropped[0] == pytest.approx(cropped[1], abs=1e-6)
    assert abs(padded[0] - padded[1]) > 1e-3


def test_the_tokenizers_of_transformers_and_open_clip_differ():
    for kind in ("entity", "full width", "curly"):
        assert plain.transformers_tokens(PROMPTS[kind]) != plain.open_clip_tokens(PROMPTS[kind])
    assert plain.transformers_tokens(PROMPTS["plain"]) == plain.open_clip_tokens(PROMPTS["plain"])


@pytest.mark.parametrize("name", ["pickscore", "hps", "clip"])
def test_prompts_longer_than_the_text_model_reads_are_counted(models: SimpleNamespace, name: str):
    scorer = load_scorer(name, str(models.folder / folder_of(name)), "cpu")
    fits, one_more = " ".join(["cat"] * 75), " ".join(["cat"] * 76)  # 75 words plus start and end are 77
    assert scorer.n_truncated([fits, one_more, PROMPTS["plain"], one_more]) == 2  # type: ignore[attr-defined]  # optional


@pytest.mark.parametrize("name", ["pickscore", "hps", "clip", "aesthetics"])
def test_a_score_does_not_depend_on_the_position_in_the_batch(models: SimpleNamespace, name: str):
    scorer = load_scorer(name, str(models.folder / folder_of(name)), "cpu")
    images = [load_image(IMAGES[kind]) for kind in ("square", "wide", "tall")]
    prompts = [PROMPTS[kind] for kind in ("plain", "entity", "plain")]
    forward = scorer.score(prompts, images)
    backward = scorer.score(prompts[::-1], images[::-1])[::-1]
    assert forward == pytest.approx(backward, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["pickscore", "hps", "clip", "aesthetics"])
def test_bfloat16_is_another_revision_and_agrees_roughly(models: SimpleNamespace, name: str):
    folder = str(models.folder / folder_of(name))
    exact, half = load_scorer(name, folder, "cpu"), load_scorer(name, folder, "cpu", "bfloat16")
    assert exact.revision != half.revision
    images = [load_image(data) for data in IMAGES.values()]
    prompts = [PROMPTS["plain"]] * len(images)
    full_scores, half_scores = exact.score(prompts, images), half.score(prompts, images)
    assert half_scores.dtype == np.float32
    assert len(set(half_scores.tolist())) == len(half_scores)  # scores are not rounded to bfloat16
    assert np.corrcoef(full_scores, half_scores)[0, 1] > 0.98
