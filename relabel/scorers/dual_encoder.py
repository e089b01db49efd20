"""Scorers whose score follows from one embedding of the image and one of the prompt.

B is the number of images, T that of prompts, E the length of an embedding.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .registry import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

Embeddings = NDArray[np.float32]
LENGTH_STEP = 16
"""Prompts are padded to a multiple of it: few groups in a batch, and little padding. Moves an embedding by up to 1e-7 from
that of a prompt padded to the model's limit, less than another processor does, so revisions do not depend on it."""


@runtime_checkable
class DualEncoderScorer(Scorer, Protocol):
    """A scorer whose scores follow from embeddings. `relabel` embeds each image and each distinct prompt once and caches
    the embeddings, so that another scorer with the same backbone, or another head, embeds nothing."""

    backbone: str
    """Changes when the same image or prompt could get another embedding: weights, preprocessing, dtype."""

    def preprocess(self, image: "Image") -> Any:
        """Pixels (3, S, S), or whatever `embed_images` takes a list of. Called from several threads."""
        ...

    def embed_images(self, pixels: Sequence[Any]) -> Embeddings:
        """(B, E), each of length 1."""
        ...

    def embed_prompts(self, prompts: Sequence[str]) -> Embeddings:
        """(T, E), each of length 1. Not called if `needs_prompt` is False."""
        ...

    def score_embeddings(self, images: Embeddings, prompts: Embeddings | None) -> NDArray[np.float32]:
        """(B,), from the embeddings of images and of their prompts, both (B, E)."""
        ...


class EmbeddingScoreMixin:
    """`score` from the methods of DualEncoderScorer."""

    def score(self: DualEncoderScorer, prompts: Sequence[str], images: "Sequence[Image]") -> NDArray[np.float32]:
        """float32 (B,), in the scorer's own unit; each distinct prompt is embedded once."""
        image_embeddings = self.embed_images([self.preprocess(image) for image in images])
        if not self.needs_prompt:
            return self.score_embeddings(image_embeddings, None)
        row = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        prompt_embeddings = self.embed_prompts(list(row))[[row[prompt] for prompt in prompts]]
        return self.score_embeddings(image_embeddings, prompt_embeddings)


def cosines(images: Embeddings, prompts: Embeddings) -> NDArray[np.float64]:
    """Cosines of embeddings of length 1; (B,)."""
    return np.einsum("be,be->b", images, prompts, dtype=np.float64)


def n_longer(tokenizer: Any, prompts: Sequence[str], max_length: int) -> int:
    """How many prompts have more than `max_length` tokens, special tokens included, by a tokenizer of transformers."""
    lengths = [len(ids) for ids in tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
    return sum(length > max_length for length in lengths)


def embedded_by_length(lengths: Any, embed: Callable[[Any, int], Embeddings]) -> Embeddings:
    """Embeddings (T, E) of prompts that run in groups of similar length, so that short ones are not padded like long ones.

    Args:
        lengths: tensor (T,), tokens of each prompt, special tokens included.
        embed: embeds the prompts of the given rows, an int tensor, when cut after the given number of tokens.
    """
    widths = (lengths.cpu() + LENGTH_STEP - 1) // LENGTH_STEP * LENGTH_STEP
    groups = [(widths == width).nonzero()[:, 0] for width in widths.unique()]
    embeddings = np.concatenate([embed(rows, int(widths[rows[0]])) for rows in groups])
    return embeddings[np.argsort(np.concatenate(groups))]


def normalized(embeddings: Any) -> Embeddings:
    """A model's embeddings (B, E) in float32 and of length 1, whatever dtype the model runs in."""
    import torch.nn.functional as F

    return F.normalize(embeddings.float(), dim=-1).cpu().numpy()
