"""What HPS and CLIP share: the cosine of an open_clip model's image and text embeddings."""

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
from .dual_encoder import Embeddings, EmbeddingScoreMixin, cosines, embedded_by_length, n_longer, normalized
from .precision import AUTO, automatic_dtype, torch_dtype
from .sources import Source, official
from .vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURE = "ViT-H-14"
SIZE = 224
CONTEXT = 77

_MODEL: dict[str, s.Check] = {"embed_dim": s.WIDTH, "quick_gelu": s.boolean}
_VISION: dict[str, s.Check] = {
    "layers": s.LAYERS,
    "width": s.WIDTH,
    "head_width": s.WIDTH,
    "mlp_ratio": s.positive_number,
    "patch_size": s.PIXELS,
    "image_size": s.PIXELS,
}
_TEXT: dict[str, s.Check] = {
    "context_length": s.TOKENS,
    "vocab_size": s.VOCABULARY,
    "width": s.WIDTH,
    "heads": s.WIDTH,
    "layers": s.LAYERS,
    "mlp_ratio": s.positive_number,
    "hf_tokenizer_name": s.string,  # only its presence counts: the tokenizer is read from the folder
}


class OpenCLIPScorer(EmbeddingScoreMixin):
    """A checkpoint for an architecture of open_clip, or a folder with open_clip_config.json, tokenizer and checkpoint.

    A subclass sets name, official checkpoint and preprocessing.
    """

    name: str
    official: Source
    preprocessing: str
    needs_prompt = True
    temperature = 0.01
    wants_gpu = True

    def __init__(self, checkpoint: str | None = None, device: str | None = None, dtype: str = AUTO) -> None:
        path = files.find(self.name, checkpoint) if checkpoint else official(self.name, self.official)
        self.folder = path if path.is_dir() else None
        self.weights_file = _weights_in(path) if path.is_dir() else path
        self.device = device
        self.dtype = automatic_dtype(device) if dtype == AUTO else dtype
        digest = self.digest = files.checked(self.weights_file, {})
        self.settings, self.vocabulary = _read_settings(self.folder) if self.folder else (None, None)
        parts = [] if self.settings is None else [canonical(self.settings)]
        parts += [] if self.vocabulary is None else [self.vocabulary.digest]
        self.backbone = self.revision = files.revision(digest, self.preprocessing, self.dtype, *parts)
        self.files = [self.weights_file]
        self.sources = {"checkpoint": checkpoint or self.official.name, "sha256": digest}

    def preprocess(self, image: "Image") -> Any:
        raise NotImplementedError

    @property
    def size(self) -> int:
        return SIZE if self.settings is None else self.settings["vision_cfg"].get("image_size", SIZE)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        import open_clip
        from open_clip.tokenizer import SimpleTokenizer

        state = files.load_tensors(
            self.weights_file, self.digest
        )  # before the model is built: a bad file fails at once
        settings: Any = open_clip.get_model_config(ARCHITECTURE) if self.settings is None else self.settings
        name = ARCHITECTURE if self.settings is None else str(self.folder)
        try:
            model: Any = open_clip.CLIP(**_without_tokenizer(settings))
        except (ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise IntegrityError(f"{name} does not contain an open_clip model: {line}") from error
        if self.vocabulary is None:
            tokenizer = SimpleTokenizer(context_length=settings["text_cfg"].get("context_length", CONTEXT))
        else:
            tokenizer = _Tokenizer(self.vocabulary, model)
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise IntegrityError(
                f"{self.weights_file} does not fit {name}: {str(error).splitlines()[-1].strip()[:200]}"
            ) from error
        return model.eval().to(best_device(self.device), torch_dtype(self.dtype)), tokenizer

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        import torch

        model, _ = self._parts
        parameter = next(model.parameters())
        with torch.inference_mode():
            return normalized(model.encode_image(torch.stack(list(pixels)).to(parameter.device, parameter.dtype)))

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        import torch

        model, tokenizer = self._parts
        tokens = tokenizer(list(prompts))

        def embed(rows: Any, length: int) -> Embeddings:
            # open_clip adds all its positions to the tokens, so a shorter prompt needs fewer positions
            short = {"positional_embedding": model.positional_embedding[:length]}
            short["attn_mask"] = model.attn_mask[:length, :length]
            ids = tokens[rows, :length].to(model.positional_embedding.device)
            return normalized(torch.func.functional_call(model, short, (None, ids))[1])

        with torch.inference_mode():  # it takes the embedding at the largest token; attention is causal
            return embedded_by_length(tokens.argmax(1) + 1, embed)

    def n_truncated(self, prompts: Sequence[str]) -> int:
        _, tokenizer = self._parts
        if isinstance(tokenizer, _Tokenizer):
            return tokenizer.n_longer(prompts)
        # + 2: start and end
        return sum(len(tokenizer.encode(prompt)) + 2 > tokenizer.context_length for prompt in prompts)

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> Any:
        """-1 to 1."""
        assert prompts is not None
        return cosines(images, prompts).astype(np.float32)


class _Tokenizer:
    """A tokenizer of transformers used as open_clip does: prompts are cleaned, padded and truncated to one length."""

    def __init__(self, vocabulary: Vocabulary, model: Any) -> None:
        self.tokenizer = vocabulary.tokenizer(model.vocab_size)
        self.context_length: int = model.context_length

    def __call__(self, prompts: Sequence[str]) -> Any:
        return self.tokenizer(
            self._clean(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        ).input_ids

    def n_longer(self, prompts: Sequence[str]) -> int:
        return n_longer(self.tokenizer, self._clean(prompts), self.context_length)

    @staticmethod
    def _clean(prompts: Sequence[str]) -> list[str]:
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn("whitespace")
        return [clean(prompt) for prompt in prompts]


def _read_settings(folder: Path) -> tuple[dict[str, Any] | None, Vocabulary | None]:
    """A folder's settings and vocabulary; None for what it lacks.

    Raises:
        IntegrityError: if the settings hold more than the plain numbers of a vision and a text transformer.
    """
    path = folder / "open_clip_config.json"
    if not path.exists():
        return None, None
    model = s.read_json(path).get("model_cfg")
    checks_of = {"vision_cfg": _VISION, "text_cfg": _TEXT}
    sections: dict[str, s.Check] = {name: lambda value: isinstance(value, dict) for name in checks_of}
    settings = s.known(path, model, _MODEL | sections, "model_cfg", refuse_others=True)
    for name, checks in checks_of.items():
        settings[name] = s.known(path, settings.get(name), checks, name, refuse_others=True)
    if not settings["text_cfg"].get("hf_tokenizer_name"):
        return settings, None
    return settings, read_vocabulary(folder, "CLIP")


def _without_tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    text = {name: value for name, value in settings["text_cfg"].items() if name != "hf_tokenizer_name"}
    return settings | {"text_cfg": text}


def _weights_in(folder: Path) -> Path:
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    return names[0] if names else folder / "open_clip_model.safetensors"
