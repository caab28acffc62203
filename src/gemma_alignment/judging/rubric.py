"""The offline judge: it knows a score of every answer and, like any judge, sees it through noise."""

import json
import math
from collections.abc import Callable, Mapping, Sequence

from gemma_alignment.judging.client import Reply, Request, digest

_UNIT = 2.0**-64


class RubricJudge:
    """Prefers the answer with the higher score.

    ``margin = score(answer_1) - score(answer_2) + position_bias + noise * z``, with z a
    standard normal number drawn from a hash of (seed, prompt, answer_1, answer_2): the same
    request has the same reply on every machine, and the two orders of a pair have noise of
    their own. A margin above ``tie_margin`` is "1", below ``-tie_margin`` "2", else "tie".

    Args:
        score: the quality of a response to a prompt, higher is better.
        noise: standard deviation of the noise on the margin, in units of the score.
        position_bias: what the first slot is given, in units of the score.
        tie_margin: the widest margin that is still a tie, in units of the score.
        seed: of the noise.
    """

    model = "rubric"
    prompt_version = "rubric-1"

    def __init__(
        self,
        score: Callable[[str, str], float],
        *,
        noise: float,
        position_bias: float,
        tie_margin: float,
        seed: int,
    ) -> None:
        self._score = score
        self._noise = noise
        self._position_bias = position_bias
        self._tie_margin = tie_margin
        self._seed = seed
        self._known: dict[tuple[str, str], float] = {}

    @property
    def decoding(self) -> Mapping[str, object]:
        """Noise, bias, tie margin and seed."""
        return {
            "noise": self._noise,
            "position_bias": self._position_bias,
            "tie_margin": self._tie_margin,
            "seed": self._seed,
        }

    def prepare(self, requests: Sequence[Request]) -> None:
        """Nothing to estimate: a rubric is free."""

    def stop(self) -> None:
        """Nothing to abandon."""

    def judge(self, prompt: str, answer_1: str, answer_2: str, attempt: int = 0) -> Reply:
        """Compare by score; the reply has the form that a language model is asked for."""
        first, second = self._scored(prompt, answer_1), self._scored(prompt, answer_2)
        margin = first - second + self._position_bias
        if answer_1 != answer_2:
            margin += self._noise * standard_normal(digest(self._seed, prompt, answer_1, answer_2))
        verdict = "1" if margin > self._tie_margin else "2" if margin < -self._tie_margin else "tie"
        reason = f"rubric {first:.3f} against {second:.3f}"
        return Reply(json.dumps({"reason": reason, "verdict": verdict}), self.model, self.prompt_version)

    def _scored(self, prompt: str, answer: str) -> float:
        # One answer meets several others, each in two orders.
        if (prompt, answer) not in self._known:
            self._known[prompt, answer] = self._score(prompt, answer)
        return self._known[prompt, answer]


def standard_normal(hexdigest: str) -> float:
    """A standard normal number made of the first 128 bits of a hex digest (Box and Muller, 1958)."""
    first = (int(hexdigest[:16], 16) + 0.5) * _UNIT
    second = (int(hexdigest[16:32], 16) + 0.5) * _UNIT
    return math.sqrt(-2.0 * math.log(first)) * math.cos(2.0 * math.pi * second)
