"""The losses against numbers worked by hand, and their records."""

import inspect
import math

import pytest
import torch
from prefloop.train import losses
from prefloop.train.losses import (
    diffusion_dpo,
    dpo_logits,
    hinge,
    implicit_accuracy,
    ipo,
    kto,
    mapo,
    nft,
    prediction_distances,
    regularized,
    safeguarded,
    sft,
)
from prefloop.train.methods import METHODS
from prefloop.train.pair_denoiser import Errors


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
    gradient = torch.autograd.grad(dpo_logits(a, b, ref_a, ref_b, beta=30).sum(), (a, b))
    swapped = torch.autograd.grad(dpo_logits(b, a, ref_b, ref_a, beta=30).sum(), (a, b))
    assert torch.equal(gradient[0], -swapped[0])
    assert torch.equal(gradient[1], -swapped[1])
    assert torch.equal(dpo_logits(a, b, ref_a, ref_b, beta=30), -dpo_logits(b, a, ref_b, ref_a, beta=30))


def test_implicit_accuracy_counts_an_exact_tie_as_one_half():
    # two above zero, one tie, one below: (2 + 0.5) / 4; the reference code says 0.5 here and 0 where all are ties
    assert implicit_accuracy(errors(2.0, 0.1, 0.0, -3.0)).item() == pytest.approx(0.625)
    assert implicit_accuracy(errors(0.0, 0.0)).item() == 0.5


def test_a_label_that_is_right_with_probability_p_weights_both_outcomes():
    # u = 1 as above: -0.8 log sigmoid(1) - 0.2 log sigmoid(-1) = 0.8 * 0.313262 + 0.2 * 1.313262 = 0.513262
    four = errors(0.10), errors(0.30), errors(0.15), errors(0.25)
    assert diffusion_dpo(*four, beta=20, p_chosen=0.8).item() == pytest.approx(0.513262, abs=1e-5)
    assert diffusion_dpo(*four, beta=20, p_chosen=torch.tensor([0.8])).item() == pytest.approx(0.513262, abs=1e-5)
    # a label that carries no information pulls the model back to its reference: the gradient at u = 0 vanishes, and above it points down
    chosen = errors(0.2).requires_grad_()
    diffusion_dpo(chosen, errors(0.3), errors(0.2), errors(0.3), beta=20, p_chosen=0.5).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(0, abs=1e-7)


def test_ipo_of_a_pair_worked_by_hand():
    # x = -((0.10 - 0.30) - (0.15 - 0.25)) = 0.10; (0.10 - 1 / (2 * 20))^2 = 0.075^2
    four = errors(0.10), errors(0.30), errors(0.15), errors(0.25)
    assert ipo(*four, beta=20).item() == pytest.approx(0.075**2, abs=1e-7)


def test_hinge_of_a_pair_worked_by_hand():
    # x = 0.10: 1 - 4 * 0.10 = 0.6; with beta 20 it is below zero, so the loss is 0
    four = errors(0.10), errors(0.30), errors(0.15), errors(0.25)
    assert hinge(*four, beta=4).item() == pytest.approx(0.6, abs=1e-6)
    assert hinge(*four, beta=20).item() == 0.0


def test_mapo_of_a_pair_worked_by_hand():
    # phi(e) = 0.5 e / (exp(0.5 e) - 1): phi(0.1) = 0.05 / 0.0512711 = 0.975208, phi(0.2) = 0.1 / 0.1051709 = 0.950833
    # 0.1 - 0.1 log sigmoid(10 * 0.024375) = 0.1 + 0.1 log(1 + exp(-0.24375)) = 0.1 + 0.1 * 0.578683
    assert mapo(errors(0.1), errors(0.2), beta=0.1, n_timesteps=10).item() == pytest.approx(0.1578683, abs=2e-6)
    chosen, rejected = errors(0.1).requires_grad_(), errors(0.2).requires_grad_()
    mapo(chosen, rejected, beta=0.1).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() > 0 > rejected.grad.item()


def test_kto_of_two_pairs_worked_by_hand():
    # liked g: 0.02 and 0.04; disliked g: -0.01 and 0.03; z = mean = 0.02
    chosen, rejected, reference = errors(0.08, 0.06), errors(0.11, 0.07), errors(0.10, 0.10)
    loss = kto(chosen, rejected, reference, reference, beta=100)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    # a pair: half of 1 - sigmoid(100 (g - z)) for the liked and 1 - sigmoid(100 (z - g)) for the disliked image
    first = 0.5 * ((1 - sigmoid(0)) + (1 - sigmoid(3)))
    second = 0.5 * ((1 - sigmoid(2)) + (1 - sigmoid(-1)))
    assert loss.tolist() == pytest.approx([first, second], abs=1e-5)


