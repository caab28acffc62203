"""The judge behind an interface of the OpenAI kind: capped, and asked in a fixed form."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemma_alignment.errors import UserError
from gemma_alignment.judging.budget import SpendLedger, batch_price, cost, estimate, price_of, worst_case
from gemma_alignment.judging.client import JudgeUnavailable, Reply, Request
from gemma_alignment.judging.prompts import PROMPT_VERSION, RESPONSE_SCHEMA, SYSTEM, user_message
from gemma_alignment.judging.service import Malformed, Outcome, Service
from gemma_alignment.parameters.judge import JudgeParameters, Price

if TYPE_CHECKING:
    import openai


class OpenAIJudge:
    """A language model that compares by the rules of :mod:`~gemma_alignment.judging.prompts`.

    Each sending reserves its worst case beforehand; where nobody can know whether it was
    billed, the reservation stands.

    Args:
        service: reaches the model.
        parameters: section ``judge``; attempt k at the same request samples with ``seed + k``.
        ledger: the cap.
    """

    prompt_version = PROMPT_VERSION

    def __init__(self, service: Service, parameters: JudgeParameters, ledger: SpendLedger) -> None:
        self.model = parameters.model
        self.service = service
        self.ledger = ledger
        self.price = price_of(parameters)
        self._mode = parameters.mode
        self._remote = parameters.remote
        self._seed = parameters.seed

    @property
    def decoding(self) -> Mapping[str, object]:
        """Where it runs and how it samples."""
        return {
            "base_url": self.service.base_url,
            "temperature": self._remote.temperature,
            "seed": self._seed,
            "max_output_tokens": self._remote.max_output_tokens,
        }

    def prepare(self, requests: Sequence[Request]) -> None:
        """Estimate the cost and refuse what will not fit under the cap."""
        price = batch_price(self.price) if self._mode == "batch" else self.price
        self.ledger.check(estimate(price, requests), price.as_of)

    def stop(self) -> None:
        """End every wait; nothing more is sent."""
        self.service.stop()

    def judge(self, prompt: str, answer_1: str, answer_2: str, attempt: int = 0) -> Reply:
        """Ask until there is a reply, at most ``max_attempts`` times."""
        request = Request(prompt, answer_1, answer_2)
        return self.service.call(lambda: self._send(request, attempt))

    def body(self, request: Request, attempt: int) -> dict[str, Any]:
        """The chat completion that is asked for."""
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": user_message(request)},
            ],
            "temperature": self._remote.temperature,
            "seed": self._seed + attempt,
            "max_tokens": self._remote.max_output_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "comparison", "strict": True, "schema": RESPONSE_SCHEMA},
            },
        }

    def worst_case(self, request: Request) -> float:
        """The most that one sending of ``request`` can cost, in US dollars."""
        return worst_case(self.price, request, self._remote.max_output_tokens)

    def reply(self, completion: Any, price: Price, unknown: float) -> Reply:
        """The raw text of a completion; its refusal as an object of its own, which is no verdict whatever it says.

        Args:
            completion: the parsed JSON.
            price: what its tokens cost.
            unknown: the cost where the service does not say what it counted.

        Raises:
            Malformed: it is no completion.
        """
        try:
            message = completion["choices"][0]["message"]
            refusal = message.get("refusal")
            text = json.dumps({"refusal": refusal}) if refusal else message.get("content") or ""
            usage = completion.get("usage") or {}
            tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
            model, fingerprint = completion.get("model"), completion.get("system_fingerprint")
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise Malformed("no chat completion") from error
        if not isinstance(text, str):
            raise Malformed("no text")
        bill = unknown
        if isinstance(tokens_in, int) and isinstance(tokens_out, int):
            bill = cost(price, tokens_in, tokens_out)
        else:
            tokens_in = tokens_out = 0
        return Reply(
            text=text,
            model=str(model or self.model),
            prompt_version=self.prompt_version,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            fingerprint=None if fingerprint is None else str(fingerprint),
            cost=bill,
        )

    def _send(self, request: Request, attempt: int) -> Outcome[Reply]:
        """One sending, between its reservation and its bill."""
        reserved = self.worst_case(request)
        reservation = self.ledger.reserve(reserved)

        def send(client: "openai.OpenAI") -> Reply:
            # Read as plain JSON: the library's models take anything for a completion.
            raw = client.chat.completions.with_raw_response.create(**self.body(request, attempt))
            return self.reply(json.loads(raw.text), self.price, reserved)

        try:
            outcome = self.service.attempt(send)
        except (JudgeUnavailable, UserError):  # the service refused it before any work was done
            self.ledger.settle(reservation, 0.0)
            raise
        if outcome.value is not None:
            self.ledger.settle(reservation, outcome.value.cost)
        elif not outcome.billed:
            self.ledger.settle(reservation, 0.0)
        return outcome
