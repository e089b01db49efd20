"""Two workers do what one process does, and what happens when one of them dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter as Counts
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import little_workers
import pytest
import torch
from content import TESTS, add_image, add_pair, add_prompt, command, environment, fill
from little_workers import Counter, die, double, fail
from prefloop.core.errors import IntegrityError, Interrupted, PrefloopError, UsageError
from prefloop.core.executor import InProcess, pool_of
from prefloop.core.signals import StopSignal
from prefloop.eval.config import EvalConfig
from prefloop.eval.stage import report_again, run_evaluation
from prefloop.generate import GenerateConfig
from prefloop.generate.image_worker import _find_and_load, image_workers
from prefloop.generate.stage import generate, model_facts, plan
from prefloop.loop.settings_file import identity, read_loop
from prefloop.relabel import RelabelConfig
from prefloop.relabel.scorer_worker import ScorerWorker, ScoringJob
from prefloop.relabel.scorers.registry import identity as scorer_identity
from prefloop.relabel.scorers.registry import load_scorers
from prefloop.relabel.scores import score_images, unscored
from prefloop.relabel.scoring_pool import _results
from prefloop.relabel.stage import relabel
from prefloop.store import ImageError, PairStore, load_image
from prefloop.store.check import check

ray = pytest.importorskip("prefloop.core.ray_workers").ray
STOP = StopSignal()
ON_SIGTERM = signal.getsignal(signal.SIGTERM)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """Started by the first pool, for all tests of this module: it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
        ray.shutdown()


pytestmark = pytest.mark.usefixtures("_cluster")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "events").mkdir()
    return tmp_path / "events"


def events(folder: Path, name: str) -> int:
    return len((folder / name).read_text())


def contents(store: PairStore) -> dict[str, list[tuple]]:
    tables = {
        "models": "",
        "generations": "exclude (run_id)",
        "scores": "exclude (run_id)",
        "labels": "exclude (run_id)",
    }
    return {table: store.rows(f"select * {less} from {table} order by all") for table, less in tables.items()}


@pytest.mark.slow(reason="starts Ray and its workers")
def test_images_scores_and_labels_of_two_workers_are_equal_to_the_bit(tiny_pipeline: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(4)))
    config = GenerateConfig(
        model=str(tiny_pipeline),
        prompts=str(tmp_path / "prompts.txt"),
        images_per_prompt=2,
        num_inference_steps=2,
        batch_size=3,
    )
    # one is scored by embeddings of images and prompts, the other by score()
    scoring = RelabelConfig(
        scorers=("pickscore", "little_scorers:Redness"),
        checkpoints={"pickscore": "shapes"},
        rule="mean-rank",
        batch_size=3,
    )
    stores = [PairStore.create(tmp_path / name) for name in ("one", "two")]
    summaries = []
    for store, n in zip(stores, (1, 2), strict=True):
        made = generate(replace(config, workers=n), store)
        scored = relabel(replace(scoring, workers=n), store)
        summaries.append((made, {key: value for key, value in scored.items() if key != "seconds"}))
    assert summaries[0] == summaries[1]
    one, two = map(contents, stores)
    assert [len(one[table]) for table in one] == [1, 8, 16, 4]
    assert one == two
    assert check(stores[1]) == []
    assert generate(replace(config, workers=2), stores[0])["generated"] == 0


@pytest.mark.slow(reason="two workers load each of two models")
def test_an_evaluation_by_two_workers_is_that_of_one_and_is_reported_again_without_ray(
    tiny_pipeline: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {number}" for number in range(3)))
    config = EvalConfig(
        models=(str(lora),),
        baseline=str(tiny_pipeline),
        prompts=str(tmp_path / "prompts.txt"),
        scorers=("little_scorers:Redness",),
        num_inference_steps=1,
        batch_size=2,
        n_resamples=100,
        name="both",
    )
    stores, results = [PairStore.create(tmp_path / name) for name in ("one", "two")], []
    for store, n in zip(stores, (1, 2), strict=True):
        results.append(run_evaluation(replace(config, workers=n), store)[1])
    assert results[0]["scorers"] == results[1]["scorers"]
    one, two = map(contents, stores)
    assert [len(one[table]) for table in one] == [2, 6, 6, 3]
    assert one == two
    monkeypatch.setitem(sys.modules, "ray", None)
    assert report_again("both", None, stores[1])[1]["scorers"] == results[1]["scorers"]


def test_workers_are_not_part_of_what_a_run_is(tiny_pipeline: Path):
    config = GenerateConfig(model=str(tiny_pipeline), prompts="shapes", limit=2)
    ids = [[g.generation_id for g in plan(replace(config, workers=n), None).generations] for n in (1, 2)]
    assert ids[0] == ids[1]
    sections = [f"{section}.workers=2" for section in ("generate", "relabel", "eval")]
    settings = read_loop(None, assignments=[*sections, "generate.images_per_prompt=3"])
    assert settings.generate_config(1).workers == settings.eval_config(1, "shapes").workers == 2
    assert identity(settings) == identity(read_loop(None, assignments=["generate.images_per_prompt=3"]))


@pytest.mark.slow(reason="starts Ray and its workers")
def test_jobs_are_drawn_two_per_worker_ahead_and_all_are_done(folder: Path):
    drawn, ahead, results = 0, [], {}

    def jobs() -> Iterator[int]:
        nonlocal drawn
        for job in range(12):
            drawn += 1
            yield job

    with pool_of(2, partial(Counter, folder)) as pool:
        for job, result in pool.done(double, jobs(), STOP):
            results[job] = result
            ahead.append(drawn - len(results))
    assert results == {job: 2 * job for job in range(12)}
    assert max(ahead) <= 4
    assert signal.getsignal(signal.SIGTERM) is ON_SIGTERM  # Ray's own would end the process
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]  # nothing listens on another
    assert 1 <= events(folder, "made") <= 2


