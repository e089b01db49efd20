"""The page of a loop, which says more if there were several rounds to choose from."""

from pathlib import Path

import pytest
from prefloop.loop.best import best_round
from prefloop.loop.config import LoopConfig, LoopSettings
from prefloop.loop.report import write_report
from prefloop.store import PairStore
from rounds import finished, judged

PROMPTS = [judged(f"prompt {n}", 0.6) for n in range(20)]


def page(folder: Path, n_rounds: int, win_rate: float = 0.6) -> str:
    prompts = [judged(prompt.prompt, win_rate) for prompt in PROMPTS]
    settings = LoopSettings(
        LoopConfig(output_dir=str(folder)),
        generate={"images_per_prompt": 2},
        relabel={"scorers": ("clip",)},
        train={},
        eval={},
    )
    rounds = [finished(number, prompts=prompts) for number in range(1, n_rounds + 1)]
    store = PairStore.create(settings.loop.store_path)
    return write_report(settings, rounds, best_round(rounds), "stopped here", store).read_text()


def test_one_round_is_not_called_the_best_and_is_shown_on_all_prompts(tmp_path: Path):
    html = page(tmp_path, 1)
    assert "<title>1 round of shapes</title>" in html
    assert "Stopped: stopped here." in html
    assert "All 20 prompts" in html
    assert html.count('aria-label="Against the base"') == 1
    for words in ("the highest", "the other half", "against the round before"):
        assert words not in html.lower()
    assert html.count("In-sample: labels by this scorer") == 1


def test_the_best_of_two_rounds_is_shown_on_the_other_half_of_the_prompts(tmp_path: Path):
    html = page(tmp_path, 2)
    assert "<title>2 rounds of shapes</title>" in html
    for words in ("was the highest on half of the 20 evaluation prompts", "Kept: <strong>round 1</strong>"):
        assert words in html
    # one table of the other half, 10 prompts; one of each comparison
    assert html.count("<td>10</td>") == 1
    assert html.count('aria-label="Against the base"') == html.count('aria-label="Against the round before"') == 1
    assert html.count("In-sample: labels by this scorer") == 1


@pytest.mark.slow(reason="runs rounds of a loop")
def test_a_result_that_is_not_better_than_the_base_says_so(tmp_path: Path):
    words = "<strong>Nothing shows that it is better than the base</strong>: the mean win rate by hps"
    assert words not in page(tmp_path / "better", 2, 0.51)
    assert words in page(tmp_path / "equal", 2, 0.5)
    assert words in page(tmp_path / "worse", 1, 0.4)
