"""The benchmark of a large store, at a small size: the store is valid, every step counts what it should, and a plot is written."""

from copy import deepcopy
from pathlib import Path

import prefloop.bench.store as store_bench
import pytest
from prefloop.bench import store_steps
from prefloop.bench.big_store import PERSON, fill
from prefloop.bench.store import TARGETS, missed
from prefloop.bench.store_plot import plot
from prefloop.bench.store_steps import measured
from prefloop.core.ids import prompt_id
from prefloop.store import PairStore, pair_id
from prefloop.store.check import check

N = 300


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    store = PairStore.create(tmp_path_factory.mktemp("big") / "store")
    fill(store, N, n_files=2 * N)
    store.ingest()
    return store


@pytest.mark.slow(reason="measures every step of a store")
def test_a_generated_store_is_valid_and_has_the_requested_size(big: PairStore):
    assert check(big) == []  # every image is a file here, and its content gives its id
    tables = ("pairs", "images", "generations", "scores", "labels", "prompts")
    counts = {table: big.rows(f"select count(*) from {table}")[0][0] for table in tables}
    expected = {"pairs": N, "images": 2 * N, "generations": 2 * N, "scores": 4 * N, "labels": 2 * N}
    assert counts == expected | {"prompts": -(-N // 17)}


def test_ids_and_labels_follow_from_content(big: PairStore):
    for identity, prompt, a, b in big.rows("select pair_id, prompt_id, image_a, image_b from pairs"):
        assert identity == pair_id(prompt, a, b)
    for identity, text in big.rows("select prompt_id, prompt from prompts"):
        assert identity == prompt_id(text)
    wrong = """select count(*) from score_pairs('pickscore') s join labels l using (pair_id)
        where l.labeler = 'pickscore' and (l.choice <> if(score_a > score_b, 'a', 'b') or l.margin <> abs(score_a - score_b))"""
    assert big.rows(wrong) == [(0,)]
    ((agreement,),) = big.rows(f"select agree_decided from agreement where labeler = '{PERSON}'")
    assert 0.7 < agreement < 0.9  # four times in five


@pytest.mark.slow(reason="measures every step of a store")
def test_every_step_is_measured_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # twelve processes would take longer to start than the steps take
    def run_step(name: str, path: Path, n: int) -> dict[str, float]:
        return (in_own_process if name == "open" else measured)(name, path, n)

    in_own_process = store_bench.run_step
    monkeypatch.setattr(store_bench, "run_step", run_step)
    for module in (store_bench, store_steps):
        monkeypatch.setattr(module, "N_JPEGS", 60)
    result = store_bench.measure(tmp_path / "stores", N, rounds=1)
    counts = {name: step["n"] for name, step in result["steps"].items()}
    rows = 4 + 2 + 2 + 18 + (1 + 2 + 2 + 4 + 2) * N  # models, scorers, labelers, prompts; then by pair
    expected = {"ingest": rows, "stats": N, "agreement": N, "all unscored": 2 * N, "import": N}
    # 18 prompts have 34 images each; 3 batches of 32 scores are too few to be merged
    expected |= {"plan": 612, "write cache": 2 * N, "open cache": 2 * N, "small parts": 3}
    assert {name: counts[name] for name in expected} == expected
    assert 0 < counts["win rates"] < 2 * N  # labels of pairs whose models differ
    assert 0 < counts["training list"] <= N
    assert N < counts["train start"] == counts["train resume"] <= 2 * N
    assert all(step["process"] > 0 and step["peak_mb"] > 20 for step in result["steps"].values())
    assert result["steps"]["open"]["peak_mb"] < 500
    assert result["steps"].keys() == TARGETS.keys() | {"make", "write cache"}
    image = tmp_path / "plot.png"
    plot([result, result | {"pairs": 10 * N}], TARGETS, image)
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert not list((tmp_path / "stores").iterdir())


def test_a_missed_target_is_reported():
    steps = {name: {"process": (target or 1) / 2, "peak_mb": 100} for name, target in TARGETS.items()}
    result = {"pairs": 10_000, "steps": steps, "file_mb": 10, "ingested_file_mb": 10}
    few = deepcopy(result)
    assert missed(result, few) == []
    steps["stats"]["process"], steps["open"]["peak_mb"], result["file_mb"] = 2.5, 3000, 1700
    steps["train resume"]["peak_mb"] = 601
    assert missed(result, few) == [
        "stats: 2.50 s, target 2.0 s",
        "open: 3000 MB of memory, target 2048",
        "train resume: 501 MB more than for 10,000 pairs, target 500",
        "file: 1700 MB, target 1600",
    ]
