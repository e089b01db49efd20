"""The order of the training pairs, where some of them cannot be used."""

from collections.abc import Callable
from typing import cast

import pyarrow as pa
import pytest
from prefloop.models.families import Family
from prefloop.store import BadDataError, PairStore
from prefloop.store.images import image_path
from prefloop.train import TrainConfig, cache
from prefloop.train.pair_order import PairOrder
from prefloop.train.pairs import select_pairs
from prefloop.train.trainer import Trainer

Make = Callable[..., Trainer]
NO_FAMILY = cast(Family, None)  # only crops depend on it


def damage(store: PairStore, config: TrainConfig, *numbers: int) -> None:
    """The rejected images of the training pairs with these numbers."""
    pairs = select_pairs(store, config).train
    for number in numbers:
        image_path(store.path / "images", pairs[number].rejected).write_bytes(b"damaged")


def test_a_run_of_which_no_pair_is_usable_ends(config: TrainConfig):
    order = PairOrder(pa.table({"pair": [0, 1, 2]}), config, NO_FAMILY, {0, 1, 2})
    with pytest.raises(BadDataError, match="each training pair has an image that cannot be used"):
        next(order.numbers(0, 1))


def test_the_prompt_of_a_pair_that_comes_instead_of_the_last_one_counts_as_trained_on(
    labelled: PairStore, config: TrainConfig, trainer: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "MAX_UNREADABLE", 0.05)
    order = trainer().data.order(0)
    damage(labelled, config, order[5], order[6])
    data = trainer(output_dir=config.output_dir + "-other").data
    data.encode(0, 6)
    trained = {sample.pair.prompt_id for sample in data.samples(0, 6)}
    assert data.pairs.train[order[7]].prompt_id in trained
    assert trained <= data.trained_prompts(6)
    assert len(data.trained_prompts(6)) == 8  # with those of the two pairs that were skipped


def test_a_run_on_a_full_cache_puts_up_with_as_many_unreadable_images_as_the_run_that_filled_it(
    labelled: PairStore, config: TrainConfig, trainer: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "MAX_UNREADABLE", 0.06)  # 3 of 60 are 5 %
    monkeypatch.setattr(cache, "ENOUGH_IMAGES", 10)
    damage(labelled, config, 3, 4, 5)
    for number in range(2):
        data = trainer(output_dir=f"{config.output_dir}-{number}").data
        data.encode(0, 29)
        assert data.unusable == {3, 4, 5}
    damage(labelled, config, 6)
    with pytest.raises(BadDataError, match="4 of 60 images cannot be used"):
        trainer(output_dir=config.output_dir + "-other", random_flip=True).data.encode(0, 29)
