"""Prompts whose text encoder pads to a fixed length and masks: only their own tokens are kept, padded again where it is needed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EMBEDS = "prompt_embeds"
MASK = "prompt_embeds_mask"


def own_tokens(embeds: "Tensor", mask: "Tensor") -> "list[Tensor]":
    """The tokens of each prompt that are not padding, each (tokens, width).

    Args:
        embeds: (N, tokens, width).
        mask: (N, tokens), 0 for padding.
    """
    return [row[own] for row, own in zip(embeds, mask.bool(), strict=True)]


def masked_arguments(prompt: "Mapping[str, Tensor]", negative: "Mapping[str, Tensor]") -> dict[str, Any]:
    """Arguments of a pipeline that takes encoded prompts of one length, with masks.

    Args:
        prompt: (B, tokens, width) as EMBEDS, with (B, tokens) as MASK if it is padded already.
        negative: likewise.
    """
    from torch.nn.functional import pad

    both = {"": prompt, "negative_": negative}
    n_tokens = max(part[EMBEDS].shape[1] for part in both.values())
    arguments: dict[str, Any] = {"negative_prompt": None}  # the default is a text, which excludes an encoded one
    for prefix, part in both.items():
        embeds = part[EMBEDS]
        mask = part[MASK] if MASK in part else embeds.new_ones(embeds.shape[:2])
        missing = n_tokens - embeds.shape[1]
        arguments[f"{prefix}prompt_embeds"] = pad(embeds, (0, 0, 0, missing))
        arguments[f"{prefix}prompt_attention_mask"] = pad(mask.to(embeds.dtype), (0, missing))
    return arguments
