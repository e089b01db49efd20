"""An image that is gone or damaged is left out of reports, which are written without it and say so."""

import json
import re
from pathlib import Path
from uuid import UUID

import content
import pytest
from prefloop.core.errors import PrefloopError
from prefloop.eval import EvalConfig
from prefloop.eval.lost import lost_images
from prefloop.eval.stage import evaluate, report_again
from prefloop.models.resolve import find_model
from prefloop.store import PairStore
from safetensors.torch import load_file, save_file


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> EvalConfig:
    """Another decoder against the tiny pipeline's, on three prompts."""
    other = content.copied(tiny_pipeline, tmp_path / "other")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["decoder.conv_out.bias"] += 0.3
    save_file(state, weights)
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    return EvalConfig(
        models=(str(other),),
        baseline=str(tiny_pipeline),
        prompts=str(tmp_path / "prompts.txt"),
        scorers=("little_scorers:Redness",),
        num_inference_steps=1,
        n_resamples=100,
        output_dir=str(tmp_path / "report"),
    )


def test_a_report_is_made_without_lost_images_and_its_numbers_stay(
    store: PairStore, config: EvalConfig, capsys: pytest.CaptureFixture[str]
):
    before = evaluate(config, store)
    assert "left out" not in capsys.readouterr().err
    model = find_model(config.models[0]).model_id
    query = "select prompt, image_id from evaluation_images join prompts using (prompt_id) where model_id = ? order by place"
    (one, gone), (two, damaged), (three, _) = store.rows(query, [model])
    store.image_path(gone).unlink()
    store.image_path(damaged).write_bytes(b"no image")
    after = evaluate(config, store)
    assert after["scorers"] == before["scorers"]
    again = report_again(before["name"], config.output_dir, store)[1]
    assert again["scorers"] == before["scorers"]
    # once for each report, with one of the two files and what names both
    line, same = capsys.readouterr().err.splitlines()[-2:]
    assert line == same
    first = min(gone, damaged)
    assert (
        f"left out of the report: 2 images whose file is missing or damaged, such as {store.image_path(first)}" in line
    )
    assert f"`prefloop store check --store {store.path}`" in line
    folder = Path(config.output_dir or "")
    page = (folder / "report.html").read_text()
    assert three in re.findall(r'alt="[^"]*: (\w+)"', page)
    assert {one, two}.isdisjoint(re.findall(r'alt="[^"]*: (\w+)"', page))
    assert json.loads((folder / "results.json").read_text())["n_pairs"] == 3


def test_a_report_stays_as_it_is_if_no_image_is_there(store: PairStore, config: EvalConfig):
    before = evaluate(config, store)
    page = (Path(config.output_dir or "") / "report.html").read_bytes()
    (store.path / "images").rename(store.path / "elsewhere")
    with pytest.raises(
        PrefloopError, match=r"cannot read .*\.png: No such file or directory; no image for the report can"
    ) as e:
        report_again(before["name"], config.output_dir, store)
    assert str(e.value).endswith(f"so restore {store.path}/images from a backup")
    assert (Path(config.output_dir or "") / "report.html").read_bytes() == page


def test_an_intact_image_is_not_lost(store: PairStore, capsys: pytest.CaptureFixture[str]):
    image, never_written = content.add_image(store, (9, 9, 9)), UUID(int=5)
    assert lost_images(store, [image], "a page") == set()
    assert capsys.readouterr().err == ""
    assert lost_images(store, [image, never_written], "a page") == {never_written}
    assert "left out of a page: 1 image whose file" in capsys.readouterr().err
