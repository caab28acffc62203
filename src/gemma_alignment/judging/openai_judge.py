"""The judge behind an interface of the OpenAI kind: paced, retried, capped, and asked in a fixed form."""

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from gemma_alignment.errors import UserError
from gemma_alignment.judging.budget import SpendLedger, cost, estimate, price_of, worst_case
from gemma_alignment.judging.client import JudgeUnavailable, Reply, Request
from gemma_alignment.judging.pacing import Pacer, backoff, requested_wait
from gemma_alignment.judging.prompts import PROMPT_VERSION, RESPONSE_SCHEMA, SYSTEM, user_message
from gemma_alignment.parameters.judge import RemoteParameters

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

RETRIED = frozenset({408, 409, 429})
"""Statuses below 500 that may pass by themselves; from 500 on all may."""
FIRST_SERVER_ERROR = 500


class _Malformed(Exception):
    """The service answered with something that is no chat completion."""


class OpenAIJudge:
    """A language model that compares by the rules of :mod:`~gemma_alignment.judging.prompts`.

    Retries are this class's own (the library's are switched off): statuses 408, 409, 429 and
    from 500 on, timeouts, lost connections and bodies that cannot be read, with exponential
    back-off and full jitter, never sooner than the service asks for. A used-up quota or a
    refused key ends everything at once. Each sending reserves its worst case beforehand; where
    nobody can know whether it was billed, the reservation stands.

    Args:
        api_key: never shown or stored.
        parameters: section ``judge.remote``.
        seed: of the model's sampling; attempt k at the same request uses ``seed + k``.
        ledger: the cap.
        rng: of the jitter.
    """

    prompt_version = PROMPT_VERSION

    def __init__(
        self,
        api_key: str,
        parameters: RemoteParameters,
        seed: int,
        ledger: SpendLedger,
        rng: random.Random | None = None,
    ) -> None:
        import openai

        self.model = parameters.model
        self._api_key = api_key
        self._remote = parameters
        self._seed = seed
        self._ledger = ledger
        self._price = price_of(parameters.model, parameters.prices)
        self._rng = rng or random.Random()
        self._stopping = threading.Event()
        self._pacer = Pacer(parameters.requests_per_minute, self._stopping)
        self._client = openai.OpenAI(
            api_key=api_key, base_url=parameters.base_url, timeout=parameters.timeout_s, max_retries=0
        )

    @property
    def decoding(self) -> Mapping[str, object]:
        """Where it runs and how it samples."""
        return {
            "base_url": str(self._client.base_url),
            "temperature": self._remote.temperature,
            "seed": self._seed,
            "max_output_tokens": self._remote.max_output_tokens,
        }

    def prepare(self, requests: Sequence[Request]) -> None:
        """Estimate the cost and refuse what will not fit under the cap."""
        self._ledger.check(estimate(self._price, requests))

    def stop(self) -> None:
        """End every wait; nothing more is sent."""
        self._stopping.set()

    def judge(self, prompt: str, answer_1: str, answer_2: str, attempt: int = 0) -> Reply:
        """Ask until there is a reply, at most ``max_attempts`` times."""
        request = Request(prompt, answer_1, answer_2)
        problem = "nothing was sent"
        for sending in range(self._remote.max_attempts):
            self._pacer.wait_for_turn()
            if self._stopping.is_set():
                raise JudgeUnavailable("judging was stopped")
            reply, problem, wait_s = self._send(request, self._seed + attempt)
            if reply is not None:
                return reply
            if sending + 1 < self._remote.max_attempts:
                self._pause(sending, wait_s, problem)
        raise JudgeUnavailable(f"no reply after {self._remote.max_attempts} attempts; the last: {problem}")

    def _pause(self, sending: int, wait_s: float, problem: str) -> None:
        if wait_s:
            self._pacer.hold(wait_s)  # the limit is everyone's
        delay = wait_s + backoff(sending, self._remote.backoff_s, self._remote.max_backoff_s, self._rng)
        logger.info("The judge is asked again in %.1f s: %s.", delay, problem)
        self._stopping.wait(delay)

    def _send(self, request: Request, seed: int) -> tuple[Reply | None, str, float]:
        """One sending: the reply, or what went wrong and how long the service asks to wait."""
        import openai

        reserved = worst_case(self._price, request, self._remote.max_output_tokens)
        reservation = self._ledger.reserve(reserved)
        try:
            reply = self._reply(self._complete(request, seed), reserved)
        except openai.APIStatusError as error:
            if error.status_code < FIRST_SERVER_ERROR:
                self._ledger.settle(reservation, 0.0)  # refused before any work was done
            self._raise_if_final(error)
            return None, f"status {error.status_code}", requested_wait(error.response.headers)
        except openai.APITimeoutError:
            return None, f"no reply within {self._remote.timeout_s:g} s", 0.0
        except openai.APIConnectionError:
            return None, "the connection failed or was lost", 0.0
        except (openai.APIError, _Malformed, ValueError) as error:
            return None, f"the reply could not be read ({type(error).__name__})", 0.0
        self._ledger.settle(reservation, reply.cost)
        return reply, "", 0.0

    def _complete(self, request: Request, seed: int) -> object:
        return self._client.chat.completions.create(
            model=self.model,
            messages=[
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": user_message(request)},
            ],
            temperature=self._remote.temperature,
            seed=seed,
            max_tokens=self._remote.max_output_tokens,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "comparison", "strict": True, "schema": RESPONSE_SCHEMA},
            },
        )

    def _reply(self, completion: Any, reserved: float) -> Reply:
        """The raw text of a completion; a refusal's text where it refused."""
        try:
            message = completion.choices[0].message
            text = message.content or getattr(message, "refusal", None) or ""
        except (AttributeError, IndexError, TypeError) as error:
            raise _Malformed from error
        if not isinstance(text, str):
            raise _Malformed
        usage = getattr(completion, "usage", None)
        tokens_in, tokens_out = (
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
        )
        # A service that does not say what it counted is billed at the worst.
        billed = reserved
        if isinstance(tokens_in, int) and isinstance(tokens_out, int):
            billed = cost(self._price, tokens_in, tokens_out)
        return Reply(
            text=text,
            model=completion.model or self.model,
            prompt_version=self.prompt_version,
            tokens_in=tokens_in or 0,
            tokens_out=tokens_out or 0,
            fingerprint=completion.system_fingerprint,
            cost=billed,
        )

    def _raise_if_final(self, error: "openai.APIStatusError") -> None:
        """End what no repetition mends. ``from None``: the library's errors quote requests and keys."""
        status = error.status_code
        if "insufficient_quota" in (error.code, error.type):
            self._give_up("the account's quota is used up (insufficient_quota): add credit")
        if status in (401, 403):
            self._give_up(f"the service refused the key (status {status}): check OPENAI_API_KEY")
        if status == 404:
            self._give_up(f"there is no model {self.model!r} at {self._client.base_url} (status 404)")
        if status < FIRST_SERVER_ERROR and status not in RETRIED:
            detail = error.message.replace(self._api_key, "***")[:300]
            raise JudgeUnavailable(f"the service refused this request (status {status}): {detail}") from None

    def _give_up(self, problem: str) -> NoReturn:
        raise UserError(
            f"{problem}. Every verdict so far is saved; run the same command to go on from there."
        ) from None
