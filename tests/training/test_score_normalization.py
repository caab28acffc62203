"""The moving statistics of the scores: exact moments, once an iteration, from before the batch."""

import json

import pytest
import torch

from gemma_alignment.errors import UserError
from gemma_alignment.training.score_normalization import EMANormalizer, score_normalizer


def _batches(count=6, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(32, generator=chance) * (1 + i) + i for i in range(count)]


def test_normalize_by_hand():
    found = EMANormalizer(2.0, 4.0, 0.9).normalize(torch.tensor([2.0, 4.0, -2.0]))
    assert found.tolist() == pytest.approx([0.0, 1.0, -2.0], abs=1e-6)


def test_update_by_hand():
    """Mean .5 · 0 + .5 · 4 = 2; variance .5 · 1 + .5 · 1 + .25 · 16 = 5."""
    normalizer = EMANormalizer(0.0, 1.0, 0.5)
    normalizer.update(torch.tensor([3.0, 5.0]))
    assert normalizer.state_dict() == {"mean": 2.0, "variance": 5.0}


def test_the_statistics_are_the_moments_of_everything_seen_with_its_weight():
    """After n batches: weight d^n for the start, (1 − d) d^(n−1−i) for batch i, taken in one go."""
    d, mean, variance = 0.8, 1.0, 9.0
    normalizer, batches = EMANormalizer(mean, variance, d), _batches()
    for batch in batches:
        normalizer.update(batch)
    weights = [d ** len(batches)] + [(1 - d) * d ** (len(batches) - 1 - i) for i in range(len(batches))]
    means = [mean] + [b.double().mean().item() for b in batches]
    squares = [variance + mean**2] + [b.double().square().mean().item() for b in batches]
    assert sum(weights) == pytest.approx(1.0)
    expected = sum(w * m for w, m in zip(weights, means, strict=True))
    assert normalizer.mean == pytest.approx(expected, abs=1e-12)
    second = sum(w * s for w, s in zip(weights, squares, strict=True))
    assert normalizer.variance == pytest.approx(second - expected**2, abs=1e-10)


def test_a_batch_is_normalised_with_the_statistics_from_before_it():
    normalizer = EMANormalizer(0.0, 1.0, 0.5)
    batch = torch.tensor([3.0, 5.0])
    before = normalizer.normalize(batch)
    assert normalizer.state_dict() == {"mean": 0.0, "variance": 1.0}, "normalising moves nothing"
    normalizer.update(batch)
    assert before.tolist() == pytest.approx([3.0, 5.0], abs=1e-6)
    assert normalizer.normalize(batch).tolist() != pytest.approx([3.0, 5.0])


def test_scores_of_the_starting_distribution_leave_it_where_it_is():
    """No start-up bias: the first batch counts 5%, and one with the same moments changes nothing."""
    normalizer = EMANormalizer(3.0, 4.0, 0.95)
    normalizer.update(torch.tensor([1.0, 5.0]))
    assert normalizer.state_dict() == pytest.approx({"mean": 3.0, "variance": 4.0})


def test_it_follows_a_drift_and_its_unit():
    """Scores that are shifted and scaled by a · s + b end at the statistics a · m + b and a² · v."""
    plain, moved = EMANormalizer(0.0, 1.0, 0.9), EMANormalizer(7.0, 25.0, 0.9)
    for batch in _batches():
        assert torch.allclose(plain.normalize(batch), moved.normalize(5 * batch + 7), atol=1e-5)
        plain.update(batch)
        moved.update(5 * batch + 7)
    assert moved.mean == pytest.approx(5 * plain.mean + 7, abs=1e-4)
    assert moved.variance == pytest.approx(25 * plain.variance, rel=1e-5)


def test_the_order_of_a_batch_does_not_matter_and_its_split_does():
    """Which is why an iteration is taken in once, whole."""
    batch = torch.arange(8.0)
    whole, shuffled, halves = (EMANormalizer(0.0, 1.0, 0.9) for _ in range(3))
    whole.update(batch)
    shuffled.update(batch.flip(0))
    halves.update(batch[:4])
    halves.update(batch[4:])
    assert shuffled.state_dict() == whole.state_dict()
    assert halves.state_dict() != whole.state_dict()


