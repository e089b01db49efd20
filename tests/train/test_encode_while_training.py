"""Latents are encoded as the steps come to them: only those that are drawn, with the results of a cache that was filled before."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import content
import numpy as np
import pytest
import torch
from prefloop.core.id_columns import IdColumn
from prefloop.core.signals import StopSignal
from prefloop.store import Interrupted, PairStore, load_image
from prefloop.store.images import image_path
from prefloop.train import TrainConfig, cache, feed
from prefloop.train.cost.drawn import assumed_latents, drawn_latents
from prefloop.train.data import TrainingData
from prefloop.train.pairs import select_pairs
from prefloop.train.prepare import with_reference_errors
from prefloop.train.shards import Shards
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from prefloop.train.vae import VaeEncoder
from safetensors.torch import load_file

Make = Callable[..., Trainer]


def cached(store: PairStore) -> set[UUID]:
    """The latents that are in the cache, by crop."""
    (folder,) = (store.path / "cache").glob("latents-*")
    return {identity for keys in Shards(folder).rows.files().values() for identity in IdColumn(keys)}


def drawn(made: Trainer, n: int) -> set[UUID]:
    """Those that the first n positions draw, from the definition of a draw, and those of the held-out pair."""
    data, keys = made.data, set()
    for sample in data.samples(0, n):
        flip = float(torch.rand(2, generator=torch.Generator().manual_seed(sample.seed))[0])
        crop = replace(data.crop(sample.pair), mirrored=made.config.random_flip and flip < 0.5)
        keys |= {crop.key(image) for image in (sample.pair.chosen, sample.pair.rejected)}
    return keys | {
        data.crop(pair).key(image) for pair in data.pairs.validation for image in (pair.chosen, pair.rejected)
    }


def result(config: TrainConfig) -> tuple[dict[str, torch.Tensor], str, str]:
    output = Path(config.output_dir)
    weights = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    return weights, (output / "metrics.csv").read_text(), (output / "validation.csv").read_text()


def assert_equal(first: TrainConfig, second: TrainConfig) -> None:
    """Equal to the bit."""
    (weights, *tables), (others, *other_tables) = result(first), result(second)
    assert tables == other_tables
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


@pytest.mark.slow(reason="trains a model")
def test_a_run_of_part_of_an_epoch_encodes_only_what_its_steps_draw(
    labelled: PairStore, config: TrainConfig, trainer: Make
):
    train(config, labelled)
    # 3 steps of 2 of the 29 pairs, two images each, and the two images of the held-out pair
    assert len(cached(labelled)) == 3 * 2 * 2 + 2
    assert cached(labelled) == drawn(trainer(output_dir=config.output_dir + "-other"), 6)


@pytest.mark.slow(reason="trains a model")
def test_an_image_is_mirrored_only_when_its_mirror_image_is_drawn(
    labelled: PairStore, config: TrainConfig, trainer: Make
):
    config = replace(config, random_flip=True, max_train_steps=14)
    train(config, labelled)
    # 28 of 29 pairs once: as many as without mirroring
    assert len(cached(labelled)) == 28 * 2 + 2
    made = trainer(random_flip=True, output_dir=config.output_dir + "-other")
    assert cached(labelled) == drawn(made, 28)
    plain = {made.data.crop(pair).key(pair.chosen) for pair in made.data.pairs.train}
    assert 0 < len(cached(labelled) & plain) < 28


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("workers", [0, 2])
def test_encoding_in_blocks_gives_the_bits_of_a_cache_that_was_filled_before(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    before = PairStore(content.copied(labelled.path, tmp_path / "before"))
    config = replace(
        config, random_flip=True, dataloader_num_workers=workers, max_train_steps=5, validation_steps=2, format="unet"
    )
    upfront = replace(config, output_dir=str(tmp_path / "upfront"))
    Path(upfront.output_dir).mkdir()
    encoder = Trainer(upfront, before, StopSignal()).data.encoder
    assert encoder is not None
    encoder.fill(np.arange(len(encoder.crops.crops.keys)))
    assert len(cached(before)) == 29 * 4 + 2
    monkeypatch.setattr(cache, "load_image", lambda *_: pytest.fail("an image was decoded"))
    train(upfront, before)
    monkeypatch.setattr(cache, "load_image", load_image)
    monkeypatch.setattr(feed, "BLOCK", 4)  # of one step
    calls, encode = [], TrainingData.encode

    def encoded(self, first, end, show=True):
        calls.append((threading.current_thread() is threading.main_thread(), first, end))
        encode(self, first, end, show)

    monkeypatch.setattr(TrainingData, "encode", encoded)
    train(config, labelled)
    # before each step, and by no thread that prepares batches ahead
    assert calls == [(True, first, first + 2) for first in range(0, 10, 2)]
    (folder,) = (labelled.path / "cache").glob("latents-*")
    assert len(list(folder.glob("*.safetensors"))) == 1 + 5  # of validation, and of each step
    assert_equal(config, upfront)


@pytest.mark.slow(reason="trains a model")
def test_the_latents_of_an_image_do_not_depend_on_what_is_encoded_with_it(
    labelled: PairStore, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes, encode = set(), VaeEncoder.__call__
    monkeypatch.setattr(VaeEncoder, "__call__", lambda self, pixels: (sizes.add(len(pixels)), encode(self, pixels))[1])
    other = PairStore(content.copied(labelled.path, tmp_path / "other"))
    together = trainer().data.encoder
    (tmp_path / "alone").mkdir()
    alone = Trainer(replace(trainer().config, output_dir=str(tmp_path / "alone")), other, StopSignal()).data.encoder
    assert together is not None
    assert alone is not None
    together.fill(np.arange(60))
    for number in (0, 7, 41):
        alone.fill(np.array([number]))
    keys = list(IdColumn(alone.crops.crops.keys[[0, 7, 41]]))
    for name in ("mean", "std"):
        assert torch.equal(together.rows.rows(name, keys), alone.rows.rows(name, keys))
    assert sizes == {64}  # other numbers round otherwise, which shows in larger encoders than this


@pytest.mark.slow(reason="trains a model")
def test_a_signal_while_a_later_block_is_encoded_saves_the_step_and_the_run_goes_on_to_the_same_bits(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = replace(config, max_train_steps=5, format="unet")
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, PairStore(content.copied(labelled.path, tmp_path / "whole-store")))
    monkeypatch.setattr(feed, "BLOCK", 8)  # of two steps
    stop, loaded = StopSignal(), []

    def load(*arguments):
        loaded.append(arguments)
        if len(loaded) == 2 + 8 + 3:  # validation, two steps, in the middle of the next two
            stop.number = 15
        return load_image(*arguments)

    monkeypatch.setattr(cache, "load_image", load)
    with pytest.raises(Interrupted, match=r"step 2 of 5 is in .*resumes from there") as caught:
        train(config, labelled, stop=stop)
    assert caught.value.exit_code == 143
    assert len(loaded) == 2 + 8 + 8  # the batch is finished
    train(config, labelled)
    assert len(loaded) == 2 + 20  # nothing is encoded again, and nothing before step 2 is looked at
    assert_equal(config, whole)


@pytest.mark.slow(reason="trains a model")
def test_a_pair_whose_image_cannot_be_read_is_replaced_by_the_next_one_whatever_the_blocks_are(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, trainer: Make, monkeypatch: pytest.MonkeyPatch, capsys
):
    order = trainer().data.order(0)
    pairs = select_pairs(labelled, config).train
    for at in (2, 3, 9):
        image_path(labelled.path / "images", pairs[order[at]].rejected).write_bytes(b"damaged")
    monkeypatch.setattr(cache, "MAX_UNREADABLE", 0.06)  # 3 of 60 are 5 %
    expected = [order[at] for at in (0, 1, 4, 4, 4, 5, 6, 7, 8, 10)]
    config = replace(config, max_train_steps=5, format="unet")
    other = replace(config, output_dir=str(tmp_path / "other"))
    copy = PairStore(content.copied(labelled.path, tmp_path / "other-store"))
    train(config, labelled)
    assert "3 images cannot be used; other pairs are used instead of theirs" in capsys.readouterr().err
    monkeypatch.setattr(feed, "BLOCK", 4)
    train(other, copy)
    assert_equal(config, other)
    made = trainer(max_train_steps=5, output_dir=str(tmp_path / "third"))
    for first in (0, 5):
        made.data.encode(first, first + 5)
    assert [sample.pair.pair_id for sample in made.data.samples(0, 10)] == [pairs[n].pair_id for n in expected]


def test_a_run_that_was_killed_after_its_last_step_encodes_nothing_more(trainer: Make, labelled: PairStore):
    made = trainer(reference_draws=1)
    data = with_reference_errors(made.data, made.denoiser, labelled, made.model, made.config.max_train_steps)
    assert data.reference_errors is not None
    assert len(cached(labelled)) == 2  # the images of the held-out pair


def test_a_held_out_pair_whose_image_cannot_be_read_is_excluded(
    labelled: PairStore, config: TrainConfig, trainer: Make, monkeypatch: pytest.MonkeyPatch
):
    held_out = select_pairs(labelled, config).validation[0]
    image_path(labelled.path / "images", held_out.chosen).write_bytes(b"damaged")
    monkeypatch.setattr(cache, "MAX_UNREADABLE", 0.05)
    data = trainer().data
    assert (len(data.pairs.train), len(data.pairs.validation)) == (29, 0)


def test_the_dry_run_counts_the_latents_that_a_run_encodes(labelled: PairStore, config: TrainConfig, trainer: Make):
    pairs, family = select_pairs(labelled, config), trainer().data.family
    for steps, n_latents in ((3, 3 * 2 * 2 + 2), (100, 60)):
        assert drawn_latents(pairs, replace(config, max_train_steps=steps), family) == n_latents
    flipped = replace(config, random_flip=True)
    assert drawn_latents(pairs, replace(flipped, max_train_steps=3), family) == 14
    # twice all 29 pairs: 3 of 4 crops are expected, and the two of the held-out pair are certain
    assert drawn_latents(pairs, replace(flipped, max_train_steps=29), family) == 29 * 4 * 0.75 + 2
    assert assumed_latents(100, replace(config, max_train_steps=3)) == 12
    assert assumed_latents(4, replace(flipped, max_train_steps=3)) == 2 * (2 * 1.5 + 2 * 1)  # two pairs twice, two once
    # of two fixed draws of a pair, three of four crops are expected
    assert assumed_latents(4, replace(flipped, max_train_steps=100, reference_draws=2)) == 4 * 4 * 0.75
