"""Lengths of prompts in the tokens of a model's text encoders. Only tokenizers are loaded."""

from collections.abc import Sequence

from ...models.families import known_family
from ...models.loading import load_root
from ...models.resolve import find_model
from ...models.text_to_image import tokenizer_limits
from .check import TokenLengths


def token_lengths(model: str, texts: Sequence[str]) -> list[TokenLengths]:
    """
    Args:
        model: a built-in one, a folder or a hub id.
        texts: at least one.

    Raises:
        PrefloopError: if the model cannot be found or loaded.
    """
    found = find_model(model)
    settings, family = found.settings, known_family(found)
    others = [
        part
        for part, value in settings.index.items()
        if isinstance(value, list) and not part.startswith(("_", "tokenizer", "scheduler"))
    ]
    pipeline = load_root(found, **dict.fromkeys(others))
    length = None if family is None else family.call_settings.get("max_sequence_length")
    measured = []
    for name, (tokenizer, limit) in tokenizer_limits(pipeline, length).items():
        lengths = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False).input_ids]
        measured.append(
            TokenLengths(
                tokenizer=name,
                limit=limit,
                mean=sum(lengths) / len(lengths),
                longest=max(lengths),
                n_truncated=sum(length > limit for length in lengths),
            )
        )
    return measured
