"""The KL controller: phases, floors, a fast rise and a slow fall."""

import json
import math

import pytest
import torch
import yaml
from tabular import CONF

from gemma_alignment.errors import UserError
from gemma_alignment.objectives.rewards import penalised_scores
from gemma_alignment.training.kl_control import KLController

SCHEDULE = (0.05, 0.02, 0.01)


def _controller(**changes):
    return KLController(**{"schedule": SCHEDULE, "target": 0.5, "horizon": 96, **changes})


def test_a_phase_starts_at_its_value_and_resets_what_the_last_one_learnt():
    control = _controller()
    assert control.coef == 0.05
    control.update(kl=5.0, n=96, progress=0.1)
    assert control.coef == pytest.approx(0.075)
    assert control.update(kl=5.0, n=96, progress=1 / 3) == 0.02
    control.update(kl=5.0, n=96, progress=0.5)
    assert control.coef == pytest.approx(0.03)
    assert control.update(kl=5.0, n=96, progress=2 / 3) == 0.01
    assert control.update(kl=5.0, n=96, progress=1.0) == pytest.approx(0.015)


def test_update_by_hand():
    """coef · (1 + clip(KL / target − 1, −.1, .5) · n / horizon)."""
    for kl, n, expected in [
        (0.6, 96, 0.1 * 1.2),  # inside the clip
        (9.0, 96, 0.1 * 1.5),  # up by half at most
        (0.48, 96, 0.1 * 0.96),
        (0.0, 96, 0.1 * 0.9),  # down by a tenth at most
        (9.0, 48, 0.1 * 1.25),  # half the responses, half the step
        (0.5, 96, 0.1),
    ]:
        control = _controller(schedule=[0.01])
        control.load_state_dict({"phase": 0, "coef": 0.1})
        assert control.update(kl=kl, n=n, progress=0.5) == pytest.approx(expected), (kl, n)