def test_the_baseline_of_kto_is_never_below_zero():
    # both g are -0.05: z = 0, and the liked image costs 1 - sigmoid(-5), the disliked one 1 - sigmoid(5)
    loss = kto(errors(0.15), errors(0.15), errors(0.10), errors(0.10), beta=100)
    assert loss.item() == pytest.approx(0.5, abs=1e-6)
    one_sided = kto(errors(0.15), errors(0.05), errors(0.10), errors(0.10), beta=100)
    assert one_sided.item() == pytest.approx(1 / (1 + math.exp(-5)), abs=1e-5)


def test_the_safeguard_scales_the_rejected_gradient_if_both_point_the_same_way():
    # g_c = (1, 0), g_r = (2, 0): lambda = (1 - 0.9) * 1 / 2 = 0.05; g_r = (-2, 0) or (0, 2): 1; g_r = (0.01, 0): clipped to 1
    residual_c = torch.tensor([[1.0, 0.0]] * 4)
    residual_r = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.01, 0.0]])
    rejected = errors(0.4, 0.4, 0.4, 0.4).requires_grad_()
    kept = safeguarded(rejected, residual_c, residual_r, mu=0.9)
    assert torch.equal(kept.detach(), rejected.detach())
    kept.sum().backward()
    assert rejected.grad is not None
    assert rejected.grad.tolist() == pytest.approx([0.05, 1.0, 1.0, 1.0])


def test_with_the_safeguard_a_step_never_raises_the_chosen_error():
    # dpo pushes the rejected prediction off; without the safeguard that drags the chosen one along
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(50, 6, generator=generator)
    chosen_off = shared + 0.3 * torch.randn(50, 6, generator=generator)
    rejected_off = shared + 0.3 * torch.randn(50, 6, generator=generator)
    rises = {}
    for name, mu in (("without", None), ("with", 0.5)):
        shift = torch.zeros(50, 6, requires_grad=True)  # one change of the model moves both predictions alike
        off = [chosen_off + shift, rejected_off + shift]
        chosen, rejected = (residual.square().mean(1) for residual in off)
        held = rejected if mu is None else safeguarded(rejected, *off, mu=mu)
        logits = dpo_logits(chosen, held, chosen.detach(), rejected.detach(), beta=10)
        (gradient,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(logits).sum(), shift)
        after = (chosen_off - 1e-3 * gradient).square().mean(1)
        rises[name] = int((after > chosen_off.square().mean(1)).sum())
    assert rises["without"] > 5
    assert rises["with"] == 0


def test_the_distance_of_two_models_is_the_mean_square_of_their_difference():
    # chosen images: (1 + 0) / 2 = 0.5 and (0 + 4) / 2 = 2; rejected ones: (0.04 + 0.16) / 2 = 0.1 and 0
    ref = torch.tensor([[3.0, 1.0], [0.5, 0.5], [-1.0, 0.0], [2.0, 2.0]]).requires_grad_()
    policy = (ref.detach() + torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.2, -0.4], [0.0, 0.0]])).requires_grad_()
    chosen, rejected = prediction_distances(policy, ref)
    assert chosen.tolist() == pytest.approx([0.5, 2.0])
    assert rejected.tolist() == pytest.approx([0.1, 0.0])
    # 2 / 2 times the difference: a step on it moves the policy straight toward its reference, which stays
    (chosen + rejected).sum().backward()
    assert policy.grad is not None
    assert torch.allclose(policy.grad, torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.2, -0.4], [0.0, 0.0]]))
    assert ref.grad is None
    with pytest.raises(TypeError, match="float32"):
        prediction_distances(policy, ref.half())


def test_nft_of_a_pair_worked_by_hand():
    # chosen: w = 1, 1 * (0.5 - 0.6 - 0.02) + 0.3 * 0.02 = -0.114; rejected: -1 * (0.7 - 0.4 - 0.05) + 0.3 * 0.05 = -0.235
    parts = (errors(0.5), errors(0.7), errors(0.6), errors(0.4), errors(0.02), errors(0.05))
    assert nft(*parts, beta=0.3).tolist() == pytest.approx([0.5 * (-0.114 - 0.235)])
    # p = 0.75: w = 0.5, so 0.5 * -0.12 + 0.006 = -0.054 and -0.5 * 0.25 + 0.015 = -0.11
    assert nft(*parts, beta=0.3, p_chosen=torch.tensor([0.75])).tolist() == pytest.approx([0.5 * (-0.054 - 0.11)])
    # a coin's label asks only to stay near the reference
    assert nft(*parts, beta=0.3, p_chosen=0.5).tolist() == pytest.approx([0.5 * 0.3 * (0.02 + 0.05)])


def nft_of(policy: torch.Tensor, ref: torch.Tensor, target: torch.Tensor, **settings: float) -> torch.Tensor:
    """The loss of predictions, (2B, values), chosen images first."""
    chosen, rejected = (policy - target).square().mean(1).chunk(2)
    ref_chosen, ref_rejected = (ref - target).square().mean(1).chunk(2)
    near, far = prediction_distances(policy - target, ref - target)
    return nft(chosen, rejected, ref_chosen, ref_rejected, near, far, **settings)


