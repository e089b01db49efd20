"""Training a tiny pipeline: its steps, its result, and interruptions."""

import csv
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import content
import numpy as np
import pytest
import torch
from prefloop.cli import app
from prefloop.core.signals import StopSignal
from prefloop.models.resolve import find_model
from prefloop.store import IntegrityError, NumericalError, PairStore, UsageError
from prefloop.store.images import image_path
from prefloop.train import TrainConfig, pairs
from prefloop.train.cache import EMPTY_PROMPT_ID
from prefloop.train.cli import summary_text
from prefloop.train.objective import BATCH_METRICS, batch_metrics, pair_losses
from prefloop.train.pairs import select_pairs
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from results import checkpoint_weights
from safetensors.torch import load_file
from typer.testing import CliRunner


def metrics(config: TrainConfig) -> list[dict[str, str]]:
    with open(Path(config.output_dir) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output_dir) / "unet" / "diffusion_pytorch_model.safetensors")


def test_ties_never_become_wins(labelled: PairStore, config: TrainConfig):
    pairs = select_pairs(labelled, config)
    assert len(pairs.train) + len(pairs.validation) == 30  # 40 without the 10 ties
    prompts = {pair.prompt for pair in pairs.train + pairs.validation}
    assert not prompts & {f"prompt {number}" for number in range(0, 40, 4)}


def test_validation_prompts_are_not_trained_on(labelled: PairStore, config: TrainConfig):
    pairs = select_pairs(labelled, config)
    assert pairs.validation
    assert not {p.prompt_id for p in pairs.train} & {p.prompt_id for p in pairs.validation}


def test_the_fingerprint_is_the_hash_of_pairs_in_order_with_what_was_chosen_by_whom(
    labelled: PairStore, config: TrainConfig
):
    pair = select_pairs(labelled, config).train[0]
    content.add_labeler(labelled, "soft", kind="ai")
    content.add_label(labelled, pair.pair_id, "soft", "a", p_a=0.75)
    labelled.ingest()
    pairs = select_pairs(labelled, replace(config, labelers=("redder", "soft")))
    parts = [pair.pair_id.bytes + pair.chosen.bytes + f"{pair.labeler}{pair.p_chosen}".encode() for pair in pairs.train]
    assert len({pair.p_chosen for pair in pairs.train}) == 2
    assert pairs.fingerprint() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_where_selects_by_any_sql_over_preferences(labelled: PairStore, config: TrainConfig):
    selected = select_pairs(labelled, replace(config, where="prompt like 'prompt 1%' and margin > 0.5"))
    assert {pair.prompt for pair in selected.train + selected.validation} == {
        f"prompt {number}" for number in (1, *range(10, 20)) if number % 4
    }
    with pytest.raises(UsageError, match="has no decided training pairs"):
        select_pairs(labelled, replace(config, where="margin > 5"))
    with pytest.raises(UsageError, match="--where"):
        select_pairs(labelled, replace(config, where="no_such_column = 1"))
    with pytest.raises(UsageError, match="--where"):
        select_pairs(labelled, replace(config, where="true) or (true"))
    with pytest.raises(UsageError, match="redder"):
        select_pairs(labelled, replace(config, labelers=("nobody",)))


def test_pairs_of_evaluations_are_never_trained_on(labelled: PairStore, config: TrainConfig):
    prompt = content.add_prompt(labelled, "held out")
    images = [content.add_image(labelled, (1, 2, value), side=32) for value in (3, 4)]
    content.add_label(labelled, content.add_pair(labelled, prompt, *images, source="eval"), "redder", "a")
    labelled.ingest()
    pairs = select_pairs(labelled, config)
    assert "held out" not in {pair.prompt for pair in pairs.train + pairs.validation}


