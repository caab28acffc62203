"""A session whose requests wait in batches instead of being sent one by one."""

from dataclasses import dataclass, field

from gemma_alignment.judging.batch_calls import within_reach
from gemma_alignment.judging.batches import Batches
from gemma_alignment.judging.client import Reply, Request
from gemma_alignment.judging.session import Session


@dataclass
class BatchSession(Session):
    """Asks in rounds: what has no verdict after a batch goes into the next, ``attempts`` rounds at most."""

    batches: Batches = field(kw_only=True)

    def ask_all(self, requests: dict[str, Request]) -> dict[str, list[Reply]]:
        """The replies to each request, the one that counts last; the cache has them, whoever handed them in."""
        refused: set[str] = set()
        for _ in range(self.attempts):
            left = [r for key, r in requests.items() if key not in refused and not self._is_done(self._kept(r))]
            if not left:
                break
            with within_reach():
                refused |= self.batches.ask(left, self._is_done)
        return {key: self._kept(request) for key, request in requests.items()}
