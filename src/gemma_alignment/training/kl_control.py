"""The adaptive KL controller with phases, one object for every arm."""

import math
from collections.abc import Sequence


class KLController:
    """A coefficient that starts each phase at its value and follows the KL target inside it.

    coef ← max(floor, coef · (1 + clip(KL / target − 1, −max_fall, max_rise) · n / horizon)).

    The phase's value is start and floor; the rise is fast and the fall slow: a symmetric controller
    that may fall below the phase's value swings and lets the policy be hacked. Form after
    arXiv:1909.08593, section 2.2.

    Args:
        schedule: values of phases of equal length.
        target: KL to steer towards, nats per response.
        horizon: responses over which a full correction is made.
        max_rise: largest relative rise per horizon.
        max_fall: largest relative fall per horizon.
    """

    def __init__(
        self, schedule: Sequence[float], target: float, horizon: float, max_rise: float = 0.5, max_fall: float = 0.1
    ):
        if not schedule or target <= 0 or horizon <= 0:
            raise ValueError(f"need phases, a target and a horizon above 0, got {schedule}, {target}, {horizon}")
        self._schedule = tuple(float(value) for value in schedule)
        self._target, self._horizon = target, horizon
        self._max_rise, self._max_fall = max_rise, max_fall
        self._phase = 0
        self._coef = self._schedule[0]

    @property
    def coef(self) -> float:
        """The coefficient in force."""
        return self._coef

    def update(self, kl: float, n: int, progress: float) -> float:
        """Move on after ``n`` responses with mean divergence ``kl``.

        Args:
            kl: mean over responses of Σ_t k1, in nats.
            n: responses it was measured on.
            progress: share of the training done after this iteration, 0 to 1.

        Raises:
            ValueError: for a KL that is not finite.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the KL to the reference is {kl}: the policy or the reference is broken")
        phase = min(int(progress * len(self._schedule) + 1e-9), len(self._schedule) - 1)
        if phase != self._phase:
            self._phase, self._coef = phase, self._schedule[phase]
            return self._coef
        error = min(max(kl / self._target - 1, -self._max_fall), self._max_rise)
        self._coef = max(self._schedule[phase], self._coef * (1 + error * n / self._horizon))
        return self._coef

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"phase": self._phase, "coef": self._coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._phase, self._coef = int(state["phase"]), float(state["coef"])
