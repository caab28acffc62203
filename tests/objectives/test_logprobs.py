"""Log-probabilities and entropies of tokens."""

import math

import pytest
import torch

from gemma_alignment.objectives.logprobs import entropy, logprobs_with_gradient, token_logprobs


def _logits(shape=(3, 5, 40), scale=3.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_token_logprobs_by_hand(token_logprobs=token_logprobs):
    logits = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]]).log()
    found = token_logprobs(logits, torch.tensor([[2, 0]]))
    assert found.tolist() == [[pytest.approx(math.log(4 / 7)), pytest.approx(math.log(1 / 3))]]


def test_temperature_divides_the_logits(token_logprobs=token_logprobs):
    # p ~ w^(1/T): at T = .5 the weights 1, 2, 4 become 1, 4, 16
    logits = torch.tensor([[[1.0, 2.0, 4.0]]]).log()
    found = token_logprobs(logits, torch.tensor([[1]]), temperature=0.5)
    assert found.item() == pytest.approx(math.log(4 / 21), abs=1e-6)
    assert torch.allclose(
        token_logprobs(logits, torch.tensor([[1]]), 0.7), token_logprobs(logits / 0.7, torch.tensor([[1]]))
    )


def test_probabilities_sum_to_one_and_a_shift_of_the_logits_changes_nothing():
    logits = _logits((2, 4, 7))
    every = [token_logprobs(logits, torch.full((2, 4), v)) for v in range(7)]
    assert torch.allclose(torch.stack(every).exp().sum(0), torch.ones(2, 4), atol=1e-6)
    shifted = token_logprobs(logits + 30, torch.full((2, 4), 3))
    assert torch.allclose(shifted, every[3], atol=1e-5)


def test_gradient_is_one_hot_minus_softmax():
    logits = _logits((1, 2, 6)).double().requires_grad_()
    tokens = torch.tensor([[4, 0]])
    token_logprobs(logits, tokens).sum().backward()
    expected = torch.nn.functional.one_hot(tokens, 6) - logits.detach().softmax(-1)
    assert torch.allclose(logits.grad, expected, atol=1e-12)


def test_log_softmax_is_taken_in_fp32(token_logprobs=token_logprobs):
    """On the same bf16 logits, against float64: 2e-5 nat is met in fp32, and missed by far in bf16."""
    logits = _logits((4, 8, 500), scale=6.0).bfloat16()
    tokens = torch.randint(500, (4, 8), generator=torch.Generator().manual_seed(1))
    exact = logits.double().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    found = token_logprobs(logits, tokens)
    assert found.dtype == torch.float32
    assert (found.double() - exact).abs().max() < 2e-5
    assert (logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].double() - exact).abs().max() > 0.02


def test_large_logits_lose_no_digits():
    """logit − logsumexp would be off by the rounding of the logits, 1e-3 at 1e4."""
    logits = torch.tensor([[[10000.0, 10001.0, 9998.0]]])
    exact = logits.double().log_softmax(-1)[0, 0, 1].item()
    assert token_logprobs(logits, torch.tensor([[1]])).item() == pytest.approx(exact, abs=1e-6)


def test_entropy_by_hand():
    assert entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8), abs=1e-6)
    halves = entropy(torch.tensor([[[0.0, 0.0, -torch.inf]]]))
    assert halves.item() == pytest.approx(math.log(2), abs=1e-6)
    logits = torch.tensor([[[1.0, 2.0, 4.0]]]).log()
    expected = -sum(p * math.log(p) for p in (1 / 21, 4 / 21, 16 / 21))
    assert entropy(logits, temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_entropy_is_the_expected_negative_logprob():
    logits = _logits((2, 3, 6))
    every = torch.stack([token_logprobs(logits, torch.full((2, 3), v)) for v in range(6)])
    assert torch.allclose(entropy(logits), -(every.exp() * every).sum(0), atol=1e-6)


def test_entropy_of_banned_tokens_has_a_finite_gradient():
    logits = torch.tensor([[[0.3, 0.1, -torch.inf]]]).requires_grad_()
    entropy(logits).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature is"):
        token_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature)
    with pytest.raises(ValueError, match="temperature is"):
        entropy(torch.zeros(1, 1, 2), temperature)


def _multiplies(logits, tokens, temperature=1.0):
    return token_logprobs(logits * temperature**2, tokens, temperature)


def _forgets(logits, tokens, temperature=1.0):
    return token_logprobs(logits, tokens)


def _in_half_precision(logits, tokens, temperature=1.0):
    return (logits / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0].float()


def _unnormalised(logits, tokens, temperature=1.0):
    return (logits / temperature).gather(-1, tokens[..., None])[..., 0].float()


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (test_temperature_divides_the_logits, _multiplies),
        (test_temperature_divides_the_logits, _forgets),
        (test_log_softmax_is_taken_in_fp32, _in_half_precision),
        (test_token_logprobs_by_hand, _unnormalised),
    ],
)
def test_planted_bug_is_caught(test, wrong):
    with pytest.raises(AssertionError):
        test(token_logprobs=wrong)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_beside_the_log_probabilities_is_that_of_autograd(temperature):
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(4))
    logits[0, 3] = -torch.inf
    logits.requires_grad_()
    tokens = torch.tensor([0, 1, 2, 3, 5])
    expected = token_logprobs(logits[None], tokens[None], temperature)[0]
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    chosen, spread, found = logprobs_with_gradient(logits.detach(), tokens, temperature)
    assert torch.allclose(chosen, expected, atol=1e-6)
    assert torch.allclose(spread, entropy(logits.detach()[None], temperature)[0], atol=1e-6)
    assert torch.allclose(found, gradient, atol=1e-6)
