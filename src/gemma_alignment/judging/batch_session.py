"""A session whose requests wait in batches instead of being sent one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gemma_alignment.errors import UserError
from gemma_alignment.judging.batches import Batches
from gemma_alignment.judging.client import JudgeUnavailable, Reply, Request
from gemma_alignment.judging.parsing import parse_verdict
from gemma_alignment.judging.session import Session


@dataclass
class BatchSession(Session):
    """Asks in rounds: what has no verdict after a batch goes into the next, ``attempts`` in all."""

    batches: Batches = field(kw_only=True)

    def finish_earlier(self) -> None:
        """Collect the batches of a run that ended before they did."""
        with _within_reach():
            self.batches.collect_earlier()

    def ask_all(self, requests: dict[str, Request]) -> dict[str, list[Reply]]:
        """The replies to each request, the one that counts last."""
        given: dict[str, list[Reply]] = {key: [] for key in requests}
        refused: set[str] = set()
        for _ in range(self.attempts):
            left = [key for key, replies in given.items() if key not in refused and not _has_verdict(replies)]
            if not left:
                break
            with _within_reach():
                # A request that expired was not answered: it is asked as before, with the same seed.
                found = self.batches.ask([(requests[key], len(given[key])) for key in left])
            refused |= found.refused
            for key, reply in found.replies.items():
                given[key].append(reply)
        return given


def _has_verdict(replies: list[Reply]) -> bool:
    return bool(replies) and parse_verdict(replies[-1].text) is not None


@contextmanager
def _within_reach() -> Iterator[None]:
    try:
        yield
    except JudgeUnavailable as error:
        raise UserError(
            f"the service that judges in batches is out of reach ({error}). What was handed in goes on "
            "there; the same command collects it."
        ) from None