def test_labels_by_two_versions_of_a_scorer_are_refused(labelled: PairStore, config: TrainConfig):
    for version in ("1", "2"):
        row = {"labeler": f"s{version}", "kind": "ai", "config": json.dumps({"scorers": [f"s@{version}"]})}
        labelled.append("labelers", [row])
        labelled.append("scorers", [{"scorer": f"s@{version}", "name": "s", "config": "{}"}])
        pair = select_pairs(labelled, config).train[0]
        content.add_label(labelled, pair.pair_id, f"s{version}", "a")
    labelled.ingest()
    with pytest.raises(IntegrityError, match="two versions of s"):
        select_pairs(labelled, replace(config, labelers=("s1", "s2")))


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_before_the_first_step_the_loss_is_log_2_and_implicit_accuracy_one_half(trainer, lora_rank: int):
    first = trainer(lora_rank=lora_rank)
    with torch.no_grad():
        batches = first.data.batch(0, 8)
        errors = first.denoiser.errors(batches)
        loss = pair_losses(errors, [pair for batch in batches for pair in batch.pairs], first.config)
        row = dict(zip(BATCH_METRICS, batch_metrics(errors, loss, first.config).tolist(), strict=True))
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["implicit_accuracy"] == 0.5
    assert row["chosen_error_delta"] == row["margin"] == 0.0
    assert row["dpo_weight"] == 0.5


def test_with_its_adapter_off_a_lora_gives_the_errors_of_a_frozen_copy(trainer):
    full, lora = trainer(), trainer(lora_rank=2)
    with torch.no_grad():  # move the adapter away from zero, so that a difference would show
        for name, parameter in lora.policy.component.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
        full_errors, lora_errors = (made.denoiser.errors(made.data.batch(0, 8)) for made in (full, lora))
    assert torch.equal(full_errors.ref_chosen, lora_errors.ref_chosen)
    assert torch.equal(full_errors.ref_rejected, lora_errors.ref_rejected)
    assert not torch.allclose(full_errors.chosen, lora_errors.chosen)


def test_both_images_of_a_pair_are_flipped_alike(trainer):
    data = trainer(random_flip=True, aspect_buckets=False).data
    data.encoder.fill(np.arange(len(data.encoder.crops.crops.keys)))  # both, whichever is drawn
    pair = data.pairs.train[0]
    crop = data.crop(pair)
    plain, flipped = (
        data.latents.rows("mean", [replace(crop, mirrored=mirrored).key(pair.chosen)])[0] for mirrored in (False, True)
    )
    assert not torch.equal(plain, flipped)
    flips: list[list[bool]] = []
    rows = data.latents.rows
    mirrored = {replace(data.crop(p), mirrored=True).key(i) for p in data.pairs.train for i in (p.chosen, p.rejected)}

    def seen(name, ids):
        if name == "mean":
            flips.append([key in mirrored for key in ids])
        return rows(name, ids)

    data.latents.rows = seen
    data.batch(0, 20)
    chosen, rejected = flips
    assert chosen == rejected
    assert len(set(chosen)) == 2  # some are mirrored and some are not


