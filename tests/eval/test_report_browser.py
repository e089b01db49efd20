"""A report in a real browser: from disk, without a script, and with images one over the other."""

import shutil
from pathlib import Path

import pytest
from browsers import CHROMIUM
from playwright.sync_api import Page, expect, sync_playwright
from prefloop.core.report_script import SCRIPT, SCRIPT_SOURCE
from prefloop.eval import EvalConfig
from prefloop.eval.stage import evaluate
from prefloop.store import PairStore
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture
def page_file(store: PairStore, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report of an evaluation of two prompts, by a scorer that prefers the second model."""
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_pipeline, tuned)
    path = tuned / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["decoder.conv_out.bias"] += 0.6
    save_file(state, path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    report = tmp_path / "report"
    config = EvalConfig(
        models=(str(tuned),),
        baseline=str(tiny_pipeline),
        prompts=str(prompts),
        scorers=("little_scorers:Redness",),
        num_inference_steps=1,
        n_resamples=10,
        output_dir="report",
    )
    monkeypatch.chdir(tmp_path)
    assert evaluate(config, store)["report"] == "report"
    # from another folder `browse` finds it by what the store keeps
    assert store.rows("select config ->> '$.output_dir' from runs where kind = 'eval'") == [(str(report),)]
    return report / "report.html"


@pytest.mark.slow(reason="drives a browser")
def test_images_are_compared_at_the_same_place_by_keyboard_and_side_by_side_without_a_script(page_file: Path):
    def places(page: Page) -> list[tuple[float, float, float]]:
        boxes = [image.bounding_box() for image in page.locator(".views").first.locator("img").all()]
        return [(box["x"], box["y"], box["width"]) for box in boxes if box is not None]

    assert SCRIPT in page_file.read_text()
    assert SCRIPT_SOURCE in page_file.read_text()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        plain = browser.new_context(java_script_enabled=False, viewport={"width": 400, "height": 800}).new_page()
        page = browser.new_page(viewport={"width": 400, "height": 800})
        printed: list[str] = []
        page.on("console", lambda message: printed.append(message.text))
        for each in (plain, page):
            each.goto(f"file://{page_file}")
            left, right = places(each)
            assert left[1] == right[1]
            assert right[0] >= left[0] + left[2]
            assert min(left[2], right[2]) >= 0.45 * 400
        expect(plain.get_by_role("button", name="One over the other")).to_have_count(0)
        page.get_by_role("button", name="One over the other").click()
        left, right = places(page)
        assert left == right
        slider = page.get_by_role("slider").first
        slider.press("End")
        cut = "getComputedStyle(document.querySelectorAll('.views img')[1]).clipPath"
        assert page.evaluate(cut) == "inset(0px 0px 0px 100%)"  # only the first image is left to see
        slider.press("Home")
        assert page.evaluate(cut) == "inset(0px 0px 0px 0%)"
        assert printed == []
        browser.close()
