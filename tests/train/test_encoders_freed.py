"""The VAE is out of memory when the text encoders are loaded, and they are when training begins: by themselves, not when the
garbage collector next runs, which on a GPU would be after memory has run out."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import AutoencoderKL
from prefloop.core.signals import StopSignal
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.pairs import select_pairs
from prefloop.train.prepare import prepared_data
from transformers import PreTrainedModel


class Watching(StopSignal):
    """Asked after each batch whether a signal was received, it notes which encoders are in memory."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []
        super().__init__()

    @property
    def number(self) -> int:  # type: ignore[override]  # an attribute there
        self.seen.append(encoders())
        return 0

    @number.setter
    def number(self, _: int) -> None:
        pass


def encoders() -> set[str]:
    kinds = (AutoencoderKL, PreTrainedModel)
    return {type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds)}


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize(
    ("kind", "text"), [("sd15", {"CLIPTextModel"}), ("sd35", {"CLIPTextModelWithProjection", "T5EncoderModel"})]
)
def test_each_encoder_is_in_memory_only_while_it_encodes(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, kind: str, text: set[str]
):
    folder = tiny.saved(kind, tmp_path / kind)
    gc.collect()
    assert encoders() == set()
    watching = Watching()
    settings = replace(config, model=str(folder))
    gc.disable()
    try:
        data = prepared_data(
            settings, labelled, find_model(str(folder)), torch.device("cpu"), select_pairs(labelled, settings), watching
        )
        assert encoders() == set()
    finally:
        gc.enable()
    assert {"AutoencoderKL"} in watching.seen
    assert any(text <= seen for seen in watching.seen)
    assert not any("AutoencoderKL" in seen and seen & text for seen in watching.seen)
    assert len(data.prompt_embeds.rows("prompt_embeds", list(data.pairs.prompts())[:1])) == 1
