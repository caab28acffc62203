"""Many pairs, both orders, one judge: what is asked once, asked again, or not asked at all."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from gemma_alignment.errors import UserError
from gemma_alignment.judging.batch_calls import within_reach
from gemma_alignment.judging.batches import Batches
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.client import Judge, JudgeUnavailable, Reply, Request, RequestRefused, cache_key
from gemma_alignment.judging.pairing import UNPARSED
from gemma_alignment.judging.parsing import parse_verdict

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 5
"""So many requests without a reply, one after the other, are an outage and no bad luck."""


def has_verdict(replies: Sequence[Reply]) -> bool:
    """Whether the last of ``replies`` is a verdict."""
    return bool(replies) and parse_verdict(replies[-1].text) is not None


@dataclass(frozen=True)
class Comparison:
    """Two systems' answers to one prompt."""

    prompt_id: str
    prompt: str
    system_a: str
    system_b: str
    answer_a: str
    answer_b: str

    def request(self, order: Literal["ab", "ba"]) -> Request:
        """What the judge sees in this order."""
        if order == "ab":
            return Request(self.prompt, self.answer_a, self.answer_b)
        return Request(self.prompt, self.answer_b, self.answer_a)


@dataclass
class Session:
    """Judges comparisons through a cache, several at a time.

    Args:
        judge: who decides.
        cache: where replies are kept; None for a judge that costs nothing.
        concurrency: requests at a time.
        attempts: replies asked for until one parses, in all runs over one cache together.
        skip_identical: call equal answers a tie without asking.
        batches: what this or another run has handed in over the same cache; None where nothing can be.
    """

    judge: Judge
    cache: ReplyCache | None
    concurrency: int
    attempts: int
    skip_identical: bool = True
    batches: Batches | None = None
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _failures: int = field(default=0, init=False)
    _answered: bool = field(default=False, init=False)
    _cause: BaseException | None = field(default=None, init=False)

    def judgements(self, comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
        """One row for every comparison and order, in the order given: AB, then BA.

        A reply that does not parse is asked for again, ``attempts`` in all, and is then
        "unparsed": counted, never a tie, and asked again only with a higher ``attempts``. Equal
        requests are sent once. What was answered before a stop is kept in the cache and not asked again.

        Raises:
            UserError: the judge cannot go on; the message says what is saved.
        """
        self.finish_earlier()
        requests = self._requests(comparisons)
        replies = {key: known for key, request in requests.items() if self._is_done(known := self._kept(request))}
        open_requests = {key: request for key, request in requests.items() if key not in replies}
        self._answered = bool(replies)
        self._tell_known(replies, len(requests))
        self.judge.prepare(list(open_requests.values()))
        replies |= self.ask_all(open_requests)
        return [self._row(c, order, replies) for c in comparisons for order in ("ab", "ba")]

    def unanswered(self, comparisons: Sequence[Comparison]) -> dict[str, Request]:
        """What :meth:`judgements` would send for these, by key in the cache, were every reply to parse."""
        self.finish_earlier()
        open_requests = [r for r in self._requests(comparisons).values() if not self._is_done(self._kept(r))]
        return {cache_key(self.judge, request): request for request in open_requests}

    def finish_earlier(self) -> None:
        """Bring in the batches that a session, this one's or another's, left under way.

        Raises:
            UserError: their service is out of reach.
        """
        if self.batches is not None:
            with within_reach():
                self.batches.collect_earlier()

    def ask_all(self, requests: dict[str, Request]) -> dict[str, list[Reply]]:
        """The replies to each request, the one that counts last; none where there was none."""
        if self.concurrency == 1:
            return {key: self._ask(request) for key, request in requests.items()}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        futures: dict[str, Future[list[Reply]]] = {k: pool.submit(self._ask, r) for k, r in requests.items()}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            if self._cause is not None:
                raise self._cause
            return {key: future.result() for key, future in futures.items()}
        except BaseException:  # Ctrl-C too: nothing new is sent, what is under way is finished and kept
            self._stopping.set()
            self.judge.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, request: Request) -> list[Reply]:
        """Every reply to ``request``, the last one being the one that counts."""
        replies: list[Reply] = []
        try:
            with self._claimed(request):
                replies += self._kept(request)  # another process may have paid for them meanwhile
                while not self._is_done(replies) and not self._stopping.is_set():
                    reply = self.judge.judge(request.prompt, request.answer_1, request.answer_2, len(replies))
                    replies.append(reply)
                    if self.cache is not None:
                        self.cache.put(self.judge, request, reply)
                    self._count_failure(None)
        except JudgeUnavailable as error:
            if not self._stopping.is_set():
                logger.warning("A judgement is left out: %s.", error)
                self._count_failure(error)
        except BaseException as error:
            self._stop_for(error)
            raise
        return replies

    def _count_failure(self, error: JudgeUnavailable | None) -> None:
        """Count failures in a row, over all threads; a reply (None) begins anew.

        A refused request is no sign of an outage once the judge has answered others: a run of such
        requests would otherwise end every attempt at the same place.
        """
        with self._lock:
            if error is None:
                self._failures, self._answered = 0, True
            elif not (isinstance(error, RequestRefused) and self._answered):
                self._failures += 1
            failures = self._failures
        if failures >= FAILURES_IN_A_ROW:
            outage = UserError(
                f"the judge gave no reply to {failures} requests in a row (the last: {error}). "
                f"Every verdict so far is saved in {self._where()}; the same command goes on from there."
            )
            self._stop_for(outage)
            raise outage from None

    def _stop_for(self, cause: BaseException) -> None:
        # In the thread that failed, not when the main thread hears of it: others would go on asking.
        with self._lock:
            self._cause = self._cause or cause
        self._stopping.set()
        self.judge.stop()

    @contextmanager
    def _claimed(self, request: Request) -> Iterator[None]:
        """Keep every other thread and process from asking the same meanwhile."""
        if self.cache is None:
            yield
            return
        key = cache_key(self.judge, request)
        with self.cache.claims.held(key, self._wait):
            if self.batches is not None and self.batches.holds(key):
                raise UserError(
                    "another process has handed in the same judgements as a batch. Every verdict so far is saved "
                    f"in {self._where()}; the same command waits for the batch and goes on from there."
                )
            yield

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise JudgeUnavailable("judging was stopped")

    def _requests(self, comparisons: Sequence[Comparison]) -> dict[str, Request]:
        """Content key -> what has to be asked: equal requests once, equal answers perhaps not at all."""
        asked = [comparison.request(order) for comparison in comparisons for order in ("ab", "ba")]
        return {request.content_key: request for request in asked if not self._is_tie(request)}

    def _kept(self, request: Request) -> list[Reply]:
        return [] if self.cache is None else list(self.cache.get(self.judge, request))

    def _is_done(self, replies: Sequence[Reply]) -> bool:
        """Whether the last reply is a verdict, or no further one is to be asked for."""
        return len(replies) >= self.attempts or has_verdict(replies)

    def _tell_known(self, known: Mapping[str, Sequence[Reply]], asked: int) -> None:
        if known:
            logger.info("%d of %d judgements are known from %s.", len(known), asked, self._where())
        if unparsed := sum(not has_verdict(replies) for replies in known.values()):
            logger.warning(
                "%d requests had their %d replies, and none is a verdict: they stay unparsed. A higher "
                "judge.attempts asks for more.",
                *(unparsed, self.attempts),
            )

    def _is_tie(self, request: Request) -> bool:
        return self.skip_identical and request.answer_1 == request.answer_2

    def _where(self) -> str:
        return "memory" if self.cache is None else str(self.cache.path)

    def _row(
        self, comparison: Comparison, order: Literal["ab", "ba"], replies: dict[str, list[Reply]]
    ) -> dict[str, object]:
        request = comparison.request(order)
        given = replies.get(request.content_key, [])
        last = given[-1] if given else Reply("", self.judge.model, self.judge.prompt_version)
        verdict = "tie" if self._is_tie(request) else parse_verdict(last.text)
        return {
            "prompt_id": comparison.prompt_id,
            "system_a": comparison.system_a,
            "system_b": comparison.system_b,
            "order": order,
            "verdict": verdict or UNPARSED,
            "reply": last.text,
            "model": last.model,
            "prompt_version": last.prompt_version,
            "cost": sum(reply.cost for reply in given),
            "calls": len(given),
            "tokens_in": sum(reply.tokens_in for reply in given),
            "tokens_out": sum(reply.tokens_out for reply in given),
            "fingerprint": last.fingerprint,
            "content_key": request.content_key,
        }