def test_the_random_draws_of_a_pair_do_not_depend_on_the_batch(trainer):
    data = trainer(input_perturbation=0.1, noise_offset=0.1).data
    (whole,) = data.batch(3, 6)
    parts = [*data.batch(3, 2), *data.batch(5, 4)]
    for name in ("chosen", "rejected", "timesteps", "noise", "input_noise"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    chosen, rejected = zip(*(part.conditions["prompt_embeds"].chunk(2) for part in parts), strict=True)
    assert torch.equal(whole.conditions["prompt_embeds"], torch.cat([*chosen, *rejected]))
    assert [pair.pair_id for pair in whole.pairs] == [pair.pair_id for part in parts for pair in part.pairs]


def test_batches_prepared_by_threads_are_the_same(trainer):
    noise = []
    for workers in (0, 2):
        data = trainer(dataloader_num_workers=workers).data
        noise.append([batch.noise for batches in data.prefetch(iter(range(0, 12, 3)), 3) for batch in batches])
    assert len(noise[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*noise, strict=True))


def test_an_epoch_contains_every_pair_once(trainer):
    data = trainer().data
    n = len(data.pairs.train)
    assert sorted(data.order(0)) == list(range(n))
    assert data.order(0) != data.order(1)
    assert [draw.pair.pair_id for draw in data.samples(n, n)] == [data.pairs.train[at].pair_id for at in data.order(1)]


def test_some_prompts_are_replaced_by_the_empty_prompt_for_both_images(trainer):
    def dropped(proportion: float) -> list[bool]:
        data = trainer(proportion_empty_prompts=proportion).data
        empty = data.prompt_embeds.rows("prompt_embeds", [EMPTY_PROMPT_ID]).float()[0]
        chosen, rejected = data.batch(0, 40)[0].conditions["prompt_embeds"].chunk(2)
        assert torch.equal(chosen, rejected)
        return [torch.equal(embeds, empty) for embeds in chosen]

    assert 8 <= sum(dropped(0.5)) <= 32  # 20 are expected; 4 standard deviations are 12.6
    assert not any(dropped(0.0))


def test_accumulating_four_batches_of_two_equals_one_batch_of_eight(trainer, tmp_path: Path):
    # with an epsilon this large AdamW's first step is the gradient itself: g / (|g| + 1)
    settings = {"adam_epsilon": 1.0, "learning_rate": 1.0, "adam_weight_decay": 0.0}
    single = trainer(train_batch_size=8, output_dir=str(tmp_path / "single"), **settings)
    accumulated = trainer(
        train_batch_size=2, gradient_accumulation_steps=4, output_dir=str(tmp_path / "accumulated"), **settings
    )
    before = {name: value.clone() for name, value in single.policy.trainable_state().items()}
    for made in (single, accumulated):
        made.step()
    for (name, a), (_, b) in zip(
        single.policy.trainable_state().items(), accumulated.policy.trainable_state().items(), strict=True
    ):
        assert torch.allclose(a - before[name], b - before[name], rtol=1e-3, atol=1e-6), name
    assert any(not torch.allclose(a, before[name], atol=1e-3) for name, a in single.policy.trainable_state().items())


@pytest.mark.slow(reason="trains a model")
def test_a_full_result_loads_in_diffusers_and_as_a_model(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    from diffusers import StableDiffusionPipeline

    folder = Path(config.output_dir)
    monkeypatch.chdir(folder.parent)
    config = replace(config, output_dir=folder.name)
    summary = train(config, labelled)
    assert summary["steps"] == 3
    assert summary["beta_sum"] == pytest.approx(500 / (4 * 4 * 4))  # latents are 4 x 4 x 4
    assert StableDiffusionPipeline.from_pretrained(config.output_dir).unet is not None
    found = find_model(config.output_dir)
    assert found.model_id != find_model(config.model).model_id
    assert found.trained_with is not None
    assert list(found.trained_with["labelers"]) == ["redder"]
    ((status, output_dir),) = labelled.rows("select status, config->>'output_dir' from runs where kind = 'train'")
    # the store knows it from any folder
    assert (status, output_dir) == ("done", str(folder))
    row = metrics(config)[-1]
    assert int(row["step"]) == 3
    assert math.isfinite(float(row["loss"]))


def test_a_lora_result_is_loaded_onto_its_base(labelled: PairStore, config: TrainConfig, tiny_pipeline: Path):
    from prefloop.models.pipelines import load_pipeline

    config = replace(config, lora_rank=2, lora_alpha=4.0)
    train(config, labelled)
    model = find_model(config.output_dir)
    assert model.base is not None
    assert model.base.name == str(tiny_pipeline)
    tuned, base = (load_pipeline(m, "cpu", torch.float32).unet for m in (model, model.base))
    sample, hidden = torch.randn(1, 4, 4, 4), torch.randn(1, 5, 16)
    with torch.no_grad():
        predictions = [unet(sample, 10, hidden).sample for unet in (tuned, base)]
    assert not torch.allclose(*predictions)
    # alpha and rank survive the round trip: the layer scales by alpha / rank = 2
    layer = next(module for module in tuned.modules() if hasattr(module, "scaling"))
    assert list(layer.scaling.values()) == [2.0]


@pytest.mark.slow(reason="kills processes and goes on from there")
@pytest.mark.parametrize(("accumulation", "lora_rank"), [(1, 0), (3, 0), (1, 2)])
def test_an_interrupted_run_has_the_weights_of_an_undisturbed_one_bit_for_bit(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, accumulation, lora_rank
):
    config = replace(
        config, gradient_accumulation_steps=accumulation, lora_rank=lora_rank, max_train_steps=4, checkpointing_steps=2
    )
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, labelled)
    cut = replace(config, output_dir=str(tmp_path / "cut"))
    killed = Trainer(cut, labelled, StopSignal()) if Path(cut.output_dir).mkdir() is None else None
    assert killed is not None
    for _ in range(3):  # a step beyond the last checkpoint is lost, as by kill -9
        killed.step()
        killed.global_step += 1
        if killed.global_step == 2:
            killed.state.save(killed.global_step)
    train(cut, labelled)
    expected, resumed = (checkpoint_weights(Path(c.output_dir) / "checkpoint-4") for c in (whole, cut))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


@pytest.mark.slow(reason="trains a model")
def test_a_finished_run_is_neither_continued_nor_overwritten_without_a_flag(labelled: PairStore, config: TrainConfig):
    train(config, labelled)
    before = weights(config)
    with pytest.raises(UsageError, match=r"--resume.*--overwrite"):
        train(config, labelled)
    assert all(torch.equal(tensor, weights(config)[name]) for name, tensor in before.items())
    assert train(replace(config, max_train_steps=4), labelled, resume=True)["steps"] == 4
    assert train(config, labelled, overwrite=True)["steps"] == 3
    assert all(torch.equal(tensor, weights(config)[name]) for name, tensor in before.items())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(trainer, poison: float):
    sick = trainer()
    data, make_batch = sick.data, type(sick.data).batch

    def batch(self, first, count):
        (made,) = make_batch(self, first, count)
        return [replace(made, chosen=torch.full_like(made.chosen, poison))]

    before = {name: tensor.clone() for name, tensor in sick.policy.trainable_state().items()}
    type(data).batch = batch
    try:
        with pytest.raises(NumericalError, match=str(data.batch(0, 1)[0].pairs[0].pair_id)):
            sick.step()
    finally:
        type(data).batch = make_batch
    assert all(torch.equal(tensor, sick.policy.trainable_state()[name]) for name, tensor in before.items())
    assert not list(sick.output.glob("checkpoint-*"))


def test_the_loss_falls_and_the_model_learns_which_image_is_chosen(labelled: PairStore, config: TrainConfig):
    # the built-in model: a random autoencoder would hide the images in its own noise
    built_in = TrainConfig(
        output_dir=config.output_dir, labelers=("redder",), max_train_steps=12, train_batch_size=4, cpu=True
    )
    summary = train(built_in, labelled)
    # chosen images are all much redder, which takes only a few steps to learn
    assert summary["loss"] < 0.5 < math.log(2)
    assert summary["implicit_accuracy"] > 0.75
    assert summary["validation"]["implicit_accuracy"] > 0.5


@pytest.mark.slow(reason="trains a model")
def test_sft_lowers_the_error_of_chosen_images(labelled: PairStore, config: TrainConfig):
    config = replace(config, loss="sft", max_train_steps=40, train_batch_size=8)
    train(config, labelled)
    losses = [float(row["loss"]) for row in metrics(config)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow(reason="trains a model")
def test_latents_are_encoded_once_and_shared_by_runs(labelled: PairStore, config: TrainConfig, tmp_path: Path):
    train(config, labelled)
    files = {path: path.stat().st_mtime_ns for path in (labelled.path / "cache").rglob("*.safetensors")}
    assert files
    train(replace(config, output_dir=str(tmp_path / "second")), labelled)
    assert {path: path.stat().st_mtime_ns for path in (labelled.path / "cache").rglob("*.safetensors")} == files


def test_a_changed_image_ends_the_run_if_it_is_more_than_one_percent(labelled: PairStore, config: TrainConfig):
    from prefloop.store import BadDataError

    image = select_pairs(labelled, config).train[0].chosen
    image_path(labelled.path / "images", image).write_bytes(content.image_bytes((0, 0, 0), 32))
    # one of 60 images is more than 1 %; 15 steps of two draw all 29 pairs
    with pytest.raises(BadDataError, match=r"1 of 60 .*hash"):
        train(replace(config, max_train_steps=15), labelled)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", -1.0),
        ("train_batch_size", 0),
        ("loss", "ppo"),
    ],
)
def test_bad_settings_are_refused_by_name(config: TrainConfig, name: str, value: object):
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        replace(config, **{name: value})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.slow(reason="trains a model")
def test_mapo_trains_with_its_own_beta_which_is_recorded_everywhere(labelled: PairStore, config: TrainConfig):
    config = replace(config, loss="mapo", max_train_steps=2)
    summary = train(config, labelled)
    assert (summary["beta_mean"], summary["beta_sum"]) == (0.1, pytest.approx(0.1 / 64))
    assert "beta 0.1 per element mean = 0.001563 per sum" in summary_text(summary)
    result = find_model(config.output_dir).trained_with
    assert result is not None
    assert result["config"]["beta"] == 0.1
    assert labelled.rows("select cast(config->>'beta' as double) from runs where kind = 'train'") == [(0.1,)]
    loss = summary["loss"]
    assert train(replace(config, beta=0.1), labelled, overwrite=True)["loss"] == loss
    assert train(replace(config, beta=500.0), labelled, overwrite=True)["loss"] > 10 * loss


