"""The judges of an evaluation that names none are those of the usual ones that can run here."""

import shutil
from pathlib import Path
from typing import Any

import little_hub
import pytest
import tiny
from prefloop.eval import EvalConfig
from prefloop.eval.judges import choose_scorers
from prefloop.eval.stage import evaluate, report_again
from prefloop.models.resolve import find_model
from prefloop.relabel.scorers import hps, pickscore
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.relabel.scorers.sources import MissingWeights
from prefloop.store import PairStore

CONFIG = EvalConfig(models=("m",))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached_pickscore(cache: Path) -> None:
    """The built-in world's small PickScore where the official one would be."""
    folder = cache / f"models--{pickscore.OFFICIAL.replace('/', '--')}"
    shutil.copytree(built_in("pickscore"), folder / "snapshots" / little_hub.COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(little_hub.COMMIT)


def test_judges_without_weights_are_left_out_and_if_none_is_left_nothing_starts(cache: Path, tiny_pipeline: Path):
    model = find_model(str(tiny_pipeline))
    with pytest.raises(MissingWeights, match="`prefloop scorers fetch pickscore hps clip aesthetics`"):
        choose_scorers(CONFIG, model, fetch=True)
    cached_pickscore(cache)
    for fetch in (False, True):
        config, left_out = choose_scorers(CONFIG, model, fetch=fetch)
        assert config.scorers == ("pickscore",)
        assert list(left_out) == ["hps", "clip", "aesthetics"]
        assert left_out["hps"].startswith("lacks xswu/HPSv2/HPS_v2.1_compressed.pt; ")
        assert "HF_HUB_OFFLINE is set" in left_out["hps"]


@pytest.mark.usefixtures("cache")
def test_a_judge_that_is_named_or_has_a_checkpoint_is_never_left_out(tiny_pipeline: Path):
    model = find_model(str(tiny_pipeline))
    named = EvalConfig(models=("m",), scorers=("clip", "hps"))
    assert choose_scorers(named, model, fetch=True) == (named, {})
    mine = EvalConfig(models=("m",), checkpoints={"hps": "no/weights"})
    assert choose_scorers(mine, model, fetch=True)[0].scorers == ("hps",)
    people = EvalConfig(models=("m",), human=True)
    assert choose_scorers(people, model, fetch=True)[0].scorers == ("human",)


def test_missing_weights_are_downloaded_and_what_the_hub_lacks_is_left_out(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = find_model(str(tiny_pipeline))
    with little_hub.serving() as hub:
        little_hub.use(monkeypatch, hub.address, tmp_path)
        monkeypatch.setattr(hps.HPS, "reads", (little_hub_file(hub),))
        monkeypatch.setattr("prefloop.relabel.scorers.aesthetics.Aesthetics.reads", ("no/repository/file.pt",))
        config, left_out = choose_scorers(CONFIG, model, fetch=False)
        assert (len(config.scorers), left_out, hub.requests) == (4, {}, [])
        config, left_out = choose_scorers(CONFIG, model, fetch=True)
    assert config.scorers == ("hps",)
    assert "cannot download config.json of yuvalkirstain/PickScore_v1: 404" in left_out["pickscore"]


def little_hub_file(hub: little_hub.Hub) -> str:
    hub.files["owner/name/hps.pt"] = b"weights"
    return "owner/name/hps.pt"


@pytest.mark.slow(reason="generates and judges images")
def test_an_evaluation_says_which_judges_it_lacks(
    store: PairStore, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cached_pickscore(cache)
    models = [tiny.saved("sd15", tmp_path / name) for name in ("a", "b")]
    (models[1] / "note.json").write_text("{}")  # another model
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    config = EvalConfig(
        models=(str(models[0]),),
        baseline=str(models[1]),
        prompts=str(tmp_path / "prompts.txt"),
        num_inference_steps=1,
        n_resamples=100,
        name="mine",
        device="cpu",
    )
    result: dict[str, Any] = evaluate(config, store)
    assert list(result["left_out"]) == ["hps", "clip", "aesthetics"]
    assert [name for name, _ in result["scorer_ids"]] == ["pickscore"]
    told = capsys.readouterr().err
    assert "hps does not judge: it lacks xswu/HPSv2/HPS_v2.1_compressed.pt; " in told
    assert "to let them judge too, with a network: prefloop scorers fetch hps clip aesthetics" in told
    assert "Usual judges that could not run: hps (lacks" in (Path(result["report"]) / "report.html").read_text()
    assert report_again("mine", None, store)[1]["left_out"] == result["left_out"]
