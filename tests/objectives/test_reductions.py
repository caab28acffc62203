"""Three ways to one number: by hand, under padding, and split into micro-batches."""

import pytest
import torch

from gemma_alignment.objectives.reductions import REDUCTIONS, constant_length, sequence_mean, token_mean
from gemma_alignment.schemas import Normalizer

X = torch.tensor([[1.0, 2.0, 3.0, 6.0], [10.0, 99.0, 99.0, 99.0]])
MASK = torch.tensor([[True, True, True, True], [True, False, False, False]])
STEP = Normalizer(tokens=5, sequences=2, max_length=8)
PLAIN = {"token_mean": 5, "sequence_mean": 2, "constant_length": 16}
"""The same divisors as plain numbers."""


def _parts(reduce, normalizer, size):
    """The sum over micro-batches of ``size`` rows, each given what the whole step counts."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, generator=chance)
    mask = torch.arange(6) < torch.randint(1, 7, (8, 1), generator=chance)
    step = normalizer or Normalizer(int(mask.sum()), 8, 6)
    return sum(reduce(x[i : i + size], mask[i : i + size], step) for i in range(0, 8, size)).item()


def test_reductions_by_hand(token_mean=token_mean, sequence_mean=sequence_mean, constant_length=constant_length):
    assert token_mean(X, MASK, STEP).item() == pytest.approx(22 / 5)
    assert sequence_mean(X, MASK, STEP).item() == pytest.approx((3 + 10) / 2)
    assert constant_length(X, MASK, STEP).item() == pytest.approx(22 / 16)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_plain_number_serves_as_normalizer(name):
    reduce = REDUCTIONS[name]
    assert reduce(X, MASK, PLAIN[name]) == reduce(X, MASK, STEP)
    assert reduce(X, MASK, float(PLAIN[name])) == reduce(X, MASK, STEP)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_more_padding_changes_no_reduction(name, reductions=REDUCTIONS):
    more = torch.cat([X, torch.full((2, 3), torch.nan)], dim=1)
    longer = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    assert reductions[name](more, longer, STEP) == reductions[name](X, MASK, STEP)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_micro_batches_add_up_to_the_step(name, size, reductions=REDUCTIONS):
    assert _parts(reductions[name], None, size) == pytest.approx(_parts(REDUCTIONS[name], None, 8), abs=1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_order_of_rows_does_not_matter(name):
    order = torch.tensor([1, 0])
    assert REDUCTIONS[name](X[order], MASK[order], STEP) == pytest.approx(REDUCTIONS[name](X, MASK, STEP).item())


def test_equal_lengths_make_the_three_proportional():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6).expand(4, 6) < 3
    step = Normalizer(12, 4, 6)
    expected = x[:, :3].sum().item()
    assert token_mean(x, mask, step).item() * 12 == pytest.approx(expected, abs=1e-5)
    assert sequence_mean(x, mask, step).item() * 4 * 3 == pytest.approx(expected, abs=1e-5)
    assert constant_length(x, mask, step).item() * 4 * 6 == pytest.approx(expected, abs=1e-5)


def test_what_a_token_weighs():
    """sequence_mean: 1 / (rows · its length); token_mean: 1 / all tokens; constant_length: 1 / (rows · max)."""
    weights = {}
    for name, reduce in REDUCTIONS.items():
        x = X.clone().requires_grad_()
        reduce(x, MASK, STEP).backward()
        weights[name] = (x.grad[0, 0].item(), x.grad[1, 0].item(), x.grad[1, 1].item())
    assert weights["token_mean"] == pytest.approx((0.2, 0.2, 0.0))
    assert weights["sequence_mean"] == pytest.approx((0.125, 0.5, 0.0))
    assert weights["constant_length"] == pytest.approx((0.0625, 0.0625, 0.0))


def test_a_step_may_count_one():
    """One response of one token: the divisor is 1, and nothing is refused."""
    x, mask = torch.tensor([[3.0]]), torch.tensor([[True]])
    assert [reduce(x, mask, Normalizer(1, 1, 1)).item() for reduce in REDUCTIONS.values()] == [3.0] * 3


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_step_without_a_token_is_refused(name):
    with pytest.raises(ValueError, match="no real token"):
        REDUCTIONS[name](X, MASK, 0)
    with pytest.raises(ValueError, match="no real token"):
        REDUCTIONS[name](X, MASK, Normalizer(0, 0, 8))


def _own_count(x, mask, normalizer):
    return (x * mask).sum() / mask.sum()


def _own_rows(x, mask, normalizer):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def _unmasked(x, mask, normalizer):
    return x.mean()


def _batch_length(x, mask, normalizer):
    return x.masked_fill(~mask, 0).sum() / (normalizer.sequences * x.shape[1])


@pytest.mark.parametrize(
    ("test", "name", "wrong"),
    [
        (test_micro_batches_add_up_to_the_step, "token_mean", _own_count),
        (test_micro_batches_add_up_to_the_step, "sequence_mean", _own_rows),
        (test_more_padding_changes_no_reduction, "token_mean", _unmasked),
        (test_more_padding_changes_no_reduction, "constant_length", _batch_length),
    ],
)
def test_planted_bug_is_caught(test, name, wrong):
    arguments = {"size": 2} if test is test_micro_batches_add_up_to_the_step else {}
    with pytest.raises(AssertionError):
        test(name, reductions={name: wrong}, **arguments)


@pytest.mark.parametrize(
    "wrong",
    [{"token_mean": _unmasked}, {"sequence_mean": token_mean}, {"constant_length": _batch_length}],
)
def test_planted_weight_is_caught(wrong):
    with pytest.raises(AssertionError):
        test_reductions_by_hand(**wrong)