def test_a_run_is_the_same_whether_the_default_beta_is_given_or_not(config: TrainConfig):
    assert config.identity() == replace(config, beta=500.0).identity() != replace(config, beta=0.1).identity()
    # the default follows the loss, also if a config is changed
    losses = ("dpo", "ipo", "hinge", "kto", "mapo", "sft")
    assert [replace(config, loss=loss).resolved_beta for loss in losses] == [500, 500, 500, 500, 0.1, None]


def test_a_run_ends_with_the_beta_of_a_fixed_dpo_weight_and_says_that_it_was_not_used(
    trainer: Callable[..., Trainer],
):
    made = trainer(lora_rank=2)
    table = Path(made.config.output_dir) / "metrics.csv"
    lines = [f"{step},0.6,0.7,0.2,1e-3" for step in range(10, 70, 10)]
    table.write_text("\n".join(["step,loss,implicit_accuracy,margin,learning_rate", *lines]) + "\n")
    summary = made.finish("run")
    # a mean logit of 0.2 at beta 500 must be log 4 = 1.386294: 500 * 1.386294 / 0.2
    assert summary["beta_for_dpo_weight_0_2"] == pytest.approx(3465.74, abs=0.01)
    assert summary["beta_mean"] == 500.0
    assert (
        "\nfor choosing --beta: at 3470 the mean margin of the last steps would have a DPO weight of 0.20; this run did "
        "not use it\n" in summary_text(summary)
    )
    result = find_model(made.config.output_dir).trained_with
    assert result is not None
    assert result["beta_for_dpo_weight_0_2"] == summary["beta_for_dpo_weight_0_2"]
    table.write_text("")
    summary = made.finish("run")
    assert summary["beta_for_dpo_weight_0_2"] is None
    assert "for choosing" not in summary_text(summary)


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("loss", ["sft", "ipo"])
def test_metrics_that_a_loss_does_not_have_are_empty_and_small_ones_keep_their_digits(
    labelled: PairStore, config: TrainConfig, capsys: pytest.CaptureFixture[str], loss: str
):
    beta = None if loss == "sft" else 5000.0
    summary = train(replace(config, loss=loss, max_train_steps=2, beta=beta), labelled)
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    text = summary_text(summary)
    assert "nan" not in shown + text
    (row,) = metrics(config)
    assert "nan" not in row.values()
    if loss == "sft":
        assert "implicit accuracy" not in shown
        assert (row["implicit_accuracy"], row["margin"]) == ("", "")
        assert summary["beta_mean"] is None
        assert "beta" not in text
    else:
        # about 1 / (2 * 5000)^2 = 1e-8, plus the noise of the errors
        assert 0 < summary["loss"] < 1e-4
        assert f"loss {summary['loss']:.4g}, implicit accuracy" in shown
        assert "5000 per element mean" in text


@pytest.mark.slow(reason="trains a model")
@pytest.mark.parametrize("dry_run", [False, True])
def test_the_command_selects_its_pairs_once(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, dry_run: bool
):
    queries, ask = [], pairs.ask
    monkeypatch.setattr(pairs, "ask", lambda *args, **kwargs: queries.append(args) or ask(*args, **kwargs))
    words = ["train", "--labeler", "redder", "--model", config.model, "--store", str(labelled.path), "--cpu"]
    words += ["--max-train-steps", "1", "--train-batch-size", "2", "--output-dir", config.output_dir, "--json"]
    result = CliRunner().invoke(app, [*words, *["--dry-run"] * dry_run])
    assert result.exit_code == 0, result.output
    assert len(queries) == 1
    n_pairs = len(select_pairs(labelled, config).train)
    summary = json.loads(result.stdout)
    assert (summary["estimate"]["n_pairs"] if dry_run else summary["n_pairs"]) == n_pairs


def test_a_trainer_can_follow_one_of_another_precision_in_the_same_process(trainer):
    trainer(mixed_precision="bf16")
    assert trainer().accelerator.mixed_precision == "no"
