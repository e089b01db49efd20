"""A scorer's further columns are kept beside its scores, and nothing takes them for scores."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_qwen as tiny
from content import add_image, add_label, add_labeler, add_pair, add_prompt, fill
from little_scorers import channel_means
from PIL.Image import Image
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.plan import plan
from prefloop.relabel.scorers.hpsv3 import HPSv3
from prefloop.relabel.scorers.hpsv3_prompt import TEMPLATE
from prefloop.relabel.stage import relabel
from prefloop.relabel.validation.validate import validate_scorers
from prefloop.store import PairStore, PrefloopError, load_image
from typer.testing import CliRunner


class Spread:
    """The mean of red, and beside it those of green and blue."""

    name, revision, needs_prompt, columns = "spread", "7", False, ("green", "blue")

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        return self.score_columns(prompts, images)[:, 0]

    def score_columns(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:  # noqa: ARG002
        return channel_means(images)


class Lacking(Spread):
    """Gives one column too few."""

    name = "lacking"

    def score_columns(self, prompts: Sequence[str], images: Sequence[Image]) -> np.ndarray:
        return super().score_columns(prompts, images)[:, :2]


SPREAD = RelabelConfig(scorers=("test_scorer_columns:Spread",))


def test_columns_are_kept_beside_the_scores_they_belong_to(store: PairStore):
    prompt = add_prompt(store, "something")
    first, second = add_image(store, (50, 60, 70)), add_image(store, (150, 30, 90))
    pair = add_pair(store, prompt, first, second)
    store.ingest()
    assert relabel(SPREAD, store)["scored"] == {"spread": 2}
    rows = store.rows("select scorer, image_id, score from scores")
    assert {(scorer, image): score for scorer, image, score in rows} == {
        ("spread@7", first): 50,
        ("spread-green@7", first): 60,
        ("spread-blue@7", first): 70,
        ("spread@7", second): 150,
        ("spread-green@7", second): 30,
        ("spread-blue@7", second): 90,
    }
    configs = {scorer: json.loads(config) for scorer, config in store.rows("select scorer, config from scorers")}
    assert {scorer: config.get("column_of") for scorer, config in configs.items()} == {
        "spread@7": None,
        "spread-green@7": "spread@7",
        "spread-blue@7": "spread@7",
    }
    assert store.rows("select pair_id, chosen from preferences") == [(pair, second)]  # by the score alone
    assert store.rows("select count(*) from score_pairs('spread')") == [(1,)]
    assert relabel(SPREAD, store)["scored"] == {"spread": 0}


def test_columns_are_not_measured_as_scorers(store: PairStore):
    pairs = fill(store, 3)
    relabel(SPREAD, store)
    add_labeler(store, "me")
    for pair in pairs:
        add_label(store, pair, "me", "a")
    store.ingest()
    assert [quality.scorer for quality in validate_scorers(store, "me")] == ["spread@7"]


def test_a_scorer_that_gives_fewer_columns_than_it_names_is_refused(store: PairStore):
    fill(store, 1)
    with pytest.raises(
        PrefloopError, match=r"lacking gave columns of shape \(2, 2\) for 2 images; .* must give 3 numbers"
    ):
        relabel(replace(SPREAD, scorers=("test_scorer_columns:Lacking",)), store)
    assert store.rows("select count(*) from scores") == [(0,)]


def test_hpsv3_labels_pairs_and_keeps_its_sigma(store: PairStore, tmp_path: Path):
    tokenizer = tiny.tokenizer(TEMPLATE)
    folder = tiny.save(tmp_path / "hpsv3", tiny.weights(tokenizer.get_vocab_size() + 1), tokenizer)
    fill(store, 1)
    config = RelabelConfig(scorers=("hpsv3",), checkpoints={"hpsv3": str(folder)}, device="cpu")
    scorer = HPSv3(str(folder), "cpu")
    (planned,) = plan(config, store)
    # 3 batches ahead of 64 images of 224 x 224 in float32
    assert (planned.unscored, planned.memory) == (2, scorer.memory(64) + 3 * 64 * 224 * 224 * 3 * 4)
    assert relabel(config, store)["scored"] == {"hpsv3": 2}
    kept = store.rows("""
        select image_id, prompt, s.score as mu, u.score as sigma
        from scores s
        join scores u using (image_id, prompt_id)
        join prompts using (prompt_id)
        where starts_with(s.scorer, 'hpsv3@') and u.scorer = replace(s.scorer, 'hpsv3@', 'hpsv3-sigma@')
    """)
    assert len(kept) == 2
    for image, prompt, mu, sigma in kept:
        (expected,) = scorer.score_columns([prompt], [load_image(store.image_path(image))])
        assert (mu, sigma) == pytest.approx(tuple(expected), abs=1e-5)
        assert sigma > 0


def test_hpsv3_can_be_checked_on_the_command_line(tmp_path: Path):
    tokenizer = tiny.tokenizer(TEMPLATE)
    n_tokens = tokenizer.get_vocab_size() + 1
    folder = tiny.save(tmp_path, tiny.weights(n_tokens), tokenizer)
    ended = CliRunner().invoke(app, ["scorers", "check", "hpsv3", "--checkpoint", str(folder)])
    first, second = ended.stdout.splitlines()
    assert first.startswith("hpsv3         64 tensors of ")
    assert f"<|Reward|> is token {n_tokens - 1}" in first
    # random weights: it passes or not, but it scores both images
    assert second.startswith(("hpsv3         pass  right ", "hpsv3         FAIL  right "))
    assert ended.exit_code == (0 if "pass" in second else 5)
    assert "\nhpsv3 " in CliRunner().invoke(app, ["scorers", "ls"]).stdout
