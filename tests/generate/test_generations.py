"""A plan of very many images: the same images, ids and order as one object each, without the objects."""

import hashlib
import tracemalloc
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from content import add_generation, add_image, add_prompt
from prefloop.core.id_columns import IdColumn, as_keys
from prefloop.core.ids import content_id, generation_bytes, generation_id
from prefloop.generate import GenerateConfig, generations
from prefloop.generate import stage as generate_stage
from prefloop.generate.generations import Generation, Generations, find_images, in_store
from prefloop.generate.stage import generate, plan
from prefloop.store import PairStore, journal
from prefloop.store.journal import as_table

PROMPTS = ["a red circle", 'say "hi" \\ back\nslash', "été 🦊 \u2028 漢字", '"prompt":""', "x" * 300, '{"index":0,']
SAMPLING = {
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "resolution": None,
    "scheduler": "DDIMScheduler",
    "negative_prompt": 'no "prompt":"" é',
    "dtype": "auto",
}


def test_ids_of_many_images_are_those_of_one_and_have_not_changed():
    ids = generation_bytes(PROMPTS, UUID(int=5), SAMPLING, 2**40, 12)
    one_by_one = [generation_id(text, UUID(int=5), SAMPLING, 2**40, index) for text in PROMPTS for index in range(12)]
    assert [UUID(bytes=bytes(ids[at : at + 16])) for at in range(0, len(ids), 16)] == one_by_one
    # recorded before ids were computed together
    assert str(one_by_one[17]) == "e58dd63f-d4b2-6eb8-6812-d3d7d81d6bf3"
    assert hashlib.sha256(ids).hexdigest() == "96956af847c4e890a904c168d9491bc6757b2e295af0e0154b810378f6990419"


def test_images_of_a_plan_are_a_sequence():
    every = Generations(["a", "b"], 3, as_keys(UUID(int=number) for number in range(10, 16)))
    expected = [Generation("ab"[at // 3], at % 3, UUID(int=10 + at)) for at in range(6)]
    assert list(every) == [every[at] for at in range(6)] == expected
    assert every[-1] == expected[-1]
    assert list(every[::-1][:2]) == [expected[5], expected[4]]
    some = every.where(np.array([False, True, False, False, True, True]))
    assert list(some) == [expected[1], expected[4], expected[5]]
    assert list(some[1:]) == [expected[4], expected[5]]
    assert (len(some), some[0]) == (3, expected[1])
    assert not every[:0]
    with pytest.raises(IndexError):
        every[6]


def test_images_are_found_by_generation_in_the_order_that_is_asked_for(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generations, "IDS_AT_ONCE", 2)
    prompt, model = add_prompt(store, "x"), UUID(int=1)
    images = [add_image(store, (number, 0, 0)) for number in range(3)]
    ids = [add_generation(store, prompt, model, image) for image in images]
    store.ingest()
    keys = as_keys([ids[2], UUID(int=7), ids[0], UUID(int=8), ids[1], ids[2]])
    found, of = find_images(keys, store)
    assert found.tolist() == in_store(keys, store).tolist() == [True, False, True, False, True, True]
    assert list(IdColumn(of[found])) == [images[2], images[0], images[1], images[2]]


def test_a_plan_takes_under_100_bytes_an_image(tiny_pipeline: Path, store: PairStore, tmp_path: Path):
    n_prompts, k = 20, 1000
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(n_prompts)))
    config = GenerateConfig(
        model=str(tiny_pipeline), prompts=str(prompts), images_per_prompt=k, num_inference_steps=1, device="cpu"
    )
    planned = plan(config, None)
    assert len(planned.generations) == len(planned.missing) == 20_000
    known = planned.generations[:-5]
    others = {"prompt_id": UUID(int=1), "model_id": UUID(int=2), "image_id": UUID(int=3), "sampling": "{}"}
    others |= {"seed": 0, "image_index": 0}
    store.append("generations", ({"generation_id": item.generation_id, **others} for item in known))
    store.ingest()
    tracemalloc.start()
    planned = plan(config, store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(item.prompt, item.index) for item in planned.missing] == [("prompt 19", k - 5 + at) for at in range(5)]
    # an id takes 16 bytes and its number 8, and as many again while they are looked up; objects took 1500
    assert peak < 20_000 * 100


@pytest.mark.slow(reason="writes pairs in many parts")
def test_pairs_are_the_same_in_however_many_parts_they_are_written(
    tiny_pipeline: Path, store: PairStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "prompts.txt").write_text("a\nb\nc")
    config = GenerateConfig(
        model=str(tiny_pipeline), prompts=str(tmp_path / "prompts.txt"), images_per_prompt=3, num_inference_steps=1,
        device="cpu",
    )  # fmt: skip
    whole = PairStore.create(tmp_path / "whole")
    generate(config, whole)
    monkeypatch.setattr(generate_stage, "PAIRS_AT_ONCE", 2)
    # 3 pairs of each of 3 prompts, in parts of 2, 2, 2, 2 and 1
    summary = generate(config, store)
    assert (summary["pairs"], summary["new_pairs"]) == (9, 9)
    assert sum("-pairs-" in path.name for path in store.journal.iterdir()) == 5
    query = "select pair_id, prompt_id, image_a, image_b from pairs order by all"
    assert store.rows(query) == whole.rows(query)


def test_rows_become_columns_in_chunks_that_hold_few_objects(monkeypatch: pytest.MonkeyPatch):
    def rows(n: int):
        return ({"prompt_id": content_id(b"%d" % number), "prompt": str(number)} for number in range(n))

    monkeypatch.setattr(journal, "ROWS_AT_ONCE", 100)
    assert as_table("prompts", rows(0)).num_rows == 0
    tracemalloc.start()
    table = as_table("prompts", rows(10_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table["prompt"].to_pylist() == [str(number) for number in range(10_000)]
    assert [chunk.num_rows for chunk in table.to_batches()] == [100] * 100
    assert peak < 10_000 * 60  # a row as an object takes over 600
