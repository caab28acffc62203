"""Judging by files of requests that a service answers within a day, for part of the price.

What was handed in is written down before and after it is handed in, so that a run that was
killed finds its batches again: by their name, or by the mark that each carries at the service.
"""

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from gemma_alignment.errors import UserError
from gemma_alignment.judging.append_log import AppendLog
from gemma_alignment.judging.batch_results import Results, read_results
from gemma_alignment.judging.budget import batch_price
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.client import Reply, Request, cache_key
from gemma_alignment.judging.openai_judge import OpenAIJudge
from gemma_alignment.judging.service import QUOTA_USED_UP, give_up

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
T = TypeVar("T")

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MARK = "gemma_alignment"
"""The field of a batch's metadata that names it before the service has."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MAX_BYTES = 190 * 1024 * 1024
"""A little less than the service takes in one file."""


@dataclass(frozen=True)
class Batch:
    """A number of requests handed in together."""

    mark: str
    reservation: str
    worst_usd: float
    """What was reserved for all of it."""
    prompt_version: str
    contents: Mapping[str, str]
    """Cache key -> content key of each request."""
    id: str | None = None
    """The service's name; None until it has said so."""


class Round(NamedTuple):
    """What came of handing requests in once, by content key."""

    replies: dict[str, Reply]
    refused: set[str]
    """The service will not judge these: handing them in again is no use."""


