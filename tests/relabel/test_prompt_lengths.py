"""Prompts run through a text model with few more tokens than they have, and get the embeddings of padded ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_models import open_clip_folder, transformers_clip
from prefloop.relabel.scorers.dual_encoder import embedded_by_length
from prefloop.relabel.scorers.registry import load_scorer

PROMPTS = ["cat " * 75, "cat", "a dog", "dog " * 30, "cat " * 14, "a " * 300]
"""Of 77 tokens, start and end included, 3, 4, 32, 16, and 77 after truncation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    transformers_clip(folder / "pickscore")
    open_clip_folder(folder / "clip", "open_clip_model.safetensors")
    return folder


def test_prompts_run_in_groups_whose_lengths_round_up_to_the_same_16_tokens():
    calls = []

    def embed(rows: torch.Tensor, length: int) -> np.ndarray:
        calls.append((rows.tolist(), length))
        return np.array([[10.0 * row + length] for row in rows.tolist()], np.float32)

    embeddings = embedded_by_length(torch.tensor([40, 3, 16, 17, 48]), embed)
    assert calls == [([1, 2], 16), ([3], 32), ([0, 4], 48)]
    assert embeddings.tolist() == [[48], [26], [36], [62], [88]]  # 10 * row + length, in the order of the prompts


@pytest.mark.parametrize("name", ["pickscore", "clip"])
def test_a_short_prompt_is_not_padded_like_a_long_one(folder: Path, name: str):
    scorer: Any = load_scorer(name, str(folder / name), "cpu")
    model, _ = scorer._parts
    tokens = model.token_embedding if name == "clip" else model.text_model.embeddings.token_embedding
    shapes = []
    hook = tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        scorer.embed_prompts(PROMPTS)
    finally:
        hook.remove()
    assert shapes == [(3, 16), (1, 32), (2, 77)]


@pytest.mark.parametrize("name", ["pickscore", "clip"])
def test_an_embedding_depends_neither_on_padding_nor_on_the_prompts_beside_it(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    scorer: Any = load_scorer(name, str(folder / name), "cpu")
    together = scorer.embed_prompts(PROMPTS)
    alone = np.concatenate([scorer.embed_prompts([prompt]) for prompt in PROMPTS])
    monkeypatch.setattr("prefloop.relabel.scorers.dual_encoder.LENGTH_STEP", 77)  # one group, all padded to the limit
    padded = scorer.embed_prompts(PROMPTS)
    assert np.abs(together - padded).max() < 1e-6
    assert np.abs(alone - padded).max() < 1e-6
    distances = np.abs(padded[:, None] - padded).max(-1)[~np.eye(len(PROMPTS), dtype=bool)]
    assert distances.min() > 1e-3  # a prompt given another's embedding would be noticed
