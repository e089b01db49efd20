"""Training a flow-matching model: every loss, both precisions, resuming, and what the settings of sigma change."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from prefloop.core.signals import StopSignal
from prefloop.store import PairStore
from prefloop.train import TrainConfig
from prefloop.train.methods import METHODS
from prefloop.train.trainer import Trainer


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved("sd35", tmp_path_factory.mktemp("flow") / "sd35")


@pytest.fixture
def flow(config: TrainConfig, sd35: Path) -> TrainConfig:
    return replace(config, model=str(sd35), lora_rank=2, max_train_steps=2, learning_rate=1e-2)


def trainer(config: TrainConfig, store: PairStore) -> Trainer:
    Path(config.output_dir).mkdir(exist_ok=True)
    return Trainer(config, store, StopSignal())


@pytest.mark.parametrize("loss", METHODS)
def test_every_loss_trains_it(flow: TrainConfig, labelled: PairStore, loss: str) -> None:
    made = trainer(replace(flow, loss=loss), labelled)
    before = {name: weight.clone() for name, weight in made.policy.trainable_state().items()}
    row = made.step()
    assert torch.isfinite(row[0])
    after = made.policy.trainable_state()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("rank", [0, 2])
def test_bfloat16_errors_are_near_those_of_float32(flow: TrainConfig, labelled: PairStore, rank: int) -> None:
    errors = []
    for precision in ("no", "bf16"):
        output = f"{flow.output_dir}-{precision}"
        made = trainer(replace(flow, lora_rank=rank, mixed_precision=precision, output_dir=output), labelled)
        errors.append(made.denoiser.policy_errors(made.data.batch(0, 8)).chosen)
        assert torch.isfinite(made.step()[0])
    assert errors[1].dtype == torch.float32
    torch.testing.assert_close(errors[1], errors[0], rtol=0.03, atol=0.0)
    assert not torch.equal(errors[0], errors[1])


@pytest.mark.slow(reason="trains and loads small models")
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(flow: TrainConfig, labelled: PairStore) -> None:
    whole = trainer(replace(flow, max_train_steps=4, output_dir=f"{flow.output_dir}-whole"), labelled)
    whole.train("run")
    halves = replace(flow, max_train_steps=4, checkpointing_steps=2)
    first = trainer(halves, labelled)
    micro_batches = first.feed.micro_batches(first.global_step)
    for _ in range(2):
        first.recent.append(first.step(micro_batches))
        first.global_step += 1
    first.state.save(2)
    second = trainer(halves, labelled)
    assert second.state.restore() == 2
    second = trainer(halves, labelled)
    second.train("run")
    assert second.global_step == 4
    for name, weight in whole.policy.trainable_state().items():
        assert torch.equal(weight, second.policy.trainable_state()[name]), name


def test_sigma_follows_from_seed_and_position_and_covers_the_batch(flow: TrainConfig, labelled: PairStore) -> None:
    made = trainer(flow, labelled)
    (batch,) = made.data.batch(0, 16)
    assert batch.timesteps.is_floating_point()
    singles = [made.data.batch(at, 1)[0].timesteps.item() for at in range(16)]
    assert batch.timesteps.tolist() == singles  # whatever the batch size
    # the scheduler's shift of 3: a quarter of sigma below 0.605, a quarter above 0.855
    assert 2 <= sum(timestep < 605 for timestep in singles) <= 6
    assert 2 <= sum(timestep > 855 for timestep in singles) <= 6
    other = trainer(
        replace(flow, timestep_density="uniform", timestep_shift="none", output_dir=f"{flow.output_dir}-uniform"),
        labelled,
    )
    uniform = [other.data.batch(at, 1)[0].timesteps.item() for at in range(16)]
    assert 6 <= sum(timestep < 500 for timestep in uniform) <= 10
    # both images of a pair get the same sigma and noise
    noisy = made.denoiser._noisy(batch)
    assert torch.equal(*noisy.timesteps.chunk(2))


def test_a_flow_loss_is_the_velocity_error_worked_by_hand(flow: TrainConfig, labelled: PairStore) -> None:
    made = trainer(flow, labelled)
    (batch,) = made.data.batch(3, 2)
    errors = made.denoiser.policy_errors([batch])
    model, sigma = made.policy.component, (batch.timesteps / 1000)[:, None, None, None]
    conditions = {name: tensor[:2] for name, tensor in batch.conditions.items()}
    with torch.no_grad():
        velocity = model(
            hidden_states=(1 - sigma) * batch.chosen + sigma * batch.noise,
            timestep=batch.timesteps,
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled_prompt_embeds"],
        ).sample
    expected = (velocity - (batch.noise - batch.chosen)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(errors.chosen, expected, rtol=1e-5, atol=0.0)


@pytest.mark.slow(reason="trains and loads small models")
def test_another_number_of_reference_draws_does_not_reuse_errors_at_other_sigmas(
    flow: TrainConfig, labelled: PairStore
) -> None:
    """The first of one draw has any sigma, the first of two one of the lower half."""
    settings = replace(flow, max_train_samples=4)
    one = trainer(replace(settings, reference_draws=1, output_dir=f"{flow.output_dir}-one"), labelled)
    one.train("run")
    two = trainer(replace(settings, reference_draws=2), labelled)
    two.train("run")
    _, draw = two.data.cached_draws(0, settings.max_train_steps * settings.train_batch_size)[0]
    (batch,) = two.data.sample_batch([draw])
    expected = two.denoiser.reference_errors([batch])
    assert batch.ref_chosen is not None
    torch.testing.assert_close(batch.ref_chosen, expected.chosen, rtol=1e-4, atol=0.0)


@pytest.mark.slow(reason="trains and loads small models")
def test_samples_show_the_reference_beside_the_policy_when_no_reference_is_kept_in_memory(
    flow: TrainConfig, labelled: PairStore
) -> None:
    for rank, loss in ((0, "sft"), (2, "dpo")):
        output = Path(f"{flow.output_dir}-{loss}")
        settings = replace(flow, lora_rank=rank, loss=loss, sample_steps=2, n_samples=1, output_dir=str(output))
        trainer(settings, labelled).train("run")
        written = sorted(path.name for path in (output / "samples").iterdir())
        assert written == ["reference-0.png", "step-000002.png"], loss


@pytest.mark.slow(reason="trains and loads small models")
def test_samples_show_the_reference_beside_a_policy_whose_every_weight_is_trained(
    flow: TrainConfig, labelled: PairStore
) -> None:
    pixels = {}
    for name, rate in (("still", 1e-9), ("trained", 0.1)):
        output = Path(f"{flow.output_dir}-{name}")
        settings = replace(flow, lora_rank=0, learning_rate=rate, sample_steps=2, n_samples=1, output_dir=str(output))
        trainer(settings, labelled).train("run")
        pixels[name] = [(output / "samples" / file).read_bytes() for file in ("reference-0.png", "step-000002.png")]
    assert pixels["still"][0] == pixels["trained"][0]
    assert pixels["still"][1] != pixels["trained"][1]
