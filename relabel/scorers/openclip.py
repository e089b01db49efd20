"""What HPS and CLIP share: the cosine of an open_clip model's two embeddings."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.device import best_device
from ...core.errors import IntegrityError
from ...core.ids import canonical
from . import checkpoints as files
from . import settings as s
from .dual_encoder import Embedding, Embeddings, cosines, n_longer, normalised
from .precision import torch_dtype
from .vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURE = "ViT-H-14"
SIZE = 224
CONTEXT = 77

_MODEL: dict[str, s.Check] = {"embed_dim": s.WIDTH, "quick_gelu": s.flag}
_VISION: dict[str, s.Check] = {
    "layers": s.LAYERS,
    "width": s.WIDTH,
    "head_width": s.WIDTH,
    "mlp_ratio": s.number,
    "patch_size": s.PIXELS,
    "image_size": s.PIXELS,
}
_TEXT: dict[str, s.Check] = {
    "context_length": s.TOKENS,
    "vocab_size": s.WORDS,
    "width": s.WIDTH,
    "heads": s.WIDTH,
    "layers": s.LAYERS,
    "mlp_ratio": s.number,
    "hf_tokenizer_name": s.text,  # only whether there is one: it is read from the folder
}


class OpenCLIPScorer(Embedding):
    """A checkpoint for an architecture of open_clip, or a folder with open_clip_config.json, tokenizer and checkpoint.

    A subclass says name, official weights and how a picture becomes pixels.
    """

    name: str
    official: str
    preprocessing: str
    needs_prompt = True
    temperature = 0.01

    def __init__(self, weights: str | None = None, device: str | None = None, dtype: str = "float32") -> None:
        found = files.find(self.name, weights, self.official)
        self.folder = found if found.is_dir() else None
        self.checkpoint = _checkpoint_in(found) if found.is_dir() else found
        self.device, self.dtype = device, dtype
        digest = files.checked(self.checkpoint, {})
        self.settings, self.vocabulary = _read(self.folder) if self.folder else (None, None)
        parts = [] if self.settings is None else [canonical(self.settings)]
        parts += [] if self.vocabulary is None else [self.vocabulary.digest]
        self.backbone = self.revision = files.revision(digest, self.preprocessing, dtype, *parts)
        self.files = [self.checkpoint]
        self.sources = {"weights": weights or self.official, "sha256": digest}

    def preprocess(self, image: "Image") -> Any:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return SIZE if self.settings is None else self.settings["vision_cfg"].get("image_size", SIZE)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import open_clip
        from open_clip.tokenizer import SimpleTokenizer

        state = files.load_tensors(self.checkpoint)  # before the model is made: a bad file is found at once
        made_of: Any = open_clip.get_model_config(ARCHITECTURE) if self.settings is None else self.settings
        name = ARCHITECTURE if self.settings is None else str(self.folder)
        try:
            model: Any = open_clip.CLIP(**_without_tokenizer(made_of))
        except (ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise IntegrityError(f"{name} holds no open_clip model: {line}") from error
        if self.vocabulary is None:
            tokenizer = SimpleTokenizer(context_length=made_of["text_cfg"].get("context_length", CONTEXT))
        else:
            tokenizer = _Tokens(self.vocabulary, model)
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise IntegrityError(
                f"{self.checkpoint} does not fit {name}: {str(error).splitlines()[-1].strip()[:200]}"
            ) from error
        return model.eval().to(best_device(self.device), torch_dtype(self.dtype)), tokenizer

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        model, _ = self._parts
        own = next(model.parameters())
        with torch.inference_mode():
            return normalised(model.encode_image(torch.stack(list(pixels)).to(own.device, own.dtype)))

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        import torch

        model, tokenizer = self._parts
        with torch.inference_mode():
            return normalised(model.encode_text(tokenizer(list(prompts)).to(next(model.parameters()).device)))

    def n_truncated(self, prompts: Sequence[str]) -> int:
        _, tokenizer = self._parts
        if isinstance(tokenizer, _Tokens):
            return tokenizer.n_longer(prompts)
        return sum(len(tokenizer.encode(prompt)) + 2 > tokenizer.context_length for prompt in prompts)  # with its ends

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:
        """In -1..1."""
        assert prompts is not None
        return cosines(images, prompts).astype(np.float32)


class _Tokens:
    """What open_clip makes of a tokenizer of transformers: prompts cleaned as there, filled up and cut to one length."""

    def __init__(self, vocabulary: Vocabulary, model: Any) -> None:
        self.tokenizer = vocabulary.tokenizer(model.vocab_size)
        self.context_length: int = model.context_length

    def __call__(self, prompts: Sequence[str]) -> Any:
        return self.tokenizer(
            self._cleaned(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        ).input_ids

    def n_longer(self, prompts: Sequence[str]) -> int:
        return n_longer(self.tokenizer, self._cleaned(prompts), self.context_length)

    @staticmethod
    def _cleaned(prompts: Sequence[str]) -> list[str]:
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn("whitespace")
        return [clean(prompt) for prompt in prompts]


def _read(folder: Path) -> tuple[dict[str, Any] | None, Vocabulary | None]:
    """A folder's settings and vocabulary, where it has some of its own.

    Raises:
        IntegrityError: where its model is another than a plain one of numbers.
    """
    path = folder / "open_clip_config.json"
    if not path.exists():
        return None, None
    model = s.read_json(path).get("model_cfg")
    towers = {"vision_cfg": _VISION, "text_cfg": _TEXT}
    accepted: dict[str, s.Check] = {name: lambda value: isinstance(value, dict) for name in towers}
    found = s.known(path, model, _MODEL | accepted, "model_cfg", refuse_others=True)
    for name, checks in towers.items():
        found[name] = s.known(path, found.get(name), checks, name, refuse_others=True)
    if not found["text_cfg"].get("hf_tokenizer_name"):
        return found, None
    return found, read_vocabulary(folder, "CLIP")


def _without_tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    text = {name: value for name, value in settings["text_cfg"].items() if name != "hf_tokenizer_name"}
    return settings | {"text_cfg": text}


def _checkpoint_in(folder: Path) -> Path:
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    return names[0] if names else folder / "open_clip_model.safetensors"
