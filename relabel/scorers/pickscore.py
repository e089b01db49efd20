"""PickScore, arXiv 2305.01569: exp(logit scale) times the cosine of a CLIP that was tuned on people's choices."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.device import best_device
from ...core.ids import canonical
from . import checkpoints as files
from .dual_encoder import Embedding, Embeddings, cosines, n_longer, normalised
from .pixels import cropped
from .precision import torch_dtype
from .transformers_clip import clip_settings, load_clip
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

OFFICIAL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore(Embedding):
    """The difference of two scores is the logit of the first being preferred."""

    name = "pickscore"
    needs_prompt = True
    temperature = 1.0

    def __init__(self, weights: str | None = None, device: str | None = None, dtype: str = "float32") -> None:
        self.folder = files.find(self.name, weights, OFFICIAL)
        here = any((self.folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json"))
        self.device, self.dtype = device, dtype
        digest = files.checked(self.folder / "model.safetensors", {})
        self.settings = clip_settings(self.folder / "config.json")
        self.vocabulary = read_vocabulary(self.folder if here else files.from_hub(self.name, PROCESSOR), "CLIP")
        self.backbone = self.revision = files.revision(
            digest, "pil, shortest side, crop, 1", dtype, canonical(self.settings), self.vocabulary.digest
        )
        self.files = [self.folder / "model.safetensors"]
        self.sources = {"weights": weights or OFFICIAL, "sha256": digest}

    @property
    def size(self) -> int:
        return self.settings["vision_config"].get("image_size", 224)

    @cached_property
    def scale(self) -> float:
        return float(np.exp(np.float64(files.one_tensor(self.folder / "model.safetensors", "logit_scale"))))

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        model = load_clip(self.settings, self.folder / "model.safetensors", torch_dtype(self.dtype))
        tokenizer = self.vocabulary.tokenizer(model.config.text_config.vocab_size)
        return model.to(best_device(self.device)), tokenizer

    def preprocess(self, image: "Image") -> Any:
        return cropped(image, self.size, "transformers")

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        model, _ = self._parts
        with torch.inference_mode():
            batch = torch.stack(list(pixels)).to(model.device, model.dtype)
            return normalised(model.get_image_features(pixel_values=batch).pooler_output)

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        import torch

        model, tokenizer = self._parts
        longest = model.config.text_config.max_position_embeddings
        words = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            found = model.get_text_features(input_ids=words.input_ids, attention_mask=words.attention_mask)
            return normalised(found.pooler_output)

    def n_truncated(self, prompts: Sequence[str]) -> int:
        model, tokenizer = self._parts
        return n_longer(tokenizer, prompts, model.config.text_config.max_position_embeddings)

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:
        assert prompts is not None
        return (self.scale * cosines(images, prompts)).astype(np.float32)