@pytest.mark.parametrize("p_chosen", [1.0, 0.8])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_nft_has_the_gradient_of_the_papers_loss(p_chosen: float, beta: float):
    """r |(1 - b) g + b f - v|^2 / b + (1 - r) |(1 + b) g - b f - v|^2 / b, means over the values, r of the image."""
    generator = torch.Generator().manual_seed(0)
    target, ref = (torch.randn((6, 5), generator=generator) for _ in range(2))  # 3 chosen images, then 3 rejected ones
    policy = torch.randn((6, 5), generator=generator).requires_grad_()
    rewards = torch.tensor([p_chosen] * 3 + [1 - p_chosen] * 3)
    positive = ((1 - beta) * ref + beta * policy - target).square().mean(1)
    negative = ((1 + beta) * ref - beta * policy - target).square().mean(1)
    (expected,) = torch.autograd.grad(
        ((rewards * positive + (1 - rewards) * negative) / beta).sum() / 2, policy, retain_graph=True
    )
    loss = nft_of(policy, ref, target, beta=beta, p_chosen=p_chosen)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_nft_is_least_where_the_prediction_has_moved_by_w_over_beta_toward_or_away_from_the_target():
    target, ref = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    best = torch.tensor([[2.0, 4.0], [-2.0, -4.0]])  # beta 0.5: twice the way, or as far back
    for shift, flat in ((0.0, True), (0.1, False)):
        policy = (best + shift).requires_grad_()
        (gradient,) = torch.autograd.grad(nft_of(policy, ref, target, beta=0.5).sum(), policy)
        assert (gradient.abs().max() < 1e-6) == flat


def test_anchor_and_sft_weight_add_their_multiples_to_a_loss():
    loss, chosen, distance = errors(0.5, 0.7), errors(0.2, 0.4), errors(0.03, 0.01)
    # 0.5 + 10 * 0.03, 0.7 + 10 * 0.01; 0.5 + 2 * 0.2, 0.7 + 2 * 0.4; and both
    assert regularized(loss, chosen, distance, anchor=10).tolist() == pytest.approx([0.8, 0.8])
    assert regularized(loss, chosen, None, sft_weight=2).tolist() == pytest.approx([0.9, 1.5])
    assert regularized(loss, chosen, distance, anchor=10, sft_weight=2).tolist() == pytest.approx([1.2, 1.6])
    assert regularized(loss, chosen, None) is loss
    with pytest.raises(ValueError, match="anchor needs the distance"):
        regularized(loss, chosen, None, anchor=10)


def test_sft_of_a_pair_is_the_error_of_the_chosen_image():
    chosen = errors(0.2, 0.4)
    assert torch.equal(sft(chosen), chosen)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_errors_in_half_precision_are_refused(half: torch.dtype):
    good, bad = errors(0.1, 0.2), errors(0.1, 0.2).to(half)
    with pytest.raises(TypeError, match="float32"):
        diffusion_dpo(good, good, bad, good, beta=5000)


def test_errors_that_are_not_one_per_pair_are_refused():
    with pytest.raises(ValueError, match=r"\(B,\)"):
        dpo_logits(errors(0.1, 0.2), errors(0.1), errors(0.1), errors(0.1), beta=1)


@pytest.mark.parametrize("name", METHODS)
def test_a_record_names_a_function_that_takes_the_errors_and_beta_it_says(name: str):
    method = METHODS[name]
    parameters = inspect.signature(getattr(losses, method.function)).parameters
    required = [parameter.name for parameter in parameters.values() if parameter.default is parameter.empty]
    assert required == [*method.errors, *["beta"] * (method.beta is not None)]
    assert ("p_chosen" in parameters) == method.uncertain_labels
    assert set(method.errors) <= set(Errors.__dataclass_fields__)


@pytest.mark.parametrize("name", METHODS)
def test_a_record_cites_the_paper_that_its_function_does(name: str):
    method = METHODS[name]
    doc = getattr(losses, method.function).__doc__
    assert f"arXiv {method.arxiv}" in doc
    assert method.beta is None or method.beta > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_record_says_how_steep_its_loss_is_where_the_policy_is_its_reference(name: str):
    method = METHODS[name]
    assert (method.first_slope is not None) == method.can_be_anchored
    if method.first_slope is None or method.beta is None:
        return
    for beta in (method.beta, 7.0):
        chosen, rejected = errors(0.2).requires_grad_(), errors(0.3).requires_grad_()
        getattr(losses, method.function)(chosen, rejected, errors(0.2), errors(0.3), beta=beta).sum().backward()
        assert chosen.grad is not None
        assert rejected.grad is not None
        assert chosen.grad.item() == pytest.approx(method.first_slope(beta), rel=1e-4)
        assert rejected.grad.item() == pytest.approx(-method.first_slope(beta), rel=1e-4)


def test_every_loss_is_worked_by_hand_in_this_file():
    for name in METHODS:
        assert any(test.startswith(f"test_{name}_of_") for test in globals()), name
