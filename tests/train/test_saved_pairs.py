"""The pairs that a run began with: who compares them with today's labels, and what cannot be gone on with."""

from dataclasses import replace
from pathlib import Path

import content
import pytest
from prefloop.store import IntegrityError, PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.distributed import follows_main
from prefloop.train.pairs import select_pairs
from prefloop.train.run_folder.overwrite import set_aside
from prefloop.train.run_folder.saved_pairs import save_pairs, select_for_run
from prefloop.train.stage import train


@pytest.fixture
def begun(labelled: PairStore, config: TrainConfig) -> PairStore:
    """The labelled store, of which a run has begun and written a checkpoint, and a label that is taken back since."""
    pairs = select_pairs(labelled, config)
    save_pairs(Path(config.output_dir), config, pairs, pairs)
    (Path(config.output_dir) / "checkpoint-1").mkdir()
    content.add_label(labelled, pairs.train[0].pair_id, "redder", "skip", revision=1)
    labelled.ingest()
    return labelled


def altered(config: TrainConfig) -> None:
    kept = Path(config.output_dir) / ".run" / "pairs.parquet"
    kept.write_bytes(kept.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("size", "rank"),
    [
        ("WORLD_SIZE", "RANK"),
        ("PMI_SIZE", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ],
)
def test_of_several_processes_the_main_one_alone_compares_the_labels(
    begun: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, size: str, rank: str
):
    assert select_for_run(config, begun).n_changed == 1
    monkeypatch.setenv(size, "2")
    for number, n_changed in (("0", 1), ("1", 0)):
        monkeypatch.setenv(rank, number)
        selection = select_for_run(config, begun)
        assert (selection.pairs, selection.n_changed) == (None, n_changed)


@pytest.mark.parametrize(
    ("variables", "follows"),
    [
        ({}, False),
        ({"RANK": "1"}, False),  # left over; there is one process
        ({"RANK": "1", "WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": "2"}, False),
        ({"RANK": "", "PMI_RANK": "1", "WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "PMI_RANK": "1", "WORLD_SIZE": "2"}, False),  # torchrun's counts
        ({"RANK": "11", "WORLD_SIZE": "16"}, True),
    ],
)
def test_a_process_follows_the_main_one_if_it_has_a_rank_among_several(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], follows: bool
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert follows_main() is follows


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_altered_list_ends_every_process_with_the_cure(
    begun: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, rank: str
):
    altered(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(
        IntegrityError, match=r"pairs.parquet is missing .*; put it back, or give --overwrite or another"
    ):
        select_for_run(config, begun)
    pairs = select_for_run(config, begun, overwrite=True).pairs
    assert pairs == (select_pairs(begun, config) if rank == "0" else None)  # the other one gets the main one's


def test_pairs_that_cannot_be_selected_end_every_process(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UsageError, match="nobody"):
            select_for_run(replace(config, labelers=("nobody",)), labelled)


def test_a_run_without_a_checkpoint_begins_with_the_labels_of_today_whatever_is_left_of_its_list(
    begun: PairStore, config: TrainConfig
):
    (Path(config.output_dir) / "checkpoint-1").rmdir()
    altered(config)
    selection = select_for_run(config, begun)
    assert selection.pairs == select_pairs(begun, config)
    assert selection.n_changed == 0


@pytest.mark.slow(reason="trains a model")
def test_labels_are_compared_though_an_overwriting_run_that_was_killed_hid_the_run(
    labelled: PairStore, config: TrainConfig, capsys: pytest.CaptureFixture[str]
):
    train(replace(config, max_train_steps=1), labelled)
    set_aside(Path(config.output_dir))
    content.add_label(labelled, select_pairs(labelled, config).train[0].pair_id, "redder", "skip", revision=1)
    labelled.ingest()
    selection = select_for_run(config, labelled)  # as the command calls it, before the run is put back
    assert selection.pairs is not None
    assert train(config, labelled, selection=selection, resume=True)["n_pairs"] == 29
    assert "1 label new or changed since" in capsys.readouterr().err
