"""The networks of the built-in world's scorers, small and in the classes of the real ones."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from .scene import COLORS, FORMS, SIZE
from .words import MAX_LENGTH, tokenizer

EMBEDDING = 96


class HFDualEncoder(nn.Module):
    """An HF CLIPModel as two functions that return normalized embeddings."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        words = tokenizer()
        torch.manual_seed(seed)
        text = {
            "vocab_size": len(words),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        }
        self.clip: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=_vision(), projection_dim=EMBEDDING))

    def image(self, images: Tensor) -> Tensor:
        return F.normalize(self.clip.get_image_features(pixel_values=images).pooler_output, dim=-1)

    def text(self, ids: Tensor) -> Tensor:
        return F.normalize(self.clip.get_text_features(input_ids=ids).pooler_output, dim=-1)

    @property
    def scale(self) -> Tensor:
        return self.clip.logit_scale.exp()


def _vision() -> dict:
    return {
        "hidden_size": 112,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }


def open_clip_config() -> dict:
    words = tokenizer()
    return {
        "model_cfg": {
            "embed_dim": EMBEDDING,
            "vision_cfg": {
                "image_size": SIZE,
                "patch_size": 8,
                "layers": 4,
                "width": 112,
                "head_width": 28,
                "mlp_ratio": 3,
            },
            "text_cfg": {
                "context_length": MAX_LENGTH,
                "vocab_size": len(words),
                "width": 96,
                "heads": 4,
                "layers": 3,
                "hf_tokenizer_name": "built-in",
            },
        },
        "preprocess_cfg": {},
    }


class OpenCLIPDualEncoder(nn.Module):
    """An open_clip model as two functions that return normalized embeddings."""

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(), indent=1))
        tokenizer().save_pretrained(folder)
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        assert isinstance(model, open_clip.CLIP)
        self.clip = model

    def image(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images, normalize=True)

    def text(self, ids: Tensor) -> Tensor:
        return self.clip.encode_text(ids, normalize=True)

    @property
    def scale(self) -> Tensor:
        return self.clip.logit_scale.exp()


class Aesthetic(nn.Module):
    """A CLIP vision model and a head of linear layers with no activation between them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vision = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=EMBEDDING, **_vision()))
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, 64), nn.Linear(64, 16), nn.Linear(16, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(F.normalize(self.vision(pixel_values=images).image_embeds, dim=-1))[:, 0]


class EncoderWithSceneHead(nn.Module):
    """A dual encoder and, for training only, a layer that predicts the scene from an image's embedding."""

    sizes = (len(COLORS), len(FORMS), len(COLORS), len(FORMS), 3)

    def __init__(self, encoder: "HFDualEncoder | OpenCLIPDualEncoder") -> None:
        super().__init__()
        self.encoder = encoder
        self.scene_head = nn.Linear(EMBEDDING, sum(self.sizes))

    def scene_loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        parts = self.scene_head(embedding * EMBEDDING**0.5).split(self.sizes, dim=1)
        return torch.stack([F.cross_entropy(part, labels[:, at]) for at, part in enumerate(parts)]).mean()
