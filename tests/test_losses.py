"""The losses against numbers worked by hand."""

import math

import pytest
import torch
from prefloop.train.losses import diffusion_dpo, dpo_logits, implicit_accuracy, sft


def errors(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_dpo_of_a_pair_worked_by_hand():
    # (0.10 - 0.30) - (0.15 - 0.25) = -0.10; u = -(20 / 2) * -0.10 = 1; -log sigmoid(1) = log(1 + e^-1) = 0.313262
    four = errors(0.10), errors(0.30), errors(0.15), errors(0.25)
    assert dpo_logits(*four, beta=20).item() == pytest.approx(1.0, abs=1e-6)
    assert diffusion_dpo(*four, beta=20).item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-6)


def test_dpo_is_log_2_when_the_model_is_its_reference():
    chosen, rejected = torch.rand(2, 7)
    loss = diffusion_dpo(chosen, rejected, chosen, rejected, beta=5000)
    assert torch.allclose(loss, torch.full((7,), math.log(2)))


def test_swapping_chosen_and_rejected_flips_the_sign_of_the_gradient_of_the_logits():
    generator = torch.Generator().manual_seed(0)
    a, b, ref_a, ref_b = torch.rand(4, 5, generator=generator).requires_grad_()
    one = torch.autograd.grad(dpo_logits(a, b, ref_a, ref_b, beta=30).sum(), (a, b))
    other = torch.autograd.grad(dpo_logits(b, a, ref_b, ref_a, beta=30).sum(), (a, b))
    assert torch.equal(one[0], -other[0])
    assert torch.equal(one[1], -other[1])
    assert torch.equal(dpo_logits(a, b, ref_a, ref_b, beta=30), -dpo_logits(b, a, ref_b, ref_a, beta=30))


def test_implicit_accuracy_counts_an_exact_tie_as_one_half():
    # two above zero, one tie, one below: (2 + 0.5) / 4; the reference code says 0.5 here and 0 where all are ties
    assert implicit_accuracy(errors(2.0, 0.1, 0.0, -3.0)).item() == pytest.approx(0.625)
    assert implicit_accuracy(errors(0.0, 0.0)).item() == 0.5


def test_sft_looks_at_chosen_images_alone():
    chosen = errors(0.2, 0.4)
    assert torch.equal(sft(chosen), chosen)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_errors_in_half_precision_are_refused(half: torch.dtype):
    good, bad = errors(0.1, 0.2), errors(0.1, 0.2).to(half)
    with pytest.raises(TypeError, match="float32"):
        diffusion_dpo(good, good, bad, good, beta=5000)


def test_errors_that_are_not_one_a_pair_are_refused():
    with pytest.raises(ValueError, match=r"\(B,\)"):
        dpo_logits(errors(0.1, 0.2), errors(0.1), errors(0.1), errors(0.1), beta=1)
