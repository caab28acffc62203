"""Means and whitening over real tokens.

Here and in the files beside it a test takes the function that it tests as an argument with a default:
``test_planted_bug_is_caught`` calls the same test with wrong versions, which it must reject.
"""

import pytest
import torch

from gemma_alignment.objectives.masking import last_position, masked_mean, masked_sum, whiten

X = torch.tensor([[1.0, 2.0, 3.0, 100.0], [5.0, -7.0, 50.0, 50.0]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def test_masked_mean_by_hand(masked_mean=masked_mean):
    assert masked_mean(X, MASK).item() == 2.75  # (1 + 2 + 3 + 5) / 4
    assert masked_mean(X, MASK, dim=1).tolist() == [2.0, 5.0]
    assert masked_mean(X, MASK, dim=0).tolist() == [3.0, 2.0, 3.0, 0.0]
    assert masked_mean(X, MASK, dim=(0, 1)).item() == 2.75


def test_masked_sum_by_hand():
    assert masked_sum(X, MASK).item() == 11.0
    assert masked_sum(X, MASK, dim=1).tolist() == [6.0, 5.0]


def test_an_empty_mask_has_mean_zero_and_gradient_zero(masked_mean=masked_mean):
    x = X.clone().requires_grad_()
    mean = masked_mean(x, torch.zeros_like(MASK), dim=1)
    mean.sum().backward()
    assert mean.tolist() == [0.0, 0.0]
    assert not x.grad.any()


def test_what_stands_in_the_padding_reaches_no_mean_and_no_gradient(masked_mean=masked_mean, whiten=whiten):
    x = X.masked_fill(~MASK, torch.nan).requires_grad_()
    total = masked_mean(x, MASK) + masked_mean(x, MASK, dim=1).sum() + (whiten(x, MASK) * X).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(x.grad).all()
    assert not x.grad[~MASK].any()


def test_more_padding_changes_no_mean(masked_mean=masked_mean, whiten=whiten):
    more = torch.cat([X, torch.full((2, 3), 9.0)], dim=1)
    longer = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    assert masked_mean(more, longer) == masked_mean(X, MASK)
    assert torch.equal(masked_mean(more, longer, dim=1), masked_mean(X, MASK, dim=1))
    assert torch.allclose(whiten(more, longer)[:, :4], whiten(X, MASK), atol=1e-7)


def test_whiten_by_hand(whiten=whiten):
    # 1, 2, 3, 5: mean 2.75, population variance (3.0625 + .5625 + .0625 + 5.0625) / 4 = 2.1875
    expected = torch.tensor([-1.75, -0.75, 0.25, 2.25]) / 2.1875**0.5
    assert torch.allclose(whiten(X, MASK)[MASK], expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_whiten_has_mean_0_and_variance_1_on_the_mask_and_0_elsewhere(seed, whiten=whiten):
    chance = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(6, 9, generator=chance)
    mask = torch.rand(6, 9, generator=chance) < 0.7
    white = whiten(x, mask)
    real = white[mask].double()
    assert abs(real.mean()) < 1e-6
    assert abs(real.var(correction=0) - 1) < 1e-5
    assert not white[~mask].any()


def test_whiten_is_invariant_to_shift_and_scale(whiten=whiten):
    assert torch.allclose(whiten(5 * X - 40, MASK), whiten(X, MASK), atol=1e-5)
    assert torch.allclose(whiten(-X, MASK), -whiten(X, MASK), atol=1e-6)


def test_whiten_of_equal_values_is_zero():
    assert not whiten(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)).any()


def test_last_position_by_hand():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    assert last_position(mask).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"rows \[1\] have no response token"):
        last_position(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2\] have no response token: even an empty answer has its"):
        last_position(torch.zeros(5, 2, dtype=torch.bool))


def _unmasked_mean(x, mask, dim=None):
    return x.mean() if dim is None else x.mean(dim)


def _multiplied_mean(x, mask, dim=None):
    total = (x * mask).sum() if dim is None else (x * mask).sum(dim)
    return total / (mask.sum() if dim is None else mask.sum(dim)).clamp(min=1)


def _division_by_nothing(x, mask, dim=None):
    return (x * mask).sum(dim) / mask.sum(dim)


def _keeps_the_mean(x, mask, eps=1e-8):
    return whiten(x, mask, eps) + masked_mean(x, mask) * mask


def _whitens_padding_too(x, mask, eps=1e-8):
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * mask


def _bessel(x, mask, eps=1e-8):
    n = mask.sum()
    return whiten(x, mask, eps) * ((n - 1) / n).sqrt()


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (test_masked_mean_by_hand, {"masked_mean": _unmasked_mean}),
        (test_more_padding_changes_no_mean, {"masked_mean": _unmasked_mean}),
        (test_what_stands_in_the_padding_reaches_no_mean_and_no_gradient, {"masked_mean": _multiplied_mean}),
        (test_an_empty_mask_has_mean_zero_and_gradient_zero, {"masked_mean": _division_by_nothing}),
        (test_whiten_by_hand, {"whiten": _keeps_the_mean}),
        (test_whiten_by_hand, {"whiten": _bessel}),
        (test_whiten_is_invariant_to_shift_and_scale, {"whiten": _keeps_the_mean}),
        (test_more_padding_changes_no_mean, {"whiten": _whitens_padding_too}),
    ],
)
def test_planted_bug_is_caught(test, wrong):
    with pytest.raises(AssertionError):
        test(**wrong)


@pytest.mark.parametrize("wrong", [_keeps_the_mean, _whitens_padding_too, _bessel])
def test_planted_whitening_is_caught_at_every_seed(wrong):
    for seed in range(5):
        with pytest.raises(AssertionError):
            test_whiten_has_mean_0_and_variance_1_on_the_mask_and_0_elsewhere(seed, whiten=wrong)