@pytest.mark.slow(reason="starts Ray and its workers")
def test_the_jobs_of_a_worker_that_dies_are_done_and_none_is_blamed_for_another(folder: Path):
    # both are with the only worker when the first kills it; the second then kills two more, of three that it may
    from prefloop.core.ray_workers import RayPool

    jobs = [("first", 1), ("second", 2), ("third", 0)]
    with RayPool(1, partial(Counter, folder), None) as pool:
        assert sorted(pool.done(die, jobs, STOP)) == sorted((job, job[0]) for job in jobs)
    assert (events(folder, "first"), events(folder, "second"), events(folder, "made")) == (2, 3, 4)


@pytest.mark.slow(reason="starts Ray and its workers")
def test_a_job_that_kills_three_workers_alone_ends_the_run_with_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    jobs = [("second", 99), *((f"job {number}", 0) for number in range(4))]
    finished = []

    def take() -> None:
        with pool_of(2, partial(Counter, folder)) as pool:
            for _, name in pool.done(die, jobs, STOP):
                finished.append(name)

    with pytest.raises(
        PrefloopError, match=r"workers died 3 times on \('second', 99\): ActorDiedError.*same command"
    ) as e:
        take()
    assert "\n" not in str(e.value)
    assert set(finished) <= {f"job {number}" for number in range(4)}
    printed = capsys.readouterr()
    assert printed.out == ""  # it is for results, but Ray writes there
    assert (
        printed.err.count("a worker died, and its batches are done again: ActorDiedError")
        == events(folder, "second") - 1
    )
    assert 3 <= events(folder, "second") <= 4


@pytest.mark.parametrize(("job", "kind", "code"), [("usage", UsageError, 2), ("image", ImageError, 1)])
def test_an_error_in_a_worker_arrives_as_itself(folder: Path, job: str, kind: type[PrefloopError], code: int):
    with pytest.raises(kind) as raised, pool_of(2, partial(Counter, folder)) as pool:
        list(pool.done(fail, [job], STOP))
    assert type(raised.value) is kind
    assert (str(raised.value), raised.value.exit_code) in [("beta must be positive", 2), ("it has changed", 1)]
    assert raised.value.exit_code == code
    assert getattr(raised.value, "reason", "hash") == "hash"


def test_a_model_that_a_worker_does_not_have_is_named(folder: Path, tiny_pipeline: Path):
    with (
        pytest.raises(PrefloopError, match="cannot find the model 'nowhere'"),
        pool_of(2, partial(little_workers.no_model, folder)) as pool,
    ):
        list(pool.done(double, [1], STOP))
    with pytest.raises(IntegrityError, match=f"on the worker .*, {tiny_pipeline} is another model"):
        _find_and_load(str(tiny_pipeline), None, UUID(int=1), GenerateConfig())
    with pytest.raises(IntegrityError, match="is redness@1, not redness@2; give it the same weights"):
        ScorerWorker("little_scorers:Redness", {}, (None,), "redness@2")


