"""PickScore, arXiv 2305.01569: exp(logit scale) times the cosine of a CLIP that was tuned on people's choices."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.device import best_device
from ...core.ids import canonical
from . import checkpoints as files
from .dual_encoder import Embeddings, EmbeddingScoreMixin, cosines, embedded_by_length, n_longer, normalized
from .pixels import center_cropped
from .precision import AUTO, automatic_dtype, torch_dtype
from .sources import Source, official
from .transformers_clip import clip_settings, load_clip
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

OFFICIAL = "yuvalkirstain/PickScore_v1"
WEIGHTS = Source(
    repository=OFFICIAL,
    files=("config.json", "model.safetensors"),
    optional=("tokenizer.json",),
    n_bytes=3_940_000_000,  # size and sha256: the hub's page of the file, at commit a4e4367
    sha256={"model.safetensors": "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e"},
)
TOKENIZER = Source(
    repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    files=("tokenizer.json",),
    same_in=(OFFICIAL,),
    n_bytes=2_220_000,  # as the hub shows it for this tokenizer
)


class PickScore(EmbeddingScoreMixin):
    """The difference of two scores is the logit of the probability that the first is preferred."""

    name = "pickscore"
    needs_prompt = True
    temperature = 1.0
    reads = (WEIGHTS, TOKENIZER)
    # no weights_license: neither the model's card nor its authors' repository names one
    wants_gpu = True

    def __init__(self, checkpoint: str | None = None, device: str | None = None, dtype: str = AUTO) -> None:
        self.folder = files.find(self.name, checkpoint) if checkpoint else official(self.name, WEIGHTS)
        has_tokenizer = any(
            (self.folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")
        )
        self.device = device
        self.dtype = automatic_dtype(device) if dtype == AUTO else dtype
        digest = self.digest = files.checked(self.folder / "model.safetensors", {})
        self.settings = clip_settings(self.folder / "config.json")
        self.vocabulary = read_vocabulary(
            self.folder if has_tokenizer else official(self.name, TOKENIZER).parent, "CLIP"
        )
        self.backbone = self.revision = files.revision(
            digest, "pil, shortest side, crop, 1", self.dtype, canonical(self.settings), self.vocabulary.digest
        )
        self.files = [self.folder / "model.safetensors"]
        self.sources = {"checkpoint": checkpoint or OFFICIAL, "sha256": digest}

    @property
    def size(self) -> int:
        return self.settings["vision_config"].get("image_size", 224)

    @cached_property
    def scale(self) -> float:
        path = self.folder / "model.safetensors"
        return float(np.exp(np.float64(files.load_tensor(path, "logit_scale", self.digest))))

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        model = load_clip(self.settings, self.folder / "model.safetensors", torch_dtype(self.dtype), self.digest)
        tokenizer = self.vocabulary.tokenizer(model.config.text_config.vocab_size)
        return model.to(best_device(self.device)), tokenizer

    def preprocess(self, image: "Image") -> Any:
        return center_cropped(image, self.size, "transformers")

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        model, _ = self._parts
        with torch.inference_mode():
            batch = torch.stack(list(pixels)).to(model.device, model.dtype)
            return normalized(model.get_image_features(pixel_values=batch).pooler_output)

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        import torch

        model, tokenizer = self._parts
        max_length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
        )

        def embed(rows: Any, length: int) -> Embeddings:
            ids, mask = (kind[rows, :length].to(model.device) for kind in (tokens.input_ids, tokens.attention_mask))
            return normalized(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)

        with torch.inference_mode():
            return embedded_by_length(tokens.attention_mask.sum(1), embed)

    def n_truncated(self, prompts: Sequence[str]) -> int:
        model, tokenizer = self._parts
        return n_longer(tokenizer, prompts, model.config.text_config.max_position_embeddings)

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:
        assert prompts is not None
        return (self.scale * cosines(images, prompts)).astype(np.float32)