def test_it_never_falls_below_the_phases_value():
    control = _controller()
    for iteration in range(1, 81):
        coef = control.update(kl=0.0, n=96, progress=iteration / 80)
        assert coef == SCHEDULE[min(3 * iteration // 80, 2)]


def test_a_kl_that_nothing_brings_down_winds_it_up_to_the_ceiling_and_no_further():
    free, bounded = _controller(), _controller(ceiling=10.0)
    for _ in range(100):
        free.update(7.0, 96, 0.1)
        bounded.update(7.0, 96, 0.1)
    assert free.coef > 1e15
    assert bounded.coef == 10.0
    assert bounded.update(0.4, 96, 0.1) == pytest.approx(9.0)  # and it comes down at once


def test_it_rises_faster_than_it_falls():
    control = _controller(schedule=[0.01])
    control.update(kl=5.0, n=96, progress=0.1)
    steps = 0
    while control.coef > 0.01:
        control.update(kl=0.0, n=96, progress=0.1)
        steps += 1
    assert steps == math.ceil(math.log(1.5) / -math.log(0.9)) == 4


@pytest.mark.parametrize("iterations", [3, 7, 29, 80, 99, 300, 1000])
@pytest.mark.parametrize("phases", [1, 2, 3, 7])
def test_phase_borders_stand_at_the_exact_iteration(iterations, phases):
    """Against integer arithmetic: after update i of n the phase is ⌊i · phases / n⌋, the last one included."""
    schedule = [0.1 / (k + 1) for k in range(phases)]
    control = KLController(schedule, 1.0, 10)
    for i in range(1, iterations + 1):
        coef = control.update(kl=0.0, n=10, progress=i / iterations)
        assert coef == schedule[min(i * phases // iterations, phases - 1)]


def test_with_80_iterations_the_phases_begin_at_28_and_55():
    """The update after iteration 27 (27 / 80 > 1/3) sets the coefficient of iteration 28."""
    control, in_force = _controller(), []
    for iteration in range(1, 81):
        in_force.append(control.coef)
        control.update(kl=0.0, n=96, progress=iteration / 80)
    changes = [i + 1 for i in range(1, 80) if in_force[i] != in_force[i - 1]]
    assert changes == [28, 55]


def test_it_steers_a_policy_that_gives_in_to_the_coefficient_to_the_target():
    """A world where KL = .03 / coef: from .6 at the floor to the target of .5, at a coefficient of .06."""
    control = _controller(schedule=[0.05])
    for _ in range(60):
        control.update(kl=0.03 / control.coef, n=96, progress=0.5)
    assert control.coef == pytest.approx(0.06, rel=1e-3)


@pytest.mark.parametrize("stop", [5, 26, 40])
def test_resumed_equals_uninterrupted(stop):
    divergences = [abs(math.sin(i)) * 2 for i in range(80)]
    control, history = _controller(), []
    for i, kl in enumerate(divergences):
        if i == stop:
            saved = json.loads(json.dumps(control.state_dict()))
            control = _controller()
            control.load_state_dict(saved)
        history.append(control.update(kl=kl, n=96, progress=(i + 1) / 80))
    plain = _controller()
    assert history == [plain.update(kl=kl, n=96, progress=(i + 1) / 80) for i, kl in enumerate(divergences)]


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_divergence_that_is_not_finite_is_refused_and_changes_nothing(kl):
    control = _controller()
    before = control.state_dict()
    message = (
        rf"^the KL to the reference is {kl} at 50% of the training: policy or reference give log-probabilities that "
        r"are not finite\. A lower learning rate is the usual remedy\.$"
    )
    with pytest.raises(UserError, match=message):
        control.update(kl=kl, n=96, progress=0.5)
    assert control.state_dict() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": ()}, "at least one phase"),
        ({"schedule": (0.1, -0.1)}, "no negative value"),
        ({"target": 0.0}, "above 0"),
        ({"horizon": 0}, "above 0"),
        ({"max_rise": -0.1}, "max_rise"),
        ({"max_fall": 1.5}, "max_fall"),
        ({"ceiling": 0.04}, "ceiling 0.04 lies below"),
    ],
)
def test_settings_without_meaning_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _controller(**changes)


@pytest.mark.parametrize(
    "changes", [{"horizon": 0.5}, {"max_rise": 0.0, "max_fall": 0.0}, {"max_fall": 1.0}, {"ceiling": 0.05}]
)
def test_settings_at_their_limits_are_taken(changes):
    assert _controller(**changes).update(kl=0.5, n=96, progress=0.1) == 0.05


def test_a_schedule_of_zeros_switches_the_penalty_off():
    control = _controller(schedule=(0.0,))
    assert [control.update(kl=9.0, n=96, progress=i / 10) for i in range(1, 11)] == [0.0] * 10


def test_the_configured_schedule_is_the_briefs():
    text = (CONF / "parameters_policy_optimization.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)["kl_control"]
    assert settings["schedule"] == list(SCHEDULE)
    assert KLController(**settings).coef == 0.05


def test_at_the_configured_ceiling_credit_still_follows_the_score():
    """Whitened credit keeps its direction alone; spreads and correlation as measured in 384 responses at 1.4 nats."""
    text = (CONF / "parameters_policy_optimization.yml").read_text(encoding="utf-8")
    ceiling = yaml.safe_load(text)["kl_control"]["ceiling"]
    chance = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(1))
    divergence = 1.4 + 1.34 * chance[0]
    scores = 0.35 * chance[0] + (1 - 0.35**2) ** 0.5 * chance[1]
    mask = torch.ones(len(scores), 1, dtype=torch.bool)

    def follows(coef: float) -> float:
        credit = penalised_scores(scores, divergence[:, None], torch.zeros(len(scores), 1), mask, coef)
        return float(torch.corrcoef(torch.stack([credit, scores]))[0, 1])

    assert follows(ceiling) > 0.3
    assert follows(10.0) < -0.2, "what it had wound up to: the score counts against itself"


class _Symmetric(KLController):
    """The planted controller: as in the paper, it falls as fast as it rises, and below the phase's value."""

    def update(self, kl, n, progress):
        self._coef *= 1 + min(max(kl / 0.5 - 1, -0.5), 0.5) * n / 96
        return self._coef


def test_planted_symmetric_controller_falls_below_the_floor():
    control = _Symmetric(SCHEDULE, 0.5, 96)
    coefs = [control.update(kl=0.0, n=96, progress=i / 80) for i in range(1, 81)]
    assert min(coefs) < SCHEDULE[-1] / 100
