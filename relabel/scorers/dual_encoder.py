"""Scorers that look at a picture through one embedding, and at a prompt through another.

B is the number of pictures, T that of prompts, E the length of an embedding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .registry import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

Embeddings = NDArray[np.float32]


@runtime_checkable
class Towers(Scorer, Protocol):
    """A scorer whose scores follow from embeddings. `relabel` then embeds each picture and each distinct prompt once and
    keeps the embeddings, so that another scorer of the same backbone, or another head, embeds nothing."""

    backbone: str
    """Changes when the same picture or prompt could get another embedding: weights, preprocessing, dtype."""

    def preprocess(self, image: "Image") -> Any:
        """Pixels (3, S, S), or whatever `embed_images` takes a list of. Called by several threads."""
        ...

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        """(B, E), each of length 1."""
        ...

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        """(T, E), each of length 1. Not called where the scorer is blind to prompts."""
        ...

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> NDArray[np.float32]:
        """(B,), from embeddings of pictures and of their prompts, both (B, E)."""
        ...


class Embedding:
    """`score` of the built-in scorers, as their embeddings give it."""

    def score(self: Towers, prompts: Sequence[str], images: "Sequence[Image]") -> NDArray[np.float32]:
        """float32 (B,), in the scorer's own unit; each distinct prompt is embedded once."""
        pictures = self.embed_images([self.preprocess(image) for image in images])
        if not self.needs_prompt:
            return self.score_embeddings(pictures, None)
        place = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
        return self.score_embeddings(pictures, self.embed_prompts(list(place))[[place[prompt] for prompt in prompts]])


def cosines(images: Embeddings, prompts: Embeddings) -> NDArray[np.float64]:
    """(B,), of embeddings of length 1."""
    return np.einsum("be,be->b", images, prompts, dtype=np.float64)


def n_longer(tokenizer: Any, prompts: Sequence[str], longest: int) -> int:
    """How many prompts have more than so many tokens, their ends counted, by a tokenizer of transformers."""
    lengths = [len(ids) for ids in tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
    return sum(length > longest for length in lengths)


def normalised(embeddings: Any) -> Embeddings:
    """A model's embeddings (B, E) in float32 and of length 1, whatever the model runs in."""
    import torch.nn.functional as F

    return F.normalize(embeddings.float(), dim=-1).cpu().numpy()
