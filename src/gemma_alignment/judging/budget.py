"""What judging may cost: an estimate before, a reservation before each request, the bill after it."""

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.judging.append_log import AppendLog
from gemma_alignment.judging.client import Request
from gemma_alignment.judging.prompts import RESPONSE_SCHEMA, SYSTEM, user_message
from gemma_alignment.parameters.judge import JudgeParameters, Price

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4
"""Of English text, about; for estimates only."""
EXPECTED_REPLY_TOKENS = 60
PICO = 10**12
"""The ledger counts in millionths of a millionth of a dollar."""
_FRAME_BYTES = len(SYSTEM.encode()) + len(str(RESPONSE_SCHEMA)) + 128
"""Everything a request holds besides its user message, with room for role markers."""


def batch_price(price: Price) -> Price:
    """What the same model charges for requests that may wait."""
    return replace(
        price,
        input_usd_per_million=price.input_usd_per_million * price.batch_share,
        output_usd_per_million=price.output_usd_per_million * price.batch_share,
    )


def cost(price: Price, tokens_in: int, tokens_out: int) -> float:
    """US dollars for so many tokens."""
    return (tokens_in * price.input_usd_per_million + tokens_out * price.output_usd_per_million) / 1e6


def price_of(parameters: JudgeParameters) -> Price:
    """The price of the model; nothing, where there is no cap because the service is one's own.

    Raises:
        UserError: it is not in the table; without a price there is no cap.
    """
    model, remote = parameters.model, parameters.remote
    for price in remote.prices:
        if price.model == model:
            return price
    if remote.spend_cap_usd is None:
        return Price(model, 0.0, 0.0, 1.0, "")
    raise UserError(
        f"judge.remote.prices has no entry for {model!r}, so its cost cannot be capped. Add one with "
        "input_usd_per_million, output_usd_per_million, batch_share and as_of; or, for a service of your own "
        "that bills nothing, set judge.remote.spend_cap_usd=null."
    )


def worst_case(price: Price, request: Request, max_output_tokens: int) -> float:
    """The most that ``request`` can cost: a token of a byte-level vocabulary has at least one byte."""
    bytes_sent = len(user_message(request).encode("utf-8")) + _FRAME_BYTES
    return cost(price, bytes_sent, max_output_tokens)


@dataclass(frozen=True)
class Estimate:
    """What a number of requests will probably take."""

    requests: int
    tokens_in: int
    tokens_out: int
    usd: float


def estimate(price: Price, requests: Sequence[Request]) -> Estimate:
    """The probable cost: four bytes a token sent, sixty tokens received, each request answered at once."""
    sizes = [len(user_message(request).encode("utf-8")) + _FRAME_BYTES for request in requests]
    tokens_in = sum(size // BYTES_PER_TOKEN for size in sizes)
    tokens_out = EXPECTED_REPLY_TOKENS * len(requests)
    return Estimate(len(requests), tokens_in, tokens_out, cost(price, tokens_in, tokens_out))


class SpendLedger:
    """A hard cap over the life of a file, for all threads and processes that share it.

    Before a request its worst case is reserved on the disk; afterwards the real cost takes the
    reservation's place. A reservation that a kill or a lost connection left open counts as
    spent, since nobody knows whether the service has billed it.

    Args:
        path: the file of reservations and bills.
        cap_usd: what all of them together may come to.
    """

    def __init__(self, path: str | Path, cap_usd: float) -> None:
        self._log = AppendLog(path)
        self._cap = cap_usd
        self._amounts: dict[str, int] = {}
        self._spent = 0

    @property
    def cap_usd(self) -> float:
        """What may be spent in all."""
        return self._cap

    def spent(self) -> float:
        """US dollars billed or reserved so far."""
        with self._log.locked() as log:
            return self._taken_in(log.fresh())

    def reserve(self, usd: float, name: str | None = None) -> str:
        """Set ``usd`` aside and return the reservation's name; on return the disk has it.

        Args:
            usd: US dollars.
            name: one that nobody else uses; None: a new one.

        Raises:
            UserError: the cap would be passed. Nothing was reserved.
        """
        name = name or uuid.uuid4().hex
        with self._log.locked() as log:
            spent = self._taken_in(log.fresh())
            if spent + usd > self._cap:
                raise UserError(self._reached(spent, usd))
            log.append({"event": "reserve", "id": name, "usd": usd})
        return name

    def settle(self, name: str, usd: float) -> None:
        """Put the real cost in the place of the reservation ``name``."""
        with self._log.locked() as log:
            log.append({"event": "settle", "id": name, "usd": usd})

    def check(self, expected: Estimate, as_of: str) -> None:
        """Refuse, before the first request, what will probably not fit under the cap.

        Args:
            expected: the estimate.
            as_of: the day of the prices it rests on.

        Raises:
            UserError: with the estimate, what is left and what to set.
        """
        spent = self.spent()
        logger.info(
            "%d requests to the judge, about %d tokens in and %d out: about %.2f USD%s; %.2f USD are spent, %s.",
            *(expected.requests, expected.tokens_in, expected.tokens_out, expected.usd),
            f" at the prices of {as_of}" if as_of else "",
            spent,
            "and there is no cap" if math.isinf(self._cap) else f"the cap is {self._cap:.2f}",
        )
        if spent + expected.usd > self._cap:
            raise UserError(
                f"judging {expected.requests} requests will cost about {expected.usd:.2f} USD, and only "
                f"{max(0.0, self._cap - spent):.2f} USD of judge.remote.spend_cap_usd={self._cap:.2f} are "
                f"left ({self._log.path}). Nothing was sent. Raise the cap, or judge fewer prompts "
                "(evaluation.max_prompts)."
            )

    def _taken_in(self, records: Sequence[dict[str, object]]) -> float:
        """US dollars spent with ``records``; a running total of whole numbers, so that it never drifts."""
        for record in records:
            usd = record.get("usd")
            if isinstance(usd, int | float):
                name, amount = str(record.get("id")), round(usd * PICO)
                self._spent += amount - self._amounts.get(name, 0)
                self._amounts[name] = amount
        return self._spent / PICO

    def _reached(self, spent: float, usd: float) -> str:
        return (
            f"the judge's spending cap is reached: {spent:.4f} USD are spent or reserved, the next request "
            f"may cost {usd:.4f}, and judge.remote.spend_cap_usd is {self._cap:.4f} ({self._log.path}). "
            "Every verdict so far is saved; raise the cap and run the same command to go on."
        )