def test_scores_that_stop_varying_are_not_divided_by_zero():
    normalizer = EMANormalizer(0.0, 1.0, 0.0)
    normalizer.update(torch.full((4,), 2.0))
    assert normalizer.variance == 0.0
    assert normalizer.normalize(torch.full((4,), 2.0)).tolist() == [0.0] * 4


def test_the_epsilon_is_added_to_the_variance():
    found = EMANormalizer(0.0, 1e-8, 0.9).normalize(torch.tensor([1e-4]))
    assert found.item() == pytest.approx(0.5**0.5, rel=1e-6)


def test_resumed_equals_uninterrupted():
    first, plain = EMANormalizer(0.0, 1.0, 0.9), EMANormalizer(0.0, 1.0, 0.9)
    batches = _batches()
    for batch in batches[:3]:
        first.update(batch)
    resumed = EMANormalizer(0.0, 1.0, 0.9)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in batches[3:]:
        resumed.update(batch)
    for batch in batches:
        plain.update(batch)
    assert resumed.state_dict() == plain.state_dict()


def test_fixed_keeps_the_statistics_of_the_start():
    normalizer = score_normalizer("fixed", 2.0, 4.0, 0.5)
    normalizer.update(torch.tensor([100.0]))
    assert normalizer.state_dict() == {"mean": 2.0, "variance": 4.0}
    assert normalizer.normalize(torch.tensor([4.0])).item() == pytest.approx(1.0)


def test_none_gives_back_the_reward_models_own_output():
    outputs = torch.tensor([0.1, -3.3])
    normalizer, scores = score_normalizer("none", 2.0, 4.0, 0.5), (outputs - 2.0) / 4.0**0.5
    normalizer.update(scores)
    torch.testing.assert_close(normalizer.normalize(scores), outputs)
    assert torch.equal(score_normalizer("none", 0.0, 1.0, 0.5).normalize(scores), scores)


def test_the_three_values_are_three_experiments():
    """As the arm builds them: `none` with the reward model's scale, the others at (0, 1), after a batch."""
    batch = torch.tensor([0.5, 1.5, -0.25])
    made = {mode: score_normalizer(mode, *start, 0.5) for mode, start in
            {"ema": (0.0, 1.0), "fixed": (0.0, 1.0), "none": (0.7, 4.0)}.items()}  # fmt: skip
    for normalizer in made.values():
        normalizer.update(batch)
    found = {mode: normalizer.normalize(batch) for mode, normalizer in made.items()}
    assert not torch.allclose(found["ema"], found["fixed"])
    assert not torch.allclose(found["fixed"], found["none"])
    assert not torch.allclose(found["none"], found["ema"])


def test_ema_is_the_moving_one():
    assert type(score_normalizer("ema", 0.0, 1.0, 0.95)) is EMANormalizer


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_is_refused_and_changes_nothing(bad):
    normalizer = EMANormalizer(0.0, 1.0, 0.9)
    message = (
        r"^1 of 3 scores are not finite: the moving statistics were not changed\. "
        r"Look at the reward model, and at the responses it was given\.$"
    )
    with pytest.raises(UserError, match=message):
        normalizer.update(torch.tensor([1.0, bad, 2.0]))
    assert normalizer.state_dict() == {"mean": 0.0, "variance": 1.0}


@pytest.mark.parametrize(("variance", "decay"), [(0.0, 0.9), (-1.0, 0.9), (1.0, 1.0), (1.0, -0.1)])
def test_settings_without_meaning_are_refused(variance, decay):
    with pytest.raises(ValueError, match="must be above 0"):
        EMANormalizer(0.0, variance, decay)


def test_planted_variance_without_the_means_drift_is_caught():
    class Planted(EMANormalizer):
        def update(self, scores):
            d = self.decay
            self.variance = d * self.variance + (1 - d) * float(scores.double().var(correction=0))
            self.mean = d * self.mean + (1 - d) * float(scores.double().mean())

    normalizer = Planted(0.0, 1.0, 0.5)
    normalizer.update(torch.tensor([3.0, 5.0]))
    assert normalizer.state_dict()["mean"] == 2.0
    assert normalizer.state_dict()["variance"] != 5.0
