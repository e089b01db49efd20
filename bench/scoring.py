"""Images scored per second, compared with the selectors of the Diffusion-DPO reference, which encode one pair at a time.

    OMP_NUM_THREADS=1 python -m prefloop.bench.scoring

Random weights of CLIP ViT-B/32's size, 512 x 512 PNG images. Both take turns in one process; medians of process time and of
wall-clock time. Ours includes everything from files to scores in a store and cached embeddings.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import open_clip
import torch
from PIL import Image
from prefloop.core.signals import StopSignal
from prefloop.relabel.scorers.hps import HPS
from prefloop.relabel.scorers.pickscore import PickScore
from prefloop.relabel.scores import score_images, unscored
from prefloop.store import PairStore, prompt_id
from prefloop.store.images import png_bytes
from prefloop.store.pairstore import new_pair
from torchvision.transforms import functional as tv
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
Task = list[tuple[str, Path, Path]]


def save_pickscore(folder: Path, settings: CLIPConfig) -> None:
    """Write a PickScore with random weights.

    Args:
        settings: its size; the vocabulary is CLIP's in any case.
    """
    torch.manual_seed(0)
    words: Any = open_clip.tokenizer.SimpleTokenizer()
    text: Any = settings.text_config
    text.vocab_size, text.bos_token_id, text.eos_token_id, text.pad_token_id = 49408, 49406, 49407, 49407
    CLIPModel(settings).save_pretrained(folder)
    tokenizer: Any = CLIPTokenizer
    tokens = [*list(words.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]  # open_clip has other names for them
    vocabulary = {token: at for at, token in enumerate(tokens)}
    tokenizer(vocab=vocabulary, merges=list(words.bpe_ranks), model_max_length=77).save_pretrained(folder)


def save_checkpoints(folder: Path) -> None:
    """Write a PickScore and an HPS of ViT-B/32's size, in their own formats."""
    save_pickscore(folder / "pickscore", CLIPConfig())
    (folder / "hps").mkdir()
    settings = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    (folder / "hps" / "open_clip_config.json").write_text(json.dumps(settings))
    state = open_clip.create_model("ViT-B-32", load_weights=False).state_dict()
    torch.save({"state_dict": state}, folder / "hps" / "hps.pt")


def filled(folder: Path, n_prompts: int, candidates: int) -> tuple[PairStore, Task]:
    """A store of prompts with candidates and all their pairs, and the same pairs as a list for the reference."""
    store, rng, task = PairStore.create(folder), np.random.default_rng(0), []
    prompts = [f"a photograph of thing number {number}, with some words more" for number in range(n_prompts)]
    store.add_prompts([(prompt, {}) for prompt in prompts])
    for prompt in prompts:
        rows = []
        for _ in range(candidates):
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((512, 512))
            noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (512, 512, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            rows.append(store.write_image(png_bytes(image), 512, 512))
        store.append("images", rows)
        both = list(combinations([row["image_id"] for row in rows], 2))
        store.append("pairs", [new_pair(prompt_id(prompt), a, b, "generate") for a, b in both])
        task += [(prompt, store.image_path(a), store.image_path(b)) for a, b in both]
    store.ingest()
    return store, task


def pickscore_selector(folder: Path, dtype: torch.dtype) -> Callable[[Task], None]:
    """As in the reference: encode the two images of a pair and its prompt, each time.

    Like its AutoProcessor, a lone prompt is not padded, and images are resized by torchvision.
    """
    model: Any = CLIPModel.from_pretrained(folder / "pickscore", dtype=dtype)
    model.eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder / "pickscore"), CLIPImageProcessor()

    @torch.no_grad()
    def select(task: Task) -> None:
        for prompt, *paths in task:
            pixels = processor(images=[Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
            words = tokenizer(prompt, padding=True, max_length=77, truncation=True, return_tensors="pt")
            image_embeds = model.get_image_features(pixel_values=pixels.to(dtype)).pooler_output
            text_embeds = model.get_text_features(**words).pooler_output
            image_embeds = image_embeds / image_embeds.norm(dim=-1, keepdim=True)
            text_embeds = text_embeds / text_embeds.norm(dim=-1, keepdim=True)
            (model.logit_scale.exp() * (text_embeds @ image_embeds.T)[0]).argmax().item()

    return select


def hps_selector(folder: Path, dtype: torch.dtype) -> Callable[[Task], None]:
    """As in the reference: encode one image and its prompt at a time."""
    model: Any = open_clip.create_model("ViT-B-32", load_weights=False).eval()
    model.load_state_dict(torch.load(folder / "hps" / "hps.pt", weights_only=True)["state_dict"])
    model.to(dtype)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    @torch.no_grad()
    def select(task: Task) -> None:
        for prompt, *paths in task:
            scores = []
            for path in paths:
                pixels = tv.resize(tv.to_tensor(Image.open(path)), [224, 224], tv.InterpolationMode.BICUBIC)
                pixels = tv.normalize(pixels, MEAN, DEVIATION)[None].to(dtype)
                image_embeds, text_embeds, _ = model(pixels, tokenizer([prompt]))
                scores.append((image_embeds @ text_embeds.T).item())
            max(scores)

    return select


def score_all(scorer: Any, store: PairStore, batch_size: int) -> None:
    """Score every image of a store with prefloop."""
    scorer.revision = scorer.backbone = uuid4().hex  # so that no score and no embedding is cached
    items = unscored(store, f"{scorer.name}@{scorer.revision}", ("generate",))
    summary = score_images(store, scorer, items, batch_size=batch_size, run_id=uuid4(), stop=StopSignal())
    assert summary["scored"] == len(items)


def timed(call: Callable[[], None]) -> tuple[float, float]:
    """Process and wall-clock seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoints(folder)
        selectors = {"pickscore": pickscore_selector, "hps": hps_selector}
        scorers = {
            "pickscore": PickScore(str(folder / "pickscore"), "cpu", options.dtype),
            "hps": HPS(str(folder / "hps"), "cpu", options.dtype),
        }
        for candidates in (2, 4):
            store, task = filled(folder / f"store{candidates}", options.images // candidates, candidates)
            for scorer_name, scorer in scorers.items():
                select = selectors[scorer_name](folder, torch.float32)
                select(task[:1])
                scorer.score(["warm"], [Image.open(task[0][1])])
                rounds = [
                    (
                        timed(lambda s=select, t=task: s(t)),
                        timed(lambda s=scorer, f=store: score_all(s, f, options.batch_size)),
                    )
                    for _ in range(options.rounds)
                ]
                for clock, at in (("process", 0), ("wall", 1)):
                    reference = statistics.median(seconds[at] for seconds, _ in rounds)
                    ours = statistics.median(seconds[at] for _, seconds in rounds)
                    print(
                        f"{scorer_name:<10}{candidates} candidates  {clock:<8} reference {options.images / reference:6.2f} "
                        f"images/s  ours {options.dtype} {options.images / ours:6.2f} images/s  ratio {reference / ours:.2f}"
                    )


if __name__ == "__main__":
    main()
