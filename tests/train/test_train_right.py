"""Training is correct: the computations of a step and of a resumed run do not depend on how they are run."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import content
import pytest
import torch
from prefloop.core.signals import StopSignal
from prefloop.store import PairStore, UsageError
from prefloop.train import TrainConfig
from prefloop.train.denoise import noisy_pair, pair_errors, residuals
from prefloop.train.losses import diffusion_dpo
from prefloop.train.monitor.tables import read_rows
from prefloop.train.objective import pair_losses
from prefloop.train.stage import train
from prefloop.train.trainer import Trainer
from results import checkpoint_weights
from run_options import decided
from safetensors.torch import load_file
from two_processes import two_processes

Make = Callable[..., Trainer]


def gradients(trainer: Trainer, swap: bool = False, first: int = 0, count: int = 8) -> list[torch.Tensor]:
    """Gradients of the loss of some pairs, by weight."""
    (batch,) = trainer.data.batch(first, count)
    if swap:
        batch = replace(batch, chosen=batch.rejected, rejected=batch.chosen)
    errors = trainer.denoiser.errors([batch])
    pair_losses(errors, batch.pairs, trainer.config).mean().backward()
    gradients = [parameter.grad for parameter in trainer.policy.parameters() if parameter.grad is not None]
    assert gradients
    return gradients


def test_swapping_all_labels_flips_the_gradient(trainer: Make):
    # before the first step sigmoid(-u) is one half whichever image is chosen, so only the sign changes
    plain, swapped = gradients(trainer()), gradients(trainer(), swap=True)
    assert max(g.abs().max() for g in plain) > 1e-6
    for a, b in zip(plain, swapped, strict=True):
        assert float((a + b).norm()) <= 1e-4 * float(a.norm())


def test_cached_latents_and_prompt_embeddings_give_the_errors_of_fresh_ones(trainer: Make):
    from diffusers import StableDiffusionPipeline
    from prefloop.store import load_image
    from prefloop.train.crops import resize_and_crop

    made = trainer(proportion_empty_prompts=0.0)
    pipeline = StableDiffusionPipeline.from_pretrained(made.config.model)
    (batch,) = made.data.batch(0, 6)
    draws = made.data.samples(0, 6)
    latents = []
    with torch.no_grad():
        for image_of in ("chosen", "rejected"):
            pixels = []
            for pair in batch.pairs:
                path = made.store.path / getattr(pair, f"{image_of}_path")
                pixels.append(resize_and_crop(load_image(path, getattr(pair, image_of)), made.data.crop(pair))[0])
            posterior = pipeline.vae.encode(torch.stack(pixels)).latent_dist
            noises = []
            for draw in draws:  # in the order of the batch: two for flip and prompt, one timestep, five noise fields
                generator = torch.Generator().manual_seed(draw.seed)
                torch.rand(2, generator=generator)
                torch.randint(1000, (), generator=generator)
                noises.append(torch.randn((5, 4, 4, 4), generator=generator)[0 if image_of == "chosen" else 1])
            scale = pipeline.vae.config.scaling_factor
            latents.append((posterior.mean + posterior.std * torch.stack(noises)) * scale)
        ids = pipeline.tokenizer(
            [pair.prompt for pair in batch.pairs], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        hidden = pipeline.text_encoder(ids).last_hidden_state
        chosen, rejected = latents
        conditions, family = {"prompt_embeds": hidden.repeat(2, 1, 1)}, made.data.family
        pair = noisy_pair(family.noise(), chosen, rejected, conditions, batch.noise, batch.timesteps)
        fresh = pair_errors(residuals(family, made.policy.component, pair))
        cached = made.denoiser.policy_errors([batch])
    # the cache holds float16
    assert torch.allclose(fresh[0], cached.chosen, rtol=2e-3)
    assert torch.allclose(fresh[1], cached.rejected, rtol=2e-3)


def test_sft_runs_the_model_on_chosen_images_only(trainer: Make):
    errors = {}
    for loss in ("sft", "dpo"):
        made, seen = trainer(loss=loss, min_snr_gamma=5.0), []
        made.policy.component.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        batches = made.data.batch(0, 4)
        errors[loss] = made.denoiser.errors(batches).chosen
        assert seen == {"sft": [4], "dpo": [8]}[loss]
    assert torch.allclose(errors["sft"], errors["dpo"], rtol=1e-5)


@pytest.mark.slow(reason="trains a model")
def test_the_encoders_are_not_in_memory_while_training(trainer: Make):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    gc.collect()
    before = sum(isinstance(item, AutoencoderKL | CLIPTextModel) for item in gc.get_objects())
    made = trainer()
    made.feed.encode_from(0)  # all that its three steps draw
    gc.collect()
    after = sum(isinstance(item, AutoencoderKL | CLIPTextModel) for item in gc.get_objects())
    assert after == before
    assert made.policy.component is not None


def test_adafactor_clips_by_its_own_rule_and_only_once(trainer: Make):
    clipped = {}
    for name in ("adafactor", "adamw"):
        made = trainer(optimizer=name, max_grad_norm=1e-4)
        gradients(made)
        before = [p.grad.clone() for p in made.policy.parameters() if p.grad is not None]
        norm = made.clip_gradients()
        after = [p.grad for p in made.policy.parameters() if p.grad is not None]
        assert float(norm) > 1e-3
        clipped[name] = not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert clipped == {"adafactor": False, "adamw": True}


@pytest.mark.slow(reason="trains a model")
def test_a_resumed_run_decodes_no_image_and_starts_at_its_next_pairs(
    trainer: Make, labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    config = replace(config, max_train_steps=5, dataloader_num_workers=0)
    first = trainer(max_train_steps=5)
    for _ in range(3):
        first.step()
        first.global_step += 1
    first.state.save(first.global_step)
    monkeypatch.setattr("prefloop.train.cache.load_image", lambda *_: pytest.fail("an image was decoded"))
    starts: list[int] = []
    draws = type(first.data).samples

    def seen(self, at, count):
        starts.append(at)
        return draws(self, at, count)

    monkeypatch.setattr(type(first.data), "samples", seen)
    assert train(config, labelled)["steps"] == 5
    assert starts == [6, 8]  # two pairs per step: those of steps 3 and 4


@pytest.mark.slow(reason="kills processes and goes on from there")
@pytest.mark.parametrize(
    "changes",
    [
        {"dataloader_num_workers": 2, "gradient_accumulation_steps": 3},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "bf16", "lora_rank": 2, "dataloader_num_workers": 0},
        {"optimizer": "adafactor", "ema_decay": 0.9},
        {"reference_draws": 2},
        {"lr_scheduler": "linear", "safeguard": 0.9, "min_snr_gamma": 5.0},
        {"anchor": 200.0, "sft_weight": 50.0},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_a_resumed_run_has_the_losses_and_weights_of_an_undisturbed_one(
    labelled: PairStore, config: TrainConfig, tmp_path: Path, changes: dict
):
    config = replace(config, max_train_steps=4, checkpointing_steps=2, **changes)
    whole, cut = (replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    train(whole, labelled)
    # ended after its third step, as by a signal; then killed in its fourth, so that the third is lost
    stop = StopSignal()
    Path(cut.output_dir).mkdir()
    killed = Trainer(cut, labelled, stop)
    killed.state.restore()
    if config.reference_draws:
        from prefloop.train.prepare import with_reference_errors

        killed.feed.data = with_reference_errors(killed.data, killed.denoiser, labelled, killed.model, 0, stop)
    killed.monitor.begin(0)
    for _ in range(3):
        killed.step()
        killed.global_step += 1
        if killed.global_step == 2:
            killed.state.save(killed.global_step)
    train(cut, labelled)
    expected, resumed = (checkpoint_weights(Path(c.output_dir) / "checkpoint-4") for c in (whole, cut))
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    tables = [(Path(c.output_dir) / "validation.csv").read_text() for c in (whole, cut)]
    assert tables[0] == tables[1]  # to the last digit


def test_cached_reference_errors_are_those_of_the_reference(trainer: Make, labelled: PairStore):
    from prefloop.train.prepare import with_reference_errors

    made = trainer(reference_draws=2, max_train_steps=5)
    assert not made.policy.has_reference  # no copy in memory
    made.feed.data = with_reference_errors(made.data, made.denoiser, labelled, made.model, 0, made.stop)
    n = len(made.data.pairs.train)
    assert len(made.data.cached_draws(0, 10)) == 10  # of the pairs of 5 steps, one each
    assert len(made.data.cached_draws(0, 50 * n)) == 2 * n
    (batch,) = made.data.batch(3, 6)
    reference = made.denoiser.reference_errors([batch])
    assert batch.ref_chosen is not None
    assert batch.ref_rejected is not None
    assert torch.allclose(batch.ref_chosen, reference.chosen, rtol=1e-5)
    assert torch.allclose(batch.ref_rejected, reference.rejected, rtol=1e-5)
    assert not torch.allclose(batch.ref_chosen, reference.rejected, rtol=1e-3)
    # a pair returns with one of its two draws
    seeds = {draw.seed for epoch in range(8) for draw in made.data.samples(epoch * n, n)}
    assert n < len(seeds) <= 2 * n


def test_a_labelers_weight_multiplies_the_loss_of_its_pairs(trainer: Make):
    plain, heavy = trainer(), trainer(labelers=("redder=3",))
    (batch,) = plain.data.batch(0, 4)
    losses = [pair_losses(made.denoiser.errors([batch]), batch.pairs, made.config) for made in (plain, heavy)]
    assert torch.allclose(losses[1], 3 * losses[0])


def test_soft_labels_are_the_stored_probabilities(trainer: Make):
    hard, soft = trainer(), trainer(soft_labels=True)
    with torch.no_grad():
        for made in (hard, soft):
            next(iter(made.policy.parameters())).add_(0.1)
    (batch,) = hard.data.batch(0, 4)
    assert [pair.p_chosen for pair in batch.pairs] == pytest.approx([0.9] * 4)
    errors = hard.denoiser.errors([batch])
    hard_losses, soft_losses = (pair_losses(errors, batch.pairs, made.config) for made in (hard, soft))
    # -0.9 log sigmoid(u) - 0.1 log sigmoid(-u) = -log sigmoid(u) + 0.1 u
    logits = torch.log(torch.expm1(hard_losses) ** -1)
    assert torch.allclose(soft_losses, hard_losses + 0.1 * logits, atol=1e-4)


@pytest.mark.slow(reason="trains a model")
def test_the_result_of_ema_is_the_average_and_not_the_last_weights(labelled: PairStore, config: TrainConfig):
    train(replace(config, ema_decay=0.5, max_train_steps=3), labelled)
    output = Path(config.output_dir)
    last = checkpoint_weights(output / "checkpoint-3")
    result = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(result[name], value) for name, value in last.items())
    first = load_file(Path(config.model) / "unet" / "diffusion_pytorch_model.safetensors")
    # between the first weights and the last
    name = max(last, key=lambda key: float((last[key] - first[key]).abs().max()))
    assert 0 < float((result[name] - first[name]).norm()) < float((last[name] - first[name]).norm())


def test_both_images_of_a_pair_are_cropped_alike(trainer: Make):
    data = trainer(random_crop=True).data
    crops = [data.crop(pair) for pair in data.pairs.train]
    assert len({crop.position for crop in crops}) > 2
    again = trainer(random_crop=True).data
    assert [again.crop(pair) for pair in again.pairs.train] == crops  # the same in every run
    data.encode(0, len(crops))
    for pair in data.pairs.train:  # latents of both images are cached for the pair's crop
        assert not data.latents.missing([data.crop(pair).key(image) for image in (pair.chosen, pair.rejected)])


@pytest.mark.slow(reason="trains a model")
def test_aspect_buckets_train_images_of_several_shapes(store: PairStore, config: TrainConfig):
    from PIL import Image
    from prefloop.store.images import png_bytes

    content.add_labeler(store, "redder")
    for number in range(24):
        prompt = content.add_prompt(store, f"prompt {number}")
        width, height = ((32, 32), (64, 32), (32, 64))[number % 3]
        images = []
        for red in (20, 220):
            row = store.write_image(png_bytes(Image.new("RGB", (width, height), (red, number, 4))), width, height)
            store.append("images", [row])
            images.append(row["image_id"])
        content.add_label(store, content.add_pair(store, prompt, *images), "redder", "a")
    store.ingest()
    made = Trainer(replace(config, aspect_buckets=True, resolution=64, train_batch_size=4), store, StopSignal())
    sizes = {made.data.crop(pair).size for pair in made.data.pairs.train + made.data.pairs.validation}
    assert len(sizes) == 3
    n = len(made.data.pairs.train)
    assert sorted(made.data.order(0)) == list(range(n))
    assert len(made.data.batch(0, 4)) == 1  # pairs of one shape are batched together
    assert len(made.data.batch(0, n)) == 3
    assert math.isfinite(float(made.step()[0]))
    # one forward pass per shape gives the errors of all pairs
    assert len(made.denoiser.policy_errors(made.data.batch(0, n)).chosen) == n


@pytest.mark.slow(reason="two processes load torch and connect")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes would share a GPU")
def test_two_processes_with_half_the_batch_each_take_the_steps_of_one_and_are_resumed_as_two(
    labelled: PairStore, config: TrainConfig, tmp_path: Path
):
    # with an epsilon this large AdamW's step is the gradient itself
    settings = {"adam_epsilon": 1.0, "learning_rate": 1.0, "adam_weight_decay": 0.0, "lora_rank": 2}
    settings |= {"lr_scheduler": "constant", "max_train_steps": 2}
    single = replace(config, output_dir=str(tmp_path / "single"), train_batch_size=8, **settings)
    two = replace(config, output_dir=str(tmp_path / "two"), train_batch_size=4, **settings)
    train(single, labelled)
    words: list[object] = ["train", "--labeler", "redder", "--store", labelled.path, "--json", "--resume"]
    for name in ("model", "output_dir", "adam_epsilon", "adam_weight_decay"):
        words += [f"--{name.replace('_', '-')}", getattr(two, name)]
    words += decided(two)
    # no --cpu: without a GPU each process would take itself for a run of its own
    codes, printed = two_processes([*words, "--max-train-steps", 1], tmp_path)
    assert codes == [0, 0], printed
    with pytest.raises(
        UsageError,
        match=r"began with 2 processes and this is 1; use 2, .* `torchrun --nproc-per-node 2`.*steps 2 keeps the pairs",
    ):
        train(two, labelled, resume=True)
    codes, printed = two_processes(words, tmp_path)
    assert codes == [0, 0], printed
    assert ["steps" in out for out in printed] == [True, False]  # only the main process prints
    states = [checkpoint_weights(Path(c.output_dir) / "checkpoint-2") for c in (single, two)]
    moved = max(float(value.abs().max()) for name, value in states[0].items() if "lora_B" in name)
    assert moved > 1e-3
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=1e-3, atol=1e-6), name
    # the last row is the mean of both steps; the first step's metrics come from the checkpoint, for both processes
    losses = [float(read_rows(Path(c.output_dir) / "metrics.csv")[-1]["loss"]) for c in (single, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert labelled.rows("select count(*) from runs where kind = 'train' and status = 'done'") == [(3,)]
    codes, printed = two_processes(words, tmp_path)  # both end if one refuses
    assert codes == [2, 2], printed
    assert not any("Traceback" in out for out in printed)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": "sft", "safeguard": 0.9}, "safeguard"),
        ({"loss": "ipo", "soft_labels": True}, "soft-labels"),
        ({"loss": "mapo", "anchor": 1.0}, r"anchor needs a pairwise loss with a reference \(dpo, ipo, hinge\); mapo"),
        ({"loss": "kto", "anchor": 1.0}, "anchor needs .*; kto"),
        (
            {"anchor": 1.0, "reference_draws": 1},
            "anchor compares predictions, but reference-draws keeps only .* errors",
        ),
        (
            {"loss": "sft", "sft_weight": 1.0},
            r"sft-weight needs a pairwise loss \(dpo, ipo, hinge, mapo\); sft is not one",
        ),
        ({"loss": "kto", "sft_weight": 1.0}, "sft-weight needs .*; kto"),
        ({"anchor": -1.0}, "anchor must be at least 0"),
        ({"sft_weight": math.inf}, "sft-weight must be a finite number"),
        ({"loss": "mapo", "reference_draws": 1}, "reference-draws"),
        ({"loss": "sft", "beta": 500.0}, "sft has no beta"),
        ({"kohya": True}, "kohya"),
        ({"format": "lora"}, "lora-rank"),
        ({"labelers": ("redder=-1",)}, "weight of redder"),
        ({"label_smoothing": 0.7}, "label-smoothing"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(config: TrainConfig, changes: dict, named: str):
    with pytest.raises(UsageError, match=named):
        replace(config, **changes)


def test_a_run_begun_before_an_option_existed_has_the_same_identity(config: TrainConfig):
    # computed before --anchor and --sft-weight existed. If it fails because a setting was added, list the setting in _OFF
    before = TrainConfig(output_dir="run", labelers=("redder",))
    assert before.identity() == "eda0836313c9ee8d4036baeebe1f3cac8c9459e1a24547f2b59198b6ec2dc4cb"
    changed = [replace(config, **changes).identity() for changes in ({}, {"anchor": 1.0}, {"sft_weight": 1.0})]
    assert len(set(changed)) == 3
    assert replace(config, anchor=0, sft_weight=0).identity() == changed[0]


def test_a_step_that_runs_out_of_memory_ends_with_three_options(
    labelled: PairStore, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    from prefloop.store import PrefloopError

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("prefloop.train.trainer.Trainer.step", fail)
    with pytest.raises(PrefloopError, match="--train-batch-size 1 --gradient-accumulation-steps 2") as caught:
        train(config, labelled)
    assert str(caught.value).count("--") >= 4
    assert len(str(caught.value).splitlines()) == 1


def test_scale_lr_multiplies_the_learning_rate_by_the_pairs_per_step(trainer: Make, config: TrainConfig):
    from prefloop.train.optimizers import learning_rate

    scaled = replace(config, learning_rate=1e-8, scale_lr=True, train_batch_size=16, gradient_accumulation_steps=4)
    assert learning_rate(scaled, n_processes=2) == pytest.approx(1e-8 * 16 * 4 * 2)
    assert learning_rate(replace(scaled, scale_lr=False), n_processes=2) == 1e-8
    made = trainer(learning_rate=1e-5, scale_lr=True, train_batch_size=3, gradient_accumulation_steps=2)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(6e-5)


def test_max_train_samples_samples_training_pairs_by_the_seed(trainer: Make):
    all_pairs, sampled, resampled = (
        trainer(**changes).data.pairs for changes in ({}, {"max_train_samples": 5}, {"max_train_samples": 5, "seed": 1})
    )
    assert len(sampled.train) == 5
    ids = [{pair.pair_id for pair in pairs.train} for pairs in (all_pairs, sampled, resampled)]
    assert ids[1] < ids[0]
    assert ids[1] != ids[2]
    assert sampled.validation == all_pairs.validation


@pytest.mark.slow(reason="trains a model")
def test_the_safeguard_and_min_snr_reach_the_training_step(trainer: Make):
    plain = gradients(trainer())
    for changes in ({"safeguard": 0.9}, {"min_snr_gamma": 0.5}):
        changed = gradients(trainer(**changes))
        assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(plain, changed, strict=True)), changes
    # neither changes the errors before the first step
    made = trainer(safeguard=0.9)
    errors, reference = (
        errors_of(made.data.batch(0, 4)) for errors_of in (made.denoiser.errors, made.denoiser.reference_errors)
    )
    assert torch.equal(errors.rejected, reference.rejected)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_anchor_and_sft_weight_reach_the_loss_of_each_pair(trainer: Make, lora_rank: int):
    made = trainer(anchor=3.0, sft_weight=2.0, min_snr_gamma=0.5, lora_rank=lora_rank, labelers=("redder=0.5",))
    plain = replace(made.config, anchor=0.0, sft_weight=0.0)
    batches = made.data.batch(0, 4)
    pairs = [pair for batch in batches for pair in batch.pairs]
    start = made.denoiser.errors(batches).distance
    assert start is not None
    assert start.tolist() == [0.0] * 4  # the policy is still its reference
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    seen: list[int] = []
    made.policy.component.register_forward_hook(lambda *_: seen.append(1))
    errors = made.denoiser.errors(batches)
    assert len(seen) == (
        2 if lora_rank else 1
    )  # of a LoRA the reference is the same U-Net; the anchor runs nothing again
    # both models' predictions once more, one image at a time
    slow = []
    for at in range(4):
        (batch,) = made.data.batch(at, 1)
        pair = noisy_pair(
            made.data.family.noise(), batch.chosen, batch.rejected, batch.conditions, batch.noise, batch.timesteps
        )
        with torch.no_grad():
            policy = residuals(made.data.family, made.policy.component, pair)
        with made.policy.reference(made.policy.component) as unet:
            reference = residuals(made.data.family, unet, pair)
        weight = made.data.family.noise().weights(batch.timesteps, 0.5).item()
        slow.append(weight * ((policy[0] - reference[0]) ** 2 + (policy[1] - reference[1]) ** 2).mean().item() / 2)
    assert min(slow) > 1e-5
    assert errors.distance is not None
    assert errors.distance.tolist() == pytest.approx(slow, rel=1e-4)
    added = pair_losses(errors, pairs, made.config) - pair_losses(errors, pairs, plain)
    assert torch.allclose(added, 0.5 * (3 * errors.distance + 2 * errors.chosen), rtol=1e-4)
    # without the options no distance is computed, and the loss is the one there was before them
    made.denoiser.config = plain
    without = made.denoiser.errors(batches)
    assert without.distance is None
    assert torch.equal(without.chosen, errors.chosen)
    assert without.ref_chosen is not None
    assert without.ref_rejected is not None
    four = without.chosen, without.rejected, without.ref_chosen, without.ref_rejected
    assert torch.equal(pair_losses(without, pairs, plain), 0.5 * diffusion_dpo(*four, beta=500.0))
