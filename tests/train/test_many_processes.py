"""Training in two real processes, connected by gloo: the encoding is shared, a death is noticed, the same command goes on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prefloop.core.id_columns import IdColumn
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.run_folder.saved_pairs import load_pairs
from prefloop.train.shards import Shards
from prefloop.train.stage import train
from prefloop.train.tensor_cache import TensorCache
from run_options import decided
from safetensors.torch import load_file
from two_processes import die_while_encoding, die_while_training, hang_while_training, two_processes

pytestmark = [
    pytest.mark.slow(reason="processes load torch and connect"),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes would share a GPU"),
]


def words(config: TrainConfig, store: Path) -> list[object]:
    named: list[object] = ["train", "--labeler", "redder", "--store", store, "--json"]
    for name in ("model", "output_dir", "reference_draws"):
        named += [f"--{name.replace('_', '-')}", getattr(config, name)]
    return [*named, "--random-flip", *decided(config)]


def test_two_processes_of_which_one_was_killed_go_on_and_cache_what_one_process_caches(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    alone = PairStore(shutil.copytree(labelled.path, tmp_path / "alone"))
    config = replace(config, random_flip=True, reference_draws=1, max_train_steps=1, lora_rank=2)
    two = replace(config, output_dir=str(tmp_path / "two"))
    codes, printed = two_processes(words(two, labelled.path), tmp_path, die_while_encoding)
    assert codes == [1, -9], printed
    assert "another process of this training has ended" in printed[0]
    assert "Traceback" not in printed[0]
    codes, printed = two_processes(words(two, labelled.path), tmp_path)
    assert codes == [0, 0], printed
    assert printed[1] == ""  # one prints
    train(config, alone)
    pairs = load_pairs(Path(config.output_dir), config, alone)
    assert pairs is not None
    folders = sorted(folder.name for folder in (alone.path / "cache").iterdir())
    assert folders == sorted(folder.name for folder in (labelled.path / "cache").iterdir())
    assert [name.split("-")[0] for name in folders] == ["latents", "prompt", "reference"]
    for name in folders:
        files = [sorted((store.path / "cache" / name).glob("*.safetensors")) for store in (alone, labelled)]
        if name.startswith("latents"):  # both images of 28 pairs and their mirror images, 64 at once
            assert [len(paths) for paths in files] == [1, 2]
        caches = [TensorCache(store.path / "cache" / name) for store in (alone, labelled)]
        ids = sorted(identity for keys in Shards(caches[0].folder).rows.files().values() for identity in IdColumn(keys))
        assert ids
        assert [cache.missing(ids) for cache in caches] == [[], []]
        for tensor in load_file(files[0][0]):
            one, both = (cache.rows(tensor, ids) for cache in caches)
            if name.startswith("reference"):
                assert torch.allclose(one, both, rtol=1e-5)
            else:
                assert torch.equal(one, both), (name, tensor)


def test_a_process_that_dies_in_a_step_ends_the_others_in_words(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    codes, printed = two_processes(words(config, labelled.path), tmp_path, die_while_training)
    assert codes == [1, -9], printed
    assert "another process of this training has ended" in printed[0]
    assert "Traceback" not in printed[0]


def test_a_process_that_hangs_is_waited_for_as_long_as_was_asked(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    named = [*words(config, labelled.path), "--process-timeout", 5]
    codes, printed = two_processes(named, tmp_path, hang_while_training)
    assert codes == [1, -9], printed
    # after 5 seconds, and not when the other one dies after 9: that would be a closed connection
    assert "does not answer (" in printed[0]
    assert "Timed out waiting 5000ms" in printed[0]
    assert "Traceback" not in printed[0]
