"""Clipping in its four quadrants, with the gradient; the clipped value error; Bradley-Terry."""

import math

import jaxtyping
import pytest
import torch

from gemma_alignment.objectives.losses import (
    bradley_terry,
    clipped_surrogate,
    clipped_value_error,
    probability_ratio,
)

# (ratio, advantage) -> (loss, its derivative by log π) at ε = .2
QUADRANTS = {
    "above, wanted: stops": (1.5, 2.0, -2.4, 0.0),
    "above, unwanted: pulls back": (1.5, -2.0, 3.0, 3.0),
    "below, wanted: pulls back": (0.5, 2.0, -1.0, -1.0),
    "below, unwanted: stops": (0.5, -2.0, 1.6, 0.0),
    "inside, wanted": (1.1, 2.0, -2.2, -2.2),
    "inside, unwanted": (0.9, -2.0, 1.8, 1.8),
    "on policy": (1.0, 2.0, -2.0, -2.0),
    "no advantage": (1.5, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_clip_quadrants_with_their_gradients(quadrant, clipped_surrogate=clipped_surrogate):
    ratio, advantage, loss, slope = QUADRANTS[quadrant]
    new = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    found = clipped_surrogate(new, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert new.grad.item() == pytest.approx(slope, abs=1e-6)


def test_clip_is_the_minimum_of_the_paper(clipped_surrogate=clipped_surrogate):
    """−min(ρA, clip(ρ)A), token by token, in plain Python."""
    chance = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 4, 5, generator=chance, dtype=torch.float64)
    found = clipped_surrogate(new, old, advantages, 0.2)
    for n, o, a, f in zip(*(x.flatten().tolist() for x in (new, old, advantages, found)), strict=True):
        ratio = math.exp(n - o)
        assert f == pytest.approx(-min(ratio * a, min(max(ratio, 0.8), 1.2) * a), abs=1e-12)


def test_a_wider_upper_side_moves_that_side_alone(clipped_surrogate=clipped_surrogate):
    ratios = torch.tensor([1.25, 1.35, 0.7])
    new, old, up = ratios.log(), torch.zeros(3), torch.ones(3)
    found = clipped_surrogate(new, old, up, 0.2, 0.3)
    assert found.tolist() == pytest.approx([-1.25, -1.3, -0.7], abs=1e-6)
    assert clipped_surrogate(new, old, -up, 0.2, 0.3).tolist() == pytest.approx([1.25, 1.35, 0.8], abs=1e-6)
    assert torch.equal(clipped_surrogate(new, old, up, 0.2, 0.2), clipped_surrogate(new, old, up, 0.2))
    assert torch.equal(clipped_surrogate(new, old, up, 0.2, None), clipped_surrogate(new, old, up, 0.2))


def test_on_policy_the_gradient_is_that_of_reinforce(clipped_surrogate=clipped_surrogate):
    old = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]])
    advantages = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    new = old.clone().requires_grad_()
    clipped_surrogate(new, old, advantages, 0.2).sum().backward()
    assert torch.allclose(new.grad, -advantages)


def test_the_value_of_centred_credit_is_0_on_policy_and_its_gradient_is_not():
    """Why a loss plot shows no progress: at ρ = 1 the sum is −Σ A."""
    old = torch.tensor([-1.0, -2.0])
    new = old.clone().requires_grad_()
    loss = clipped_surrogate(new, old, torch.tensor([1.0, -1.0]), 0.2).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert new.grad.tolist() == [-1.0, 1.0]


def test_probability_ratio_by_hand():
    assert probability_ratio(torch.tensor([0.0, -1.0]), torch.tensor([0.0, -2.0])).tolist() == [
        1.0,
        pytest.approx(math.e),
    ]


# (value, old value, return) -> (error, its derivative by the value) at value_clip .2
VALUES = {
    "inside": (0.1, 0.0, 1.0, 0.405, -0.9),
    "far, towards the return: stops": (0.5, 0.0, 1.0, 0.32, 0.0),
    "far, past the return: pulls back": (2.0, 0.0, 0.5, 1.125, 1.5),
    "far, away from the return: pulls back": (-0.5, 0.0, 1.0, 1.125, -1.5),
    "far below, towards the return: stops": (-0.5, 0.0, -1.0, 0.32, 0.0),
    "there": (1.0, 1.0, 1.0, 0.0, 0.0),
}