@pytest.mark.slow(reason="starts Ray")
def test_workers_on_gpus_that_this_machine_lacks_are_told_to_use_processors(folder: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with (
        pytest.raises(UsageError, match="2 workers need a GPU each, and this machine has none; leave out --device"),
        pool_of(2, partial(Counter, folder), "cuda") as pool,
    ):
        list(pool.done(double, [1], STOP))


def test_a_signal_ends_the_wait_for_workers(folder: Path):
    stop = StopSignal()
    stop.number = signal.SIGTERM
    with pytest.raises(Interrupted) as ended, pool_of(2, partial(Counter, folder)) as pool:
        list(pool.done(double, [1], stop))
    assert ended.value.exit_code == 143
    assert not (folder / "made").exists() or events(folder, "made") <= 2


def test_one_worker_is_this_process_and_loads_nothing_before_its_first_job(tiny_pipeline: Path):
    planned = plan(GenerateConfig(model=str(tiny_pipeline), prompts="shapes", limit=1, num_inference_steps=1), None)
    with image_workers(planned) as pool:
        assert isinstance(pool, InProcess)
        assert pool._made == []
        facts = model_facts(pool, ["a red circle"], STOP)
        assert facts.description["pipeline"] == "StableDiffusionPipeline"
        assert len(pool._made) == 1


def test_bytes_go_with_the_jobs_once_a_worker_does_not_see_the_store(store: PairStore, monkeypatch):
    fill(store, n_prompts=3, images_per_prompt=2)
    items = list(unscored(store, "redness@1", ("generate",)))
    unlucky = items[-1]
    (store.path / unlucky.path).unlink()
    with_data = []

    def elsewhere(worker: ScorerWorker, job: ScoringJob):
        """As on a machine without the store's folder."""
        with_data.append(job.data is not None)
        return worker.scores(replace(job, folder=Path("/nowhere")))

    monkeypatch.syspath_prepend(str(TESTS))
    pool = InProcess(lambda: ScorerWorker("little_scorers:Redness", {}, (None,), "redness@1"))
    counts, jobs = Counts[str](), [ScoringJob(store.path, items[at : at + 2]) for at in (0, 2, 4)]
    results = [result for _, result in _results(pool, elsewhere, jobs, counts, STOP)]
    # the first job comes back, the others have their bytes, and it is repeated with them
    assert with_data == [False, True, True, True]
    assert counts == {"image missing": 1}
    assert {item.image_id for result in results for item in result.readable} == {i.image_id for i in items[:-1]}
    # of the prompt's two images, (10, 0, n) and (110, 0, n), the redness is the red
    assert {float(value) for result in results for value in result.values} == {10.0, 110.0}


def test_tags_columns_and_embeddings_of_a_worker_are_those_of_this_process(
    store: PairStore, tmp_path: Path, monkeypatch
):
    monkeypatch.syspath_prepend(str(TESTS / "relabel"))
    for number in range(3):
        prompt = add_prompt(store, f"prompt {number}", factor=str(number + 2))
        images = [add_image(store, (50 * place, 30, number)) for place in range(4)]
        for first, second in pairwise(images):
            add_pair(store, prompt, first, second)
    store.ingest()
    other = PairStore(shutil.copytree(store.path, tmp_path / "other"))
    for name in ("little_scorers:Tagged", "test_scorer_columns:Spread", "test_embeddings:Colours"):
        (scorer,) = load_scorers((name,), {})
        pool = InProcess(partial(ScorerWorker, name, {}, (None,), scorer_identity(scorer)))
        for one, workers in ((store, None), (other, pool)):
            items = unscored(one, scorer_identity(scorer), ("generate",))
            counts = score_images(one, scorer, items, batch_size=5, run_id=uuid4(), stop=STOP, workers=workers)
            assert counts["scored"] == 12
        assert pool._made, name
    assert store.rows("select count(*) from scores") == [(12 + 3 * 12 + 12,)]
    assert contents(store) == contents(other)
    ((image,),) = store.rows("select image_id from scores where scorer = 'tagged@1' and score = 600")
    # red 150 of the fourth image, times 4 of the third prompt
    assert load_image(store.image_path(image)).getpixel((0, 0)) == (150, 30, 2)


@pytest.mark.slow(reason="starts Ray and its workers")
def test_ctrl_c_leaves_no_process_and_one_process_continues(tmp_path: Path):
    store = PairStore.create(tmp_path / "store")
    fill(store, n_prompts=20, images_per_prompt=4)
    mark, log = f"mark-{uuid4()}", tmp_path / "log"
    words = ["relabel", "--scorer", "little_scorers:Slow", "--batch-size", 1, "--store", store.path]
    process = subprocess.Popen(
        command(*words, "--workers", 2),
        cwd=tmp_path,
        env=environment(SLOW_SCORER_LOG=str(log), MARK=mark),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.strip().splitlines()[-1].startswith("prefloop: interrupted: ")
    deadline = time.monotonic() + 10
    while marked(mark) and time.monotonic() < deadline:  # killed processes end a moment later
        time.sleep(0.1)
    assert marked(mark) == []
    os.environ["SLOW_SCORER_LOG"] = str(log)
    try:
        summary = relabel(RelabelConfig(scorers=("little_scorers:Slow",)), PairStore.open(store.path))
    finally:
        del os.environ["SLOW_SCORER_LOG"]
    assert 0 < summary["scored"]["slow"] < 80
    assert store.rows("select count(*) from scores") == [(80,)]


def marked(mark: str) -> list[str]:
    """Command lines of the processes with a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow(reason="starts Ray and its workers")
@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_workers_that_is_not_positive_is_refused(n: int):
    for make in (GenerateConfig, RelabelConfig, partial(EvalConfig, models=("shapes",))):
        with pytest.raises(UsageError, match="workers must be positive"):
            make(workers=n)


@pytest.mark.slow(reason="starts Ray and its workers")
def test_without_ray_several_workers_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"several workers need Ray; run `pip install 'prefloop\[ray\]'`"):
        RelabelConfig(workers=2)
    assert RelabelConfig(workers=1).workers == 1
