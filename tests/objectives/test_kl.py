"""k1, k2, k3 against the exact KL on a vocabulary small enough to enumerate, in value and in gradient."""

import math

import pytest
import torch

from gemma_alignment.objectives.kl import k1, k2, k3

FAR = (torch.tensor([0.9, -0.4, 0.3, -1.2, 0.1]).double(), torch.tensor([-0.5, 0.8, 0.2, -0.1, 0.4]).double())
NEAR = (FAR[0], FAR[0] + 0.02 * FAR[1])


def _kl(p, q):
    """KL(p ‖ q) of two vectors of log-probabilities, by its definition."""
    return (p.exp() * (p - q)).sum()


def _expected(estimator, logits, ref_logits):
    """E over tokens from the policy, by enumeration: no sampling error."""
    policy, reference = logits.log_softmax(0), ref_logits.log_softmax(0)
    return (policy.exp() * estimator(policy, reference)).sum()


def _gradients(estimator, logits, ref_logits):
    """Of E[estimator] with the sampling held fixed (what a loss gives), and of both exact KLs."""
    theta = logits.clone().requires_grad_()
    policy, reference = theta.log_softmax(0), ref_logits.log_softmax(0)
    in_loss = (policy.exp().detach() * estimator(policy, reference)).sum()
    quantities = (in_loss, _kl(policy, reference), _kl(reference, policy))
    return [torch.autograd.grad(q, theta, retain_graph=True)[0] for q in quantities]


def test_estimators_by_hand(k1=k1, k2=k2, k3=k3):
    new, ref = torch.tensor([math.log(0.5), -1.0]), torch.tensor([math.log(0.25), -1.0])
    assert k1(new, ref).tolist() == [pytest.approx(math.log(2), abs=1e-6), 0.0]
    assert k2(new, ref).tolist() == [pytest.approx(math.log(2) ** 2 / 2, abs=1e-6), 0.0]
    assert k3(new, ref).tolist() == [pytest.approx(0.5 - 1 + math.log(2), abs=1e-6), 0.0]


@pytest.mark.parametrize("pair", [FAR, NEAR], ids=["far", "near"])
def test_k1_and_k3_are_unbiased(pair, k1=k1, k3=k3):
    exact = _kl(pair[0].log_softmax(0), pair[1].log_softmax(0)).item()
    assert _expected(k1, *pair).item() == pytest.approx(exact, abs=1e-12)
    assert _expected(k3, *pair).item() == pytest.approx(exact, abs=1e-12)


def test_k2_is_biased_and_nearly_right_when_the_policies_are_near(k2=k2):
    exact = [_kl(p.log_softmax(0), q.log_softmax(0)).item() for p, q in (FAR, NEAR)]
    found = [_expected(k2, *pair).item() for pair in (FAR, NEAR)]
    assert abs(found[0] / exact[0] - 1) > 0.05
    assert found[1] == pytest.approx(exact[1], rel=0.02)


def test_gradients_in_a_loss(k1=k1, k2=k2, k3=k3):
    """k1: none; k2: that of KL(policy ‖ reference); k3: that of KL(reference ‖ policy)."""
    nothing, forward, backward = _gradients(k1, *FAR)
    assert torch.allclose(nothing, torch.zeros_like(nothing), atol=1e-12)
    assert not torch.allclose(forward, backward, atol=0.05)
    assert torch.allclose(_gradients(k2, *FAR)[0], forward, atol=1e-12)
    assert torch.allclose(_gradients(k3, *FAR)[0], backward, atol=1e-12)


def test_k2_and_k3_are_never_negative_and_zero_only_at_equality(k2=k2, k3=k3):
    difference = torch.linspace(-5, 5, 101).double()
    zero = torch.zeros_like(difference)
    for estimator in (k2, k3):
        found = estimator(difference, zero)
        assert (found >= 0).all()
        assert (found == 0).tolist() == (difference.abs() < 1e-12).tolist()


def test_k3_keeps_its_digits_near_zero():
    """exp(−x) − 1 in fp32 has lost them all at x = 1e-4: k3 would be off by more than its size."""
    x = torch.tensor([1e-2, 1e-3, 1e-4])
    assert torch.allclose(k3(x, torch.zeros(3)), x**2 / 2, rtol=0.01, atol=0.0)


def test_monte_carlo_agrees_and_k3_varies_less():
    """200,000 tokens from the policy: each mean within four standard errors of the exact KL."""
    policy, reference = (x.log_softmax(0) for x in NEAR)
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(3))
    exact = _kl(policy, reference).item()
    spread = {}
    for estimator in (k1, k3):
        found = estimator(policy[tokens], reference[tokens])
        spread[estimator] = found.std().item()
        assert abs(found.mean().item() - exact) < 4 * spread[estimator] / len(tokens) ** 0.5
    assert spread[k3] < spread[k1] / 20


def test_nothing_is_clamped():
    assert k1(torch.tensor([0.0]), torch.tensor([-40.0])).item() == 40.0
    assert k3(torch.tensor([-20.0]), torch.tensor([0.0])).item() == pytest.approx(math.exp(20) - 21, rel=1e-5)


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (test_estimators_by_hand, {"k1": lambda p, q: q - p}),
        (test_estimators_by_hand, {"k2": lambda p, q: (p - q) ** 2}),
        (test_estimators_by_hand, {"k3": lambda p, q: (p - q).exp() - 1 - (p - q)}),
        (test_gradients_in_a_loss, {"k3": lambda p, q: (p - q).exp() - 1 - (p - q)}),
        (test_gradients_in_a_loss, {"k3": k2}),
        (test_gradients_in_a_loss, {"k3": lambda p, q: k3(p, q).detach() + 0 * p}),
        (test_gradients_in_a_loss, {"k2": lambda p, q: (p - q).abs()}),
    ],
)
def test_planted_bug_is_caught(test, wrong):
    with pytest.raises(AssertionError):
        test(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, q: (q - p).clamp(-0.3, 0.3).exp() - 1 - (q - p),
        lambda p, q: (p - q).exp() - 1 - (p - q),
        lambda p, q: (p - q).abs(),
    ],
)
def test_planted_k3_is_caught_by_its_expectation(wrong):
    with pytest.raises(AssertionError):
        test_k1_and_k3_are_unbiased(FAR, k3=wrong)