@pytest.mark.parametrize("case", VALUES)
def test_value_error_on_each_side_of_the_clip(case, clipped_value_error=clipped_value_error):
    value, old, target, error, slope = VALUES[case]
    new = torch.tensor([[value]], requires_grad=True)
    found = clipped_value_error(new, torch.tensor([[old]]), torch.tensor([[target]]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(error, abs=1e-6)
    assert new.grad.item() == pytest.approx(slope, abs=1e-6)


def test_a_wide_clip_leaves_half_the_squared_error(clipped_value_error=clipped_value_error):
    values, old, returns = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(clipped_value_error(values, old, returns, 100), 0.5 * (values - returns) ** 2, atol=1e-5)


def test_value_error_ignores_a_common_shift(clipped_value_error=clipped_value_error):
    values, old, returns = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shifted = clipped_value_error(values + 7, old + 7, returns + 7, 0.2)
    assert torch.allclose(shifted, clipped_value_error(values, old, returns, 0.2), atol=1e-12)


def test_bradley_terry_by_hand(bradley_terry=bradley_terry):
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, math.log(3), 0.0])
    expected = [math.log(2), math.log(4), math.log(1 + math.exp(-2))]
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx(expected, abs=1e-6)
    with_margin = bradley_terry(chosen, rejected, torch.tensor([math.log(3), 0.0, 2.0]))
    assert with_margin.tolist() == pytest.approx([math.log(4), math.log(4), math.log(2)], abs=1e-6)
    assert bradley_terry(chosen, rejected, 2.0)[2].item() == pytest.approx(math.log(2), abs=1e-6)


def test_bradley_terry_is_the_likelihood_of_the_preference(bradley_terry=bradley_terry):
    """Both orders of a pair are the two outcomes of one event: their probabilities add up to 1."""
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose((-bradley_terry(a, b)).exp() + (-bradley_terry(b, a)).exp(), torch.ones(50))


def test_bradley_terry_sees_differences_alone_and_pushes_them_apart(bradley_terry=bradley_terry):
    a, b = torch.randn(2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = bradley_terry(a, b)
    assert torch.allclose(bradley_terry(a + 5, b + 5), loss, atol=1e-12)
    loss.sum().backward()
    assert (a.grad < 0).all()
    assert torch.allclose(a.grad, -b.grad)
    assert torch.allclose(a.grad, -(b - a).sigmoid(), atol=1e-12)


def test_bradley_terry_stays_finite_for_hopeless_pairs():
    loss = bradley_terry(torch.tensor([-500.0, 500.0]), torch.tensor([500.0, -500.0]))
    assert loss.tolist() == [1000.0, 0.0]


@pytest.mark.usefixtures("unchecked")
def test_pairs_of_different_shapes_are_refused_in_a_run_too():
    with pytest.raises(ValueError, match="different shapes"):
        bradley_terry(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="different shapes"):
        bradley_terry(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1))


def test_shapes_are_checked_under_test():
    with pytest.raises(jaxtyping.TypeCheckError):
        clipped_surrogate(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 1), 0.2)
    with pytest.raises(jaxtyping.TypeCheckError):
        bradley_terry(torch.zeros(4), torch.zeros(4, 1))


def _max_for_min(new, old, advantages, low, high=None):
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - low, 1 + (low if high is None else high))
    return torch.minimum(-advantages * ratio, -advantages * clipped)


def _clipped_alone(new, old, advantages, low, high=None):
    return -advantages * (new - old).exp().clamp(1 - low, 1 + (low if high is None else high))


def _not_clipped(new, old, advantages, low, high=None):
    return -advantages * (new - old).exp()


def _upside_down(new, old, advantages, low, high=None):
    return clipped_surrogate(new, old, -advantages, low, high)


def _inverse_ratio(new, old, advantages, low, high=None):
    return clipped_surrogate(old, new, advantages, low, high)


def _high_side_everywhere(new, old, advantages, low, high=None):
    return clipped_surrogate(new, old, advantages, low if high is None else high)


@pytest.mark.parametrize("wrong", [_max_for_min, _clipped_alone, _not_clipped, _upside_down, _inverse_ratio])
def test_planted_clip_is_caught(wrong):
    with pytest.raises(AssertionError):
        for quadrant in QUADRANTS:
            test_clip_quadrants_with_their_gradients(quadrant, wrong)
    with pytest.raises(AssertionError):
        test_clip_is_the_minimum_of_the_paper(wrong)


def test_planted_asymmetry_is_caught():
    with pytest.raises(AssertionError):
        test_a_wider_upper_side_moves_that_side_alone(_high_side_everywhere)


def _value_min(values, old, returns, clip):
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.minimum((values - returns) ** 2, (near - returns) ** 2)


def _value_clip_around_the_return(values, old, returns, clip):
    near = returns + (values - returns).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def _value_without_the_half(values, old, returns, clip):
    return 2 * clipped_value_error(values, old, returns, clip)


@pytest.mark.parametrize("wrong", [_value_min, _value_clip_around_the_return, _value_without_the_half])
def test_planted_value_error_is_caught(wrong):
    with pytest.raises(AssertionError):
        for case in VALUES:
            test_value_error_on_each_side_of_the_clip(case, wrong)


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (test_bradley_terry_by_hand, lambda c, r, m=None: bradley_terry(r, c, m)),
        (test_bradley_terry_by_hand, lambda c, r, m=None: bradley_terry(c, r, None if m is None else -m)),
        (test_bradley_terry_sees_differences_alone_and_pushes_them_apart, lambda c, r: (r - c).sigmoid()),
        (test_bradley_terry_is_the_likelihood_of_the_preference, lambda c, r: (1 - (c - r)).clamp(min=0)),
    ],
)
def test_planted_bradley_terry_is_caught(test, wrong):
    with pytest.raises(AssertionError):
        test(wrong)
