"""Several processes share the encoding: the same batches as one process, and they stop and fail together.

Here the processes are threads, each with its own cache object on the same folder; test_many_processes.py has real ones.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from PIL import Image
from prefloop.core.errors import BadDataError, IntegrityError, Interrupted, PrefloopError, UsageError
from prefloop.core.id_columns import IdColumn, as_keys
from prefloop.core.signals import StopSignal
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.crops import Crop
from prefloop.train.distributed import refuse_sharding, refuse_unshared
from prefloop.train.prepare import on_first_use
from prefloop.train.ranks import Ranks
from prefloop.train.read_ahead import CropReader
from prefloop.train.stage import train
from prefloop.train.tensor_cache import Rows, TensorCache, open_cache

IDS = [UUID(int=number) for number in range(1, 21)]


@dataclass
class Meeting:
    """Where threads exchange values."""

    world: int
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = [None] * self.world
        self.barrier = threading.Barrier(self.world)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Processes that are threads."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, value: Any) -> list[Any]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait(20)
        values = list(self.meeting.values)
        self.meeting.barrier.wait(20)
        return values

    def from_main(self, value: Any) -> Any:
        return self.gather(value)[0]


def in_threads(world: int, action: Callable[[Ranks], Any]) -> list[Any]:
    """What the action returns or raises as each of the processes."""
    meeting = Meeting(world)

    def run(rank: int) -> Any:
        try:
            return action(ThreadRanks(rank, world, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


def values(ids: Sequence[UUID]) -> Rows:
    return list(ids), {"mean": torch.tensor([[float(identity.int)] for identity in ids])}


def test_two_processes_compute_the_batches_of_one_and_both_read_every_row(tmp_path: Path):
    seen: dict[int, list[list[UUID]]] = {0: [], 1: []}

    def fill(ranks: Ranks) -> torch.Tensor:
        def rows_of(ids: Sequence[UUID]) -> Rows:
            seen[ranks.rank].append(list(ids))
            return values(ids)

        cache, missing = open_cache(tmp_path / "latents", as_keys(IDS), ranks)
        cache.fill(IdColumn(missing), rows_of, "encoding", 3, ranks=ranks)
        return cache.rows("mean", IDS)

    # 20 rows are 7 batches of three, of which the last has two: 4 for the first process and 3 for the second
    for rows in in_threads(2, fill):
        assert rows[:, 0].tolist() == list(range(1, 21))
    batches = [IDS[at : at + 3] for at in range(0, 20, 3)]
    assert seen == {0: batches[0::2], 1: batches[1::2]}
    assert len(list((tmp_path / "latents").glob("*.safetensors"))) == 2  # each wrote its share
    assert TensorCache(tmp_path / "latents").missing(IDS) == []


def test_a_process_without_a_share_loads_nothing(tmp_path: Path):
    loaded: list[int] = []

    def fill(ranks: Ranks) -> float:
        encode = on_first_use(lambda: loaded.append(ranks.rank) or values)
        cache, missing = open_cache(tmp_path, as_keys(IDS), ranks)
        cache.fill(IdColumn(missing), encode, "encoding", 20, ranks=ranks)
        return float(cache.rows("mean", IDS).sum())

    assert in_threads(2, fill) == [210.0, 210.0]  # 1 + … + 20, one batch
    assert loaded == [0]
    assert in_threads(2, fill) == [210.0, 210.0]
    assert loaded == [0]  # nothing was missing


def test_a_signal_in_one_process_ends_all_after_the_same_batch_and_the_rest_keeps_its_batches(tmp_path: Path):
    def fill(ranks: Ranks) -> None:
        stop, n = StopSignal(), []

        def rows_of(ids: Sequence[UUID]) -> Rows:
            n.append(ids)
            if ranks.rank == 1 and len(n) == 2:
                stop.number = 15
            return values(ids)

        cache, missing = open_cache(tmp_path, as_keys(IDS), ranks)
        cache.fill(IdColumn(missing), rows_of, "encoding", 3, stop, ranks)

    ended = in_threads(2, fill)
    assert [type(error) for error in ended] == [Interrupted, Interrupted]
    assert [error.exit_code for error in ended] == [143, 143]
    assert [error.said_elsewhere for error in ended] == [False, True]  # one prints
    assert "12 of 20 are kept" in str(ended[0])  # two batches of three in each
    assert TensorCache(tmp_path).missing(IDS) == IDS[12:]


@pytest.mark.parametrize(("error", "kind"), [(BadDataError("no such image"), BadDataError), (ValueError("odd"), None)])
def test_an_error_in_one_process_is_raised_in_all_and_what_was_computed_is_kept(
    tmp_path: Path, error: Exception, kind: type | None
):
    def fill(ranks: Ranks) -> None:
        def rows_of(ids: Sequence[UUID]) -> Rows:
            if IDS[9] in ids:  # the fourth batch: the second of process 1
                raise error
            return values(ids)

        cache, missing = open_cache(tmp_path, as_keys(IDS), ranks)
        cache.fill(IdColumn(missing), rows_of, "encoding", 3, ranks=ranks)

    main, other = in_threads(2, fill)
    assert type(main) is (kind or PrefloopError)
    assert type(other) is type(error)
    assert ("process 1 of 2 failed: ValueError: odd" if kind is None else "no such image") in str(main)
    assert TensorCache(tmp_path).missing(IDS) == IDS[9:12] + IDS[12:]


def test_only_the_main_process_removes_damaged_files_and_all_compute_what_it_misses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = TensorCache(tmp_path)
    cache.fill(IDS[:10], values, "encoding", 5)
    cache.fill(IDS[10:], values, "encoding", 5)
    [path] = [path for path in tmp_path.glob("*.safetensors") if str(IDS[0]) in path.read_bytes().decode("latin-1")]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    opened = in_threads(2, lambda ranks: list(IdColumn(open_cache(tmp_path, as_keys(IDS), ranks)[1])))
    assert opened == [IDS[:10], IDS[:10]]
    assert capsys.readouterr().err.count("damaged") == 1


def test_a_file_of_another_process_that_cannot_be_seen_is_named(tmp_path: Path):
    with pytest.raises(IntegrityError, match=r"0a\.safetensors, which another process has written.*all nodes share"):
        TensorCache(tmp_path).add_file("0a.safetensors", wait=0.0)


def test_a_folder_that_another_process_does_not_see_is_refused_in_all(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    # the same path on two nodes that share nothing is two folders
    ended = in_threads(
        2, lambda ranks: refuse_unshared(tmp_path / ("one", "two")[ranks.rank], "the output folder", ranks, wait=0.0)
    )
    assert [type(error) for error in ended] == [UsageError, UsageError]
    assert "the output folder" in str(ended[0])
    assert "is not the one that process 1 on " in str(ended[0])
    assert in_threads(2, lambda ranks: refuse_unshared(tmp_path / "one", "it", ranks, wait=5.0)) == [None, None]
    assert [list((tmp_path / name).iterdir()) for name in ("one", "two")] == [[], []]  # nothing is left behind


def test_an_image_is_decoded_once_for_all_its_crops():
    left_white = Image.new("RGB", (8, 8))
    left_white.paste((255, 255, 255), (0, 0, 4, 8))
    image, decoded = UUID(int=1), []
    crops = [(image, "path", Crop(8, 8)), (image, "path", Crop(8, 8, mirrored=True))]
    with CropReader(lambda opened, _: decoded.append(opened) or left_white, lambda _: crops) as reader:
        reader.start(IDS[:2])
        read, unreadable = reader.take(IDS[:2])
    assert decoded == [image]
    assert unreadable == {}
    assert list(read) == IDS[:2]
    assert read[IDS[0]][0][0, 0].tolist() == [1.0] * 4 + [-1.0] * 4
    assert torch.equal(read[IDS[1]][0], read[IDS[0]][0].flip(-1))


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_a_model_split_over_processes_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, variable: str, name: str, labelled: PairStore, config: TrainConfig
):
    monkeypatch.setenv(variable, "false")
    refuse_sharding()
    monkeypatch.setenv(variable, "true")  # as `accelerate launch` sets it from its configuration
    with pytest.raises(UsageError, match=f"configured for {name}.*torchrun"):
        train(config, labelled)
    assert not Path(config.output_dir).exists()
