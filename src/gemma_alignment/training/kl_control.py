"""The adaptive KL controller, one for every arm."""

import math
from collections.abc import Mapping, Sequence

from gemma_alignment.errors import UserError


class KLController:
    """A coefficient that starts each phase of the training at a value and follows the KL from there.

    Training falls into phases of equal length. When one begins, the coefficient is set to the phase's
    value; inside it

        coef <- min(ceiling, max(floor, coef · (1 + clip(KL / target − 1, −max_fall, max_rise) · n / horizon)))

    with the phase's value as the floor. It rises fast and falls slowly: a symmetric controller without
    the floor lets the KL swing, and the policy finds the reward model's errors on every upswing. A
    floor of 0 stays 0. The ceiling ends the winding up: where a policy stays above the target whatever its
    coefficient, as one whose learning rate has run out, the product would grow without end. Scores have a
    standard deviation of about 1, and a response's Σ k1 one of about a nat: a coefficient of several adds no
    force, drowns the score, and takes tens of iterations to come down from (docs/LOG.md).

    Args:
        schedule: the phases' values, starts and floors in one.
        target: KL to the reference to steer towards, in nats per response.
        horizon: responses over which one full correction is made.
        max_rise: largest relative rise per horizon.
        max_fall: largest relative fall per horizon.
        ceiling: largest coefficient.

    Raises:
        ValueError: for values without meaning.

    Source: Ziegler et al. (2019), arXiv:1909.08593, section 2.2 (symmetric, ±0.2, no phases, no floor).
    """

    def __init__(
        self,
        schedule: Sequence[float],
        target: float,
        horizon: float,
        max_rise: float = 0.5,
        max_fall: float = 0.1,
        ceiling: float = math.inf,
    ):
        if not schedule or min(schedule) < 0:
            raise ValueError(f"schedule {tuple(schedule)} needs at least one phase and no negative value")
        if target <= 0 or horizon <= 0:
            raise ValueError(f"target {target} and horizon {horizon} must be above 0")
        if max_rise < 0 or not 0 <= max_fall <= 1:
            raise ValueError(f"max_rise {max_rise} must be 0 or more, max_fall {max_fall} between 0 and 1")
        if ceiling < max(schedule):
            raise ValueError(f"ceiling {ceiling} lies below a phase's value, {max(schedule)}")
        self._ceiling = float(ceiling)
        self._schedule = tuple(float(value) for value in schedule)
        self._target, self._horizon = float(target), float(horizon)
        self._max_rise, self._max_fall = float(max_rise), float(max_fall)
        self._phase, self._coef = 0, self._schedule[0]

    @property
    def coef(self) -> float:
        """The coefficient for the next iteration."""
        return self._coef

    def update(self, kl: float, n: int, progress: float) -> float:
        """Take in one iteration and return the coefficient for the next.

        Args:
            kl: mean over its responses of Σ_t k1, in nats.
            n: its number of responses.
            progress: share of all iterations done after it, 0 to 1; it decides the phase.

        Raises:
            UserError: when ``kl`` is not finite; the state is unchanged.
        """
        if not math.isfinite(kl):
            raise UserError(
                f"the KL to the reference is {kl} at {progress:.0%} of the training: policy or reference "
                "give log-probabilities that are not finite. A lower learning rate is the usual remedy."
            )
        # 1e-9: 2/3 of 3 phases must be 2, whatever the last bit of the quotient says
        phase = min(int(progress * len(self._schedule) + 1e-9), len(self._schedule) - 1)
        if phase != self._phase:
            self._phase, self._coef = phase, self._schedule[phase]
        else:
            error = min(max(kl / self._target - 1, -self._max_fall), self._max_rise)
            moved = self._coef * (1 + error * n / self._horizon)
            self._coef = min(self._ceiling, max(self._schedule[phase], moved))
        return self._coef

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; the settings come from the configuration."""
        return {"phase": self._phase, "coef": self._coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._phase, self._coef = int(state["phase"]), float(state["coef"])
