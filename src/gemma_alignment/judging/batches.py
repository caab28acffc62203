"""Judging by files of requests that a service answers within a day, for part of the price.

What is handed in is written down before and after it is handed in, so that a run that was
killed finds its batches again: by their name, or by the mark that each carries at the service.
Several processes may do so over one cache: one at a time hands in or collects, and a request
that waits in anybody's batch is not handed in again.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_alignment.errors import UserError
from gemma_alignment.judging.batch_calls import ENDPOINT, BatchCalls, Gone
from gemma_alignment.judging.batch_log import Batch, BatchLog, HeldLog
from gemma_alignment.judging.batch_results import Results, read_results
from gemma_alignment.judging.budget import batch_price
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.client import Reply, Request, cache_key
from gemma_alignment.judging.openai_judge import OpenAIJudge
from gemma_alignment.judging.service import QUOTA_USED_UP, give_up

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

MAX_BYTES = 190 * 1024 * 1024
"""A little less than the service takes in one file."""


class Batches:
    """Hands requests in, waits, and collects; every step can be the last before a kill.

    Args:
        judge: forms the requests and reads the replies.
        cache: where replies are kept.
        path: the record of what was handed in.
        size: most requests of one batch.
        poll_s: seconds between two looks at a batch.
        lost_after_s: seconds after which a call that nobody waits for any more has reached the service or never will.
    """

    def __init__(
        self, judge: OpenAIJudge, cache: ReplyCache, path: Path, size: int, poll_s: float, lost_after_s: float
    ) -> None:
        self._judge = judge
        self._cache = cache
        self._calls = BatchCalls(judge.service, poll_s)
        self._log = BatchLog(path, judge.service.base_url, self._calls.sleep)
        self._size = size
        self._lost_after_s = lost_after_s
        self._price = batch_price(judge.price)

    def holds(self, key: str) -> bool:
        """Whether the request ``key`` waits in a batch, whoever handed it in."""
        return self._log.holds(key)

    def collect_earlier(self) -> None:
        """Wait for what other runs have handed in and keep its replies.

        Raises:
            JudgeUnavailable: the service is out of reach.
            UserError: it refused a batch, or a quota is used up.
        """
        if not self._log.path.exists():
            return
        with self._log.held() as log:
            self._find_again(log)
            earlier = list(self._log.under_way.values())
        for batch in earlier:
            logger.info("Batch %s of another run is waited for.", batch.id)
            self._collect(batch)

    def ask(self, requests: Sequence[Request], is_done: Callable[[Sequence[Reply]], bool]) -> set[str]:
        """Hand in what nobody has handed in, and wait for the replies to all of it: the cache has them then.

        Args:
            requests: what to ask.
            is_done: whether these replies to a request are enough.

        Returns:
            the content keys of requests that the service will not judge: handing them in again is no use.

        Raises:
            JudgeUnavailable: the service is out of reach.
            UserError: the cap, a used-up quota or a refused batch.
        """
        batches: dict[str, Batch] = {}
        left = list(requests)
        while left:
            with self._cache.claims.alone(self._calls.sleep), self._log.held() as log:
                self._find_again(log)
                waiting = {key: batch for batch in self._log.under_way.values() for key in batch.contents}
                keys = {cache_key(self._judge, request): request for request in left}
                others = {waiting[key].mark: waiting[key] for key in keys if key in waiting}
                mine = [request for key, request in keys.items() if key not in waiting]
                part, left = self._part(mine, is_done)
                batches |= others
                if part:
                    batch = self._hand_in(log, part)
                    batches[batch.mark] = batch
        refused: set[str] = set()
        for batch in batches.values():
            refused |= {batch.contents[key] for key in self._collect(batch)}
        return refused

    def _part(
        self, requests: Sequence[Request], is_done: Callable[[Sequence[Reply]], bool]
    ) -> tuple[list[tuple[Request, bytes]], list[Request]]:
        """The requests of one batch, each with its line, and those that are left for the next."""
        part: list[tuple[Request, bytes]] = []
        size = 0
        for place, request in enumerate(requests):
            replies = self._cache.get(self._judge, request)
            if is_done(replies):  # paid for meanwhile by another process
                continue
            line = {
                "custom_id": cache_key(self._judge, request),
                "method": "POST",
                "url": ENDPOINT,
                "body": self._judge.body(request, len(replies)),
            }
            text = json.dumps(line).encode("ascii") + b"\n"
            if part and (len(part) == self._size or size + len(text) > MAX_BYTES):
                return part, list(requests[place:])
            part.append((request, text))
            size += len(text)
        return part, []

    def _hand_in(self, log: HeldLog, part: Sequence[tuple[Request, bytes]]) -> Batch:
        worst = sum(self._judge.worst_case(request) for request, _ in part) * self._judge.price.batch_share
        contents = {cache_key(self._judge, request): request.content_key for request, _ in part}
        batch = Batch(uuid.uuid4().hex, worst, self._judge.prompt_version, contents)
        log.planned(batch)  # before the reservation: what is reserved can always be found and let go of
        try:
            self._judge.ledger.reserve(worst, batch.mark)
        except UserError:
            log.collected(batch.mark, set())
            raise
        file = self._calls.upload(batch.mark, b"".join(line for _, line in part))
        name = self._calls.create(file, batch.mark, lambda: log.sent(batch.mark))
        logger.info("Batch %s: %d requests handed in.", name, len(part))
        return log.handed_in(batch.mark, name)

    def _collect(self, batch: Batch) -> frozenset[str]:
        """Wait for ``batch`` to end, keep its replies, put its bill in the reservation's place; the keys it refused.

        Where the service has lost the batch or a file of it nobody knows the bill: the reservation stands.
        """
        ended, results = self._ended(batch)  # before the record is held: others need not wait for a download
        with self._log.held() as log:
            if batch.mark not in self._log.under_way:  # another process was quicker
                return self._log.refused[batch.mark]
            kept = ((key, batch.contents[key], reply) for key, reply in results.replies.items())
            self._cache.put_once(batch.mark, kept)
            if not results.gone:
                unreadable = len(results.unreadable - set(results.replies)) * self._unknown(batch)
                bill = sum(reply.cost for reply in results.replies.values()) + unreadable
                self._judge.ledger.settle(batch.mark, bill)
            log.collected(batch.mark, results.refused)
        _tell(batch, ended, results)
        return self._log.refused[batch.mark]

    def _ended(self, batch: Batch) -> "tuple[openai.types.Batch | None, Results]":
        """The batch at its end and what it left; None for one that the service no longer has."""
        assert batch.id is not None  # noqa: S101 - handed in
        try:
            ended = self._calls.wait(batch.id)
        except Gone as error:
            return None, Results(gone=[f"anything ({error})"])
        return ended, self._results(ended, batch)

    def _unknown(self, batch: Batch) -> float:
        """What a reply is taken to cost that does not say."""
        return batch.worst_usd / len(batch.contents)

    def _results(self, ended: "openai.types.Batch", batch: Batch) -> Results:
        """Every line of the output and of the error file; an expired batch has finished ones too."""
        contents: list[bytes] = []
        gone: list[str] = []
        for name in filter(None, (ended.output_file_id, ended.error_file_id)):
            try:
                contents.append(self._calls.content(name))
            except Gone as error:
                gone.append(f"the file {name} ({error})")

        def read(body: Any) -> Reply:
            reply = self._judge.reply(body, self._price, self._unknown(batch))
            return replace(reply, prompt_version=batch.prompt_version)

        results = read_results(contents, batch.contents, read)
        results.gone = gone
        return results

    def _find_again(self, log: HeldLog) -> None:
        """Learn the names of batches whose owner was killed; let go of what never arrived at the service."""
        lost = {mark: batch for mark, batch in self._log.under_way.items() if batch.id is None}
        if not lost:
            return
        names = self._calls.find(set(lost))
        left = self._lost_after_s - (time.time() - max(batch.sent_at for batch in lost.values()))
        if len(names) < len(lost) and left > 0:  # the last call of the dead may still be on its way
            self._calls.sleep(min(left, self._lost_after_s))
            names = self._calls.find(set(lost))
        for mark in lost:
            if mark in names:
                log.handed_in(mark, names[mark])
            else:
                self._judge.ledger.settle(mark, 0.0)
                log.collected(mark, set())


def _tell(batch: Batch, ended: "openai.types.Batch | None", results: Results) -> None:
    """Say what is missing, or end the run where going on is no use."""
    missing = len(batch.contents) - len(results.replies)
    if results.gone:
        logger.warning(
            "The service no longer has %s of batch %s: deleted, or of another key or project. Its %d requests without "
            "a reply are judged anew; the %.4f USD that were reserved for it go on counting as spent.",
            *(" and ".join(results.gone), batch.id, missing, batch.worst_usd),
        )
    elif ended is not None:
        _tell_end(batch, ended, results, missing)
    if results.quota_used_up:
        give_up(QUOTA_USED_UP)


def _tell_end(batch: Batch, ended: "openai.types.Batch", results: Results, missing: int) -> None:
    if ended.status == "failed" and not results.replies:
        problems = [str(problem.message) for problem in (ended.errors and ended.errors.data) or []]
        raise UserError(
            f"the service refused batch {batch.id}: {'; '.join(problems[:3]) or 'it gives no reason'}. "
            "Nothing of it was billed. Mend the cause, or set judge.mode=live."
        )
    if missing:
        why = results.told() or "it gives no reason"
        logger.warning("Batch %s is %s; %d requests have no reply (%s).", batch.id, ended.status, missing, why)
