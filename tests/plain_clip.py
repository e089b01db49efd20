"""A plain CLIP: pixels and tokens to embeddings, one at a time, from a dict of weights with open_clip's names.

The scorers are compared with this, so it imports nothing from them or from the libraries they call.
"""

import gzip
import html
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import ftfy
import numpy as np
import regex
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Weights = Mapping[str, Tensor]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


# Pixels


def crop(image: Image.Image, size: int = 224, *, rounding: bool) -> Tensor:
    """Shortest side to `size`, bicubic; center crop, whose offset torchvision rounds and transformers floors."""
    width, height = image.size
    if width <= height:
        image = image.resize((size, int(size * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(size * width / height), size), Image.Resampling.BICUBIC)
    values = np.asarray(image)
    spare = [values.shape[0] - size, values.shape[1] - size]
    top, left = [round(pixels / 2) if rounding else pixels // 2 for pixels in spare]
    square = torch.tensor(values[top : top + size, left : left + size].astype(np.float32) / 255).permute(2, 0, 1)
    return (square - MEAN) / STD


def pad(image: Image.Image, size: int = 224) -> Tensor:
    """Longest side to `size`, bicubic on floats with antialiasing; padded with zeros, then normalized."""
    values = torch.tensor(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]
    longest = max(values.shape[2:])
    height, width = (max(1, round(side * (size / longest))) for side in values.shape[2:])
    if longest != size:
        values = F.interpolate(values, (height, width), mode="bicubic", antialias=True, align_corners=False)
    canvas = torch.zeros(3, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[:, top : top + height, left : left + width] = values[0]
    return (canvas - MEAN) / STD


# Tokens


@cache
def _byte_pairs() -> tuple[dict[str, int], dict[tuple[str, str], int], dict[int, str]]:
    """Token → id, pair → rank, byte → the character that represents it."""
    text = gzip.decompress((files("open_clip") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
    tokens = list(letters.values())
    tokens += [f"{token}</w>" for token in tokens] + ["".join(merge) for merge in merges]
    vocabulary = {token: at for at, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return vocabulary, {(a, b): rank for rank, (a, b) in enumerate(merges)}, letters


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """For a tokenizer of transformers."""
    vocabulary, ranks, _ = _byte_pairs()
    return vocabulary, list(ranks)


def _encoded(text: str) -> list[int]:
    vocabulary, ranks, letters = _byte_pairs()
    tokens = []
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", text):
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, at = min((ranks.get((parts[i], parts[i + 1]), 10**9), i) for i in range(len(parts) - 1))
            if rank == 10**9:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        tokens += [vocabulary[part] for part in parts]
    return [49406, *tokens[:75], 49407]


def transformers_tokens(prompt: str) -> list[int]:
    return _encoded(re.sub(r"\s+", " ", unicodedata.normalize("NFC", prompt)).lower())


def open_clip_tokens(prompt: str) -> list[int]:
    text = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return _encoded(" ".join(text.split()).lower())


# Embeddings


def image_embedding(w: Weights, pixels: Tensor, heads: int, *, quick: bool = False) -> Tensor:
    """(E,), of length 1."""
    patches = F.conv2d(pixels[None], w["visual.conv1.weight"], stride=w["visual.conv1.weight"].shape[-1])
    x = torch.cat([w["visual.class_embedding"][None], patches[0].flatten(1).T]) + w["visual.positional_embedding"]
    x = _norm(w, "visual.ln_pre", x)
    x = _blocks(w, "visual.transformer.resblocks", x, heads, None, quick)
    return F.normalize(_norm(w, "visual.ln_post", x[0]) @ w["visual.proj"], dim=0)


def text_embedding(w: Weights, tokens: list[int], heads: int, *, quick: bool = False) -> Tensor:
    """(E,), of length 1; taken at the end token."""
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"][: len(tokens)]
    later = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)
    x = _blocks(w, "transformer.resblocks", x, heads, later, quick)
    return F.normalize(_norm(w, "ln_final", x[-1]) @ w["text_projection"], dim=0)


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _blocks(w: Weights, name: str, x: Tensor, heads: int, mask: Tensor | None, quick: bool) -> Tensor:
    n = 0
    while f"{name}.{n}.ln_1.weight" in w:
        at = f"{name}.{n}"
        qkv = _norm(w, f"{at}.ln_1", x) @ w[f"{at}.attn.in_proj_weight"].T + w[f"{at}.attn.in_proj_bias"]
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in qkv.chunk(3, -1)
        )  # (heads, tokens, width)
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        mixed = ((logits if mask is None else logits + mask).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ w[f"{at}.attn.out_proj.weight"].T + w[f"{at}.attn.out_proj.bias"]
        wide = _norm(w, f"{at}.ln_2", x) @ w[f"{at}.mlp.c_fc.weight"].T + w[f"{at}.mlp.c_fc.bias"]
        wide = wide * torch.sigmoid(1.702 * wide) if quick else F.gelu(wide)
        x = x + wide @ w[f"{at}.mlp.c_proj.weight"].T + w[f"{at}.mlp.c_proj.bias"]
        n += 1
    return x


def with_open_clip_names(state: Weights) -> dict[str, Tensor]:
    """Weights of transformers' CLIPModel under open_clip's names."""
    renamed = {
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
    }
    towers = {"vision_model": "visual.transformer"}
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    if "text_projection.weight" in state:
        renamed["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
        renamed["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
        renamed["text_projection"] = state["text_projection.weight"].T
        towers["text_model"] = "transformer"
        norms["text_model.final_layer_norm"] = "ln_final"
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inside |= {"self_attn.out_proj": "attn.out_proj"}
    for kind in ("weight", "bias"):
        renamed |= {f"{to}.{kind}": state[f"{name}.{kind}"] for name, to in norms.items()}
        for tower, to in towers.items():
            n = 0
            while f"{tower}.encoder.layers.{n}.layer_norm1.weight" in state:
                at, target = f"{tower}.encoder.layers.{n}", f"{to}.resblocks.{n}"
                renamed |= {f"{target}.{new}.{kind}": state[f"{at}.{old}.{kind}"] for old, new in inside.items()}
                qkv = [state[f"{at}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                renamed[f"{target}.attn.in_proj_{kind}"] = torch.cat(qkv)
                n += 1
    return renamed