class Batches:
    """Hands requests in, waits, and collects; every step can be the last before a kill.

    Args:
        judge: forms the requests and reads the replies.
        cache: where replies are kept.
        path: the record of what was handed in.
        size: most requests of one batch.
        poll_s: seconds between two looks at a batch.
    """

    def __init__(self, judge: OpenAIJudge, cache: ReplyCache, path: Path, size: int, poll_s: float) -> None:
        self._judge = judge
        self._cache = cache
        self._log = AppendLog(path)
        self._size = size
        self._poll_s = poll_s
        self._price = batch_price(judge.price)
        self._open: dict[str, Batch] = {}

    def collect_earlier(self) -> int:
        """Wait for what an earlier run handed in and keep its replies; the number of batches."""
        with self._log.locked() as log:
            self._take_in(log.fresh())
        earlier = list(self._open.values())
        if any(batch.id is None for batch in earlier):
            earlier = self._find_again(earlier)
        for batch in earlier:
            logger.info("Batch %s of an earlier run is waited for.", batch.id)
            self._collect(batch)
        return len(earlier)

    def ask(self, requests: Sequence[tuple[Request, int]]) -> Round:
        """Hand requests in, each with the number of its earlier replies, and wait for what becomes of them.

        Raises:
            UserError: the cap, a used-up quota, a refused batch, or a service that is out of reach.
        """
        batches = [self._hand_in(part) for part in self._parts(requests)]
        found = Round({}, set())
        for batch in batches:
            results = self._collect(batch)
            found.replies.update({batch.contents[key]: reply for key, reply in results.replies.items()})
            found.refused.update(batch.contents[key] for key in results.refused)
        return found

    def _parts(self, requests: Sequence[tuple[Request, int]]) -> Iterator[list[tuple[Request, bytes]]]:
        part: list[tuple[Request, bytes]] = []
        size = 0
        for request, attempt in requests:
            line = {
                "custom_id": cache_key(self._judge, request),
                "method": "POST",
                "url": ENDPOINT,
                "body": self._judge.body(request, attempt),
            }
            text = json.dumps(line).encode("ascii") + b"\n"
            if part and (len(part) == self._size or size + len(text) > MAX_BYTES):
                yield part
                part, size = [], 0
            part.append((request, text))
            size += len(text)
        if part:
            yield part

    def _hand_in(self, part: Sequence[tuple[Request, bytes]]) -> Batch:
        worst = sum(self._judge.worst_case(request) for request, _ in part) * self._judge.price.batch_share
        contents = {cache_key(self._judge, request): request.content_key for request, _ in part}
        version = self._judge.prompt_version
        batch = Batch(uuid.uuid4().hex, self._judge.ledger.reserve(worst), worst, version, contents)
        facts = {"reservation": batch.reservation, "worst_usd": worst, "prompt_version": version, "contents": contents}
        self._note("planned", batch, **facts)
        data = b"".join(line for _, line in part)
        file = self._call(lambda client: client.files.create(file=(f"{batch.mark}.jsonl", data), purpose="batch"))
        name = self._create(file.id, batch.mark)
        logger.info("Batch %s: %d requests handed in.", name, len(part))
        return self._handed_in(batch, name)

    def _create(self, file_id: str, mark: str) -> str:
        """Start the batch once: after a lost connection it may be there already."""
        tries = 0

        def create(client: "openai.OpenAI") -> str:
            nonlocal tries
            tries += 1
            if tries > 1 and (there := _by_mark(client, {mark})):
                return there[mark]
            made = client.batches.create(
                input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={MARK: mark}
            )
            return made.id

        return self._call(create)

    def _collect(self, batch: Batch) -> Results:
        """Wait for ``batch`` to end, keep its replies, and put its bill in the reservation's place."""
        assert batch.id is not None  # noqa: S101 - handed in
        ended = self._wait(batch.id)
        results = self._results(ended, batch)
        self._cache.put_many((key, batch.contents[key], reply) for key, reply in results.replies.items())
        self._judge.ledger.settle(batch.reservation, sum(reply.cost for reply in results.replies.values()))
        self._note("collected", batch)
        missing = len(batch.contents) - len(results.replies)
        if ended.status == "failed" and not results.replies:
            problems = [str(problem.message) for problem in (ended.errors and ended.errors.data) or []]
            raise UserError(
                f"the service refused batch {batch.id}: {'; '.join(problems[:3]) or 'it gives no reason'}. "
                "Nothing of it was billed. Mend the cause, or set judge.mode=live."
            )
        if missing:
            why = results.told() or "it gives no reason"
            logger.warning("Batch %s is %s; %d requests have no reply (%s).", batch.id, ended.status, missing, why)
        if results.quota_used_up:
            give_up(QUOTA_USED_UP)
        return results

    def _wait(self, name: str) -> "openai.types.Batch":
        told = ""
        while True:
            batch = self._call(lambda client: client.batches.retrieve(name))
            if batch.status != told:
                told = batch.status
                logger.info("Batch %s: %s.", name, told)
            if told in ENDED:
                return batch
            self._judge.service.sleep(self._poll_s)

    def _results(self, ended: "openai.types.Batch", batch: Batch) -> Results:
        """Every line of the output and of the error file; an expired batch has finished ones too."""
        names = [name for name in (ended.output_file_id, ended.error_file_id) if name]
        unknown = batch.worst_usd / len(batch.contents)

        def read(body: Any) -> Reply:
            return replace(self._judge.reply(body, self._price, unknown), prompt_version=batch.prompt_version)

        return read_results([self._content(name) for name in names], batch.contents, read)

    def _content(self, name: str) -> bytes:
        return self._call(lambda client: client.files.content(name).read())

    def _find_again(self, batches: Iterable[Batch]) -> list[Batch]:
        """Those that are at the service; what never arrived there is let go of."""
        marks = {batch.mark: batch for batch in batches}
        names = self._call(lambda client: _by_mark(client, {m for m, b in marks.items() if b.id is None}))
        found = []
        for mark, batch in marks.items():
            if batch.id is not None:
                found.append(batch)
            elif mark in names:
                found.append(self._handed_in(batch, names[mark]))
            else:
                self._judge.ledger.settle(batch.reservation, 0.0)
                self._note("collected", batch)
        return found

    def _handed_in(self, batch: Batch, name: str) -> Batch:
        self._note("handed_in", batch, id=name)
        return replace(batch, id=name)

    def _note(self, event: str, batch: Batch, **facts: object) -> None:
        with self._log.locked() as log:
            log.append({"event": event, "mark": batch.mark, **facts})

    def _take_in(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            mark = record["mark"]
            if record["event"] == "planned":
                self._open[mark] = _planned(record)
            elif record["event"] == "handed_in" and mark in self._open:
                self._open[mark] = replace(self._open[mark], id=record["id"])
            elif record["event"] == "collected":
                self._open.pop(mark, None)

    def _call(self, send: "Callable[[openai.OpenAI], T]") -> T:
        return self._judge.service.call(lambda: self._judge.service.attempt(send))


def _planned(record: Mapping[str, Any]) -> Batch:
    names = ("mark", "reservation", "worst_usd", "prompt_version", "contents")
    return Batch(*(record[name] for name in names))


def _by_mark(client: "openai.OpenAI", marks: set[str]) -> dict[str, str]:
    """Mark -> the service's name, newest batches first, until all are found."""
    found: dict[str, str] = {}
    for batch in client.batches.list(limit=100):
        mark = (batch.metadata or {}).get(MARK)
        if mark in marks:
            found[mark] = batch.id
        if len(found) == len(marks):
            break
    return found
