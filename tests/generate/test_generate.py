"""Generating with a real tiny pipeline: each image once, whatever the batches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from prefloop.cli import app
from prefloop.core.ids import noise_seed
from prefloop.generate import GenerateConfig
from prefloop.generate.pairing import Candidate, pair_up
from prefloop.generate.stage import generate, plan
from prefloop.store import PairStore, UsageError, load_image, prompt_id
from prefloop.store.check import check, logical_hashes
from typer.testing import CliRunner

PROMPTS = ("a red circle", "a blue square", "a green star")
CANDIDATES = [Candidate(UUID(int=number)) for number in range(5)]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return str(tmp_path / "prompts.txt")


@pytest.fixture
def config(tiny_pipeline: Path, prompts: str) -> GenerateConfig:
    return GenerateConfig(
        model=str(tiny_pipeline), prompts=prompts, images_per_prompt=2, num_inference_steps=2, device="cpu"
    )


def images(store: PairStore) -> dict[UUID, np.ndarray]:
    """Generation → its image, (H, W, 3) in 0..255."""
    query = "select generation_id, image_id, path from generations join image_files using (image_id)"
    return {
        identity: np.asarray(load_image(store.path / path, image)).astype(int)
        for identity, image, path in store.rows(query)
    }


# K candidates give K (K - 1) / 2 pairs with "all", K - 1 with "adjacent", K // 2 with "random".
@pytest.mark.parametrize(("pairing", "n"), [("all", 10), ("adjacent", 4), ("random", 2)])
def test_five_candidates_give_10_4_or_2_distinct_pairs(pairing, n: int):
    pairs = [(first.image_id, second.image_id) for first, second in pair_up(CANDIDATES, pairing, "seed")]
    assert len(pairs) == n
    assert len({frozenset(pair) for pair in pairs}) == n
    assert all(first != second for first, second in pairs)


def test_adjacent_pairs_are_neighbors_and_random_ones_use_each_image_once():
    assert pair_up(CANDIDATES, "adjacent", "") == [(CANDIDATES[n], CANDIDATES[n + 1]) for n in range(4)]
    paired = [image for pair in pair_up(CANDIDATES, "random", "seed") for image in pair]
    assert len(paired) == len(set(paired))
    assert pair_up(CANDIDATES, "random", "seed") == pair_up(CANDIDATES, "random", "seed")
    assert len({tuple(pair_up(CANDIDATES, "random", str(seed))) for seed in range(20)}) > 5


@pytest.mark.slow(reason="generates images in several runs")
def test_generate_makes_k_images_of_each_prompt_and_nothing_the_second_time(config: GenerateConfig, store: PairStore):
    summary = generate(config, store)
    # 3 prompts x 2 images, one pair per prompt
    assert summary == {"prompts": 3, "images": 6, "generated": 6, "truncated": 0, "pairs": 3, "new_pairs": 3}
    rows = store.rows("select prompt_id, list(image_index order by image_index) from generations group by all")
    assert dict(rows) == {prompt_id(text): [0, 1] for text in PROMPTS}
    assert store.rows("select distinct source, run_id is not null from pairs") == [("generate", True)]
    assert len({image.tobytes() for image in images(store).values()}) == 6
    assert check(store) == []
    tables = ("images", "generations", "pairs", "prompts", "models")
    before = {table: logical_hashes(store)[table] for table in tables}

    again = generate(config, store)
    assert (again["generated"], again["new_pairs"]) == (0, 0)
    assert {table: logical_hashes(store)[table] for table in tables} == before
    assert store.rows("select status, json_extract(summary, '$.generated')::int from runs order by started") == [
        ("done", 6),
        ("done", 0),
    ]

    # more images of each prompt: existing ones stay; 3 images make 3 pairs, of which 2 are new
    more = generate(replace(config, images_per_prompt=3), store)
    assert (more["generated"], more["pairs"], more["new_pairs"]) == (3, 9, 6)
    # another pairing generates nothing; 3 candidates make 2 adjacent pairs, which exist already
    adjacent = generate(replace(config, images_per_prompt=3, pairing="adjacent"), store)
    assert (adjacent["generated"], adjacent["pairs"], adjacent["new_pairs"]) == (0, 6, 0)


@pytest.mark.slow(reason="generates images in several runs")
def test_the_image_of_a_generation_does_not_depend_on_the_batch_size(config: GenerateConfig, tmp_path: Path):
    stores = [PairStore.create(tmp_path / f"batch-{size}") for size in (1, 4)]
    for store, size in zip(stores, (1, 4), strict=True):
        generate(replace(config, batch_size=size), store)
    one, four = map(images, stores)
    assert one.keys() == four.keys()
    for identity in one:
        # sums in another order differ in the last bit, which can move a value across an 8-bit rounding edge
        difference = np.abs(one[identity] - four[identity])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
    different = [np.abs(one[x] - one[y]).max() for x in one for y in one if x != y]
    assert min(different) > 5, "images this similar could not reveal a mix-up"


@pytest.mark.slow(reason="generates images in several runs")
def test_another_seed_or_setting_makes_another_image_and_the_first_ones_stay(config: GenerateConfig, store: PairStore):
    few = replace(config, limit=1)
    generate(few, store)
    first = images(store)
    for number, other in enumerate([replace(few, seed=1), replace(few, guidance_scale=1.0)], 2):
        assert generate(other, store)["generated"] == 2
        found = images(store)
        assert len(found) == 2 * number
        assert all(np.array_equal(found[identity], first[identity]) for identity in first)
        assert len({image.tobytes() for image in found.values()}) == 2 * number


def test_two_models_start_a_prompt_from_the_same_noise(config: GenerateConfig, tiny_pipeline: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(tiny_pipeline, other)
    settings = other / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"clip_sample": True}))
    one, two = plan(config, None), plan(replace(config, model=str(other)), None)
    assert one.model.model_id != two.model.model_id
    assert not {g.generation_id for g in one.generations} & {g.generation_id for g in two.generations}
    # the noise is a function of prompt, seed and index alone, and differs with each of them
    seeds = {noise_seed(text, seed, index) for text in PROMPTS for seed in (0, 1) for index in (0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_copy_of_a_model_under_another_name_is_the_same_model(config: GenerateConfig, tiny_pipeline: Path, tmp_path):
    shutil.copytree(tiny_pipeline, tmp_path / "copy")
    copy = plan(replace(config, model=str(tmp_path / "copy")), None)
    assert [g.generation_id for g in copy.generations] == [g.generation_id for g in plan(config, None).generations]


@pytest.mark.slow(reason="kills processes and goes on from there")
def test_a_killed_run_continues_where_it_stopped(config: GenerateConfig, store: PairStore, tmp_path: Path):
    """As a kill leaves it: some batches in the journal, none in the tables, and one batch without its last part."""
    whole = PairStore.create(tmp_path / "whole")
    generate(replace(config, batch_size=2), whole)
    parts = sorted(path.name for path in whole.journal.iterdir())
    generations = [name for name in parts if "-generations-" in name]
    # everything up to the second batch's images, without its generations; all image files exist
    left = parts[: parts.index(generations[1])]
    for name in left:
        (store.journal / name).write_bytes((whole.journal / name).read_bytes())
    for source in (whole.path / "images").rglob("*.png"):
        target = store.path / source.relative_to(whole.path)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    resumed = PairStore.open(store.path)
    summary = generate(replace(config, batch_size=2), resumed)
    assert (summary["generated"], summary["new_pairs"]) == (4, 3)  # the first batch of two is not generated again
    columns = "select generation_id, image_id, seed, image_index from generations order by all"
    assert resumed.rows(columns) == whole.rows(columns)
    pairs = "select pair_id, image_a, image_b from pairs order by all"
    assert resumed.rows(pairs) == whole.rows(pairs)
    assert check(resumed) == []


@pytest.mark.slow(reason="generates images in several runs")
def test_one_image_per_prompt_makes_no_pairs_and_says_how_to_get_some(
    prompts: str, tiny_pipeline: Path, tmp_path: Path
):
    words = [
        "generate",
        "--model",
        str(tiny_pipeline),
        "--prompts",
        prompts,
        "--num-inference-steps",
        "1",
        "--limit",
        "1",
    ]
    words += ["--device", "cpu", "--store", str(tmp_path / "new")]
    for more in ([], ["--dry-run"]):
        ended = CliRunner().invoke(app, [*words, "--images-per-prompt", "1", *more])
        assert ended.exit_code == 0, ended.output
        assert "no pairs from one image per prompt; give --images-per-prompt 2 or more" in ended.stderr
    ended = CliRunner().invoke(app, [*words, "--images-per-prompt", "2"])
    assert "1 image generated, 2 for 1 prompt in total; 1 pair, 1 of them new" in ended.stdout
    assert "(1 step, guidance 7.5)" in ended.stdout
    assert "no pairs" not in ended.stderr


def test_prompts_longer_than_the_encoder_limit_are_counted(config: GenerateConfig, store: PairStore, tmp_path: Path):
    (tmp_path / "long.txt").write_text("a red circle\n" + "a red circle " * 10)
    summary = generate(replace(config, prompts=str(tmp_path / "long.txt"), images_per_prompt=1), store)
    assert (summary["truncated"], summary["generated"], summary["pairs"]) == (1, 2, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_prompt": 0}, "images-per-prompt must be positive and at most 10000, got 0"),
        ({"guidance_scale": float("nan")}, "guidance-scale must be between 0 and 1000, got nan"),
        ({"guidance_scale": -1.0}, "guidance-scale"),
        ({"num_inference_steps": -1}, "num-inference-steps"),
        ({"batch_size": 0}, "batch-size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"limit": 0}, "limit"),
        ({"resolution": 100}, "resolution must be a multiple of 8"),
        ({"pairing": "some"}, "unknown pairing 'some'; choose from all, random, adjacent"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; choose from auto, float32"),
        ({"scheduler": "dimm"}, "unknown scheduler 'dimm'; choose from ddim, ddpm"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict, message: str):
    with pytest.raises(UsageError, match=message):
        GenerateConfig(**settings)
