"""The columns of all crops say what each pair's own crop says."""

from dataclasses import replace
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from prefloop.core.id_columns import IdColumn
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.train import TrainConfig
from prefloop.train.crop_plan import crop_of, pair_crops
from prefloop.train.pairs import kept_pairs

FAMILY = family_of(find_model("shapes"))
PROMPT = UUID(int=5)


def rows(n: int, *sides: int) -> pa.Table:
    """Pairs of few images, so that images are in several pairs; even images are PNGs of one size, odd ones JPEGs of another."""
    chosen, rejected = np.arange(n) % 7, 7 + np.arange(n) % 4
    ids = lambda numbers: pa.array([UUID(int=int(number)).bytes for number in numbers], pa.binary(16))  # noqa: E731
    formats = lambda numbers: pa.array([("png", "jpeg")[number % 2] for number in numbers])  # noqa: E731
    return pa.table(
        {
            "held_out": pa.array(sides or [0] * n, pa.int32()),
            "pair_id": ids(100 + np.arange(n)),
            "prompt_id": ids([5] * n),
            "chosen": ids(chosen),
            "rejected": ids(rejected),
            "chosen_format": formats(chosen),
            "rejected_format": formats(rejected),
            "labeler": pa.array(["someone"] * n),
            "p_chosen": pa.array([1.0] * n, pa.float32()),
            "height": pa.array([(64.0, 96.0)[number % 2] for number in chosen]),
            "width": pa.array([(64.0, 48.0)[number % 2] for number in chosen]),
        }
    )


@pytest.mark.parametrize("settings", [{}, {"random_crop": True, "aspect_buckets": True}, {"random_flip": False}])
def test_each_pair_uses_the_crops_of_its_own_images(settings: dict):
    config = replace(TrainConfig(output_dir="tuned", labelers=("someone",), resolution=64), **settings)
    # in chunks, as tables of several parts are
    table = pa.concat_tables([rows(9), rows(20).slice(9), rows(23, *[1] * 23).slice(20)])
    pairs = kept_pairs(table, {PROMPT.bytes: "a prompt"})
    plan = pair_crops(pairs, config, FAMILY)
    all_crops = plan.crops
    for number, pair in enumerate([*pairs.train, *pairs.validation]):
        crop = crop_of(pair, config, FAMILY)
        for at, image in zip(plan.plain[:, number], (pair.chosen, pair.rejected), strict=True):
            key = IdColumn(all_crops.keys)[int(at)]
            assert key == crop.key(image)
            found = all_crops.select(np.argsort(all_crops.keys)).sources([key])
            path = pair.chosen_path if image == pair.chosen else pair.rejected_path
            assert found == [(image, path, crop)]
        if plan.mirrored is not None and number < plan.n_train:
            mirrored = replace(crop, mirrored=True)
            keys = IdColumn(all_crops.keys[plan.mirrored[:, number]])
            assert list(keys) == [mirrored.key(pair.chosen), mirrored.key(pair.rejected)]
    assert (plan.mirrored is None) == (not config.random_flip)
    assert all_crops.n_images == 11
    assert len(set(IdColumn(all_crops.keys))) == len(all_crops.keys)


def test_pairs_saved_in_any_order_are_split_into_those_that_are_trained_on_and_those_held_out():
    sides = [1, 0, 2, 0, 1, 2, 0]
    table = rows(7, *sides)
    pairs = kept_pairs(table, {PROMPT.bytes: "a prompt"})
    for part, side in ((pairs.train, 0), (pairs.validation, 1)):
        expected = [UUID(int=100 + number) for number in range(7) if sides[number] == side]
        assert [pair.pair_id for pair in part] == expected
