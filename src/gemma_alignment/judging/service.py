"""Calls to a service of the OpenAI kind: what is tried again, how soon, and what ends everything."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from gemma_alignment.errors import UserError
from gemma_alignment.judging.client import JudgeUnavailable, RequestRefused
from gemma_alignment.judging.pacing import LONGEST_REQUESTED_WAIT_S, Pacer, backoff, moment_after, requested_wait
from gemma_alignment.parameters.judge import JudgeParameters

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
T = TypeVar("T")

OPENAI = "https://api.openai.com/v1"
RETRIED = frozenset({408, 409, 429})
"""Statuses below 500 that may pass by themselves; from 500 on all may."""
FIRST_SERVER_ERROR = 500
QUIET = 10.0
"""Seconds between two lines about requests that are sent again: many threads fail for the same reason."""
UNBILLED = frozenset({409, 429})
"""Of the statuses that are tried again, those that surely stand for no work done."""


class Malformed(ValueError):
    """The service sent something that is not what its interface says."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one call."""

    value: T | None
    problem: str = ""
    """Why there is no value."""
    wait_s: float = 0.0
    """How long the service asks to wait before the next call."""
    billed: bool = True
    """False where the service surely did no work."""


class Service:
    """The library's client, with pace and retries of our own (the library's are switched off).

    Statuses 408, 409, 429 and from 500 on, timeouts, lost connections and bodies that cannot be
    read are tried again, with exponential back-off and full jitter, never sooner than the
    service asks for. A used-up quota, a refused key, an unknown model or a wait of more than
    LONGEST_REQUESTED_WAIT_S ends everything at once. An answer, head and body together, has ``timeout_s``.

    Args:
        api_key: never shown or stored.
        parameters: section ``judge``.
    """

    def __init__(self, api_key: str, parameters: JudgeParameters) -> None:
        import openai

        from gemma_alignment.judging.deadline import end_in_time

        remote = parameters.remote
        self._api_key = api_key
        self._model = parameters.model
        self._remote = remote
        self._rng = random.Random()
        self._said = -math.inf
        self._stopping = threading.Event()
        self._pacer = Pacer(remote.requests_per_minute, self._stopping)
        self._client = openai.OpenAI(
            api_key=api_key,
            base_url=parameters.base_url or OPENAI,  # named, or OPENAI_BASE_URL would send it elsewhere, cap and all
            timeout=remote.timeout_s,
            max_retries=0,
            http_client=end_in_time(openai.DefaultHttpx2Client()),
        )

    @property
    def base_url(self) -> str:
        """Where the service is."""
        return str(self._client.base_url)

    def stop(self) -> None:
        """End every wait; nothing more is sent."""
        self._stopping.set()

    def sleep(self, seconds: float) -> None:
        """Wait, or raise JudgeUnavailable when stopped meanwhile."""
        if self._stopping.wait(seconds):
            raise JudgeUnavailable("judging was stopped")

    def call(self, once: Callable[[], Outcome[T]]) -> T:
        """Repeat ``once``, an :meth:`attempt` and what belongs around it, until it has a value.

        Raises:
            JudgeUnavailable: not within ``max_attempts``, or stopped meanwhile.
            UserError: no repetition mends it.
        """
        problem = ""
        for sending in range(self._remote.max_attempts):
            self._pacer.wait_for_turn()
            self.sleep(0.0)
            outcome = once()
            if outcome.value is not None:
                return outcome.value
            problem = outcome.problem
            self._heed(outcome)
            if sending + 1 < self._remote.max_attempts:
                self._pause(sending, outcome)
        raise JudgeUnavailable(f"no reply after {self._remote.max_attempts} attempts; the last: {problem}")

    def attempt(self, send: Callable[["openai.OpenAI"], T]) -> Outcome[T]:
        """One call: its value, or what went wrong and whether it may pass."""
        import openai

        try:
            return Outcome(send(self._client))
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APITimeoutError:
            return Outcome(None, f"no reply within {self._remote.timeout_s:g} s")
        except openai.APIConnectionError:
            return Outcome(None, "the connection failed or was lost")
        except (openai.APIError, ValueError) as error:
            return Outcome(None, f"the reply could not be read ({type(error).__name__})")

    def _refused(self, error: "openai.APIStatusError") -> Outcome[T]:
        status = error.status_code
        if is_quota(error.code, error.type):
            give_up(QUOTA_USED_UP)
        if status in (401, 403):
            give_up(f"the service refused the key (status {status}): check OPENAI_API_KEY")
        if status == 404:
            give_up(f"{self.base_url} knows no model {self._model!r} or no such call (status 404)")
        if is_final(status):
            # Not every compatible service names its reason where the library looks for it.
            reason = error.message if isinstance(error.body, dict) and "message" in error.body else error.response.text
            detail = reason.replace(self._api_key, "***")[:300]
            raise RequestRefused(f"the service refused this request (status {status}): {detail}") from None
        wait_s = requested_wait(error.response.headers)
        return Outcome(None, f"status {status}", wait_s, billed=status not in UNBILLED)

    def _heed(self, outcome: Outcome[T]) -> None:
        """Let every thread wait as long as the service asks, or end the run where that is too long to sit out."""
        if outcome.wait_s > LONGEST_REQUESTED_WAIT_S:
            give_up(
                f"the service ({outcome.problem}) asks to be left alone for {outcome.wait_s:.0f} s, longer than the "
                f"{LONGEST_REQUESTED_WAIT_S:.0f} s that a run waits: come back {moment_after(outcome.wait_s)}"
            )
        if outcome.wait_s:
            self._pacer.hold(outcome.wait_s)  # the limit is everyone's

    def _pause(self, sending: int, outcome: Outcome[T]) -> None:
        jitter = backoff(sending, self._remote.backoff_s, self._remote.max_backoff_s, self._rng)
        level = logging.DEBUG if time.monotonic() - self._said < QUIET else logging.INFO
        if level == logging.INFO:
            self._said = time.monotonic()
        logger.log(level, "The judge is asked again in %.1f s: %s.", outcome.wait_s + jitter, outcome.problem)
        self.sleep(outcome.wait_s + jitter)


NOTHING_LEFT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
QUOTA_USED_UP = "the account's quota is used up (insufficient_quota): add credit"


def is_final(status: int) -> bool:
    """Whether a refusal with this status stands however often one asks."""
    return status < FIRST_SERVER_ERROR and status not in RETRIED


def is_quota(code: object, kind: object) -> bool:
    """Whether an error's code or type says that the account has nothing left."""
    return not NOTHING_LEFT.isdisjoint((str(code), str(kind)))  # a compatible service may put anything there


def give_up(problem: str) -> NoReturn:
    """End what no repetition mends; ``from None``, since the library's errors quote requests and keys."""
    raise UserError(f"{problem}. Every verdict so far is saved; run the same command to go on from there.") from None
