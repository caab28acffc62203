"""What a service of batches is asked: take a file, start a batch, find one again, tell how it ended."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from gemma_alignment.errors import UserError
from gemma_alignment.judging.client import JudgeUnavailable
from gemma_alignment.judging.service import Service

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)
T = TypeVar("T")

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MARK = "gemma_alignment"
"""The field of a batch's metadata that names it before the service has."""
GONE = frozenset({404, 410})
"""Statuses with which a service says that it has no such batch or file."""
LOOKS = 3
"""So often a name is asked for before it is taken to be gone: a new one may not be known everywhere at once."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
FILE_TIMEOUT_S = 3600.0
"""For a file on its way: that it takes long is no sign of a fault."""


class Gone(Exception):
    """The service has no such batch or file: it was deleted, or belongs to another key or project."""


class BatchCalls:
    """The calls about batches, each repeated as :class:`~gemma_alignment.judging.service.Service` repeats calls.

    Args:
        service: reaches the judge.
        poll_s: seconds between two looks at a batch.
    """

    def __init__(self, service: Service, poll_s: float) -> None:
        self._service = service
        self._poll_s = poll_s

    def upload(self, mark: str, data: bytes) -> str:
        """The service's name for a file of requests."""

        def upload(client: "openai.OpenAI") -> str:
            named = (f"{mark}.jsonl", data)
            return client.files.create(file=named, purpose="batch", timeout=FILE_TIMEOUT_S).id

        return self._call(upload)

    def create(self, file_id: str, mark: str, before_sending: Callable[[], None]) -> str:
        """Start a batch once, and its name at the service: after a lost connection it may be there already."""
        tries = 0

        def create(client: "openai.OpenAI") -> str:
            nonlocal tries
            tries += 1
            if tries > 1 and (there := _by_mark(client, {mark})):
                return there[mark]
            before_sending()
            made = client.batches.create(
                input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={MARK: mark}
            )
            return made.id

        return self._call(create)

    def find(self, marks: set[str]) -> dict[str, str]:
        """Mark -> name of those that the service knows."""
        return self._call(lambda client: _by_mark(client, marks))

    def wait(self, name: str) -> "openai.types.Batch":
        """The batch when it has ended.

        Raises:
            Gone: the service does not know it.
        """
        told = ""
        while True:
            batch = self._known(lambda client: client.batches.retrieve(name))
            if batch.status != told:
                told = batch.status
                logger.info("Batch %s: %s.", name, told)
            if told in ENDED:
                return batch
            self.sleep(self._poll_s)

    def content(self, name: str) -> bytes:
        """A file of results.

        Raises:
            Gone: the service does not know it.
        """
        return self._known(lambda client: client.files.content(name, timeout=FILE_TIMEOUT_S).read())

    def sleep(self, seconds: float) -> None:
        """Wait, or raise JudgeUnavailable when stopped meanwhile."""
        self._service.sleep(seconds)

    def _known(self, ask: "Callable[[openai.OpenAI], T]") -> T:
        """What the service has under a name that it gave itself."""
        import openai

        def send(client: "openai.OpenAI") -> T:
            try:
                return ask(client)
            except openai.APIStatusError as error:
                if error.status_code in GONE:
                    raise Gone(f"status {error.status_code}") from None
                raise

        for _ in range(LOOKS - 1):
            try:
                return self._call(send)
            except Gone:
                self.sleep(self._poll_s)
        return self._call(send)

    def _call(self, send: "Callable[[openai.OpenAI], T]") -> T:
        return self._service.call(lambda: self._service.attempt(send))


@contextmanager
def within_reach() -> Iterator[None]:
    """Turn a service of batches that does not answer into the end of the run.

    Raises:
        UserError: instead of JudgeUnavailable.
    """
    try:
        yield
    except JudgeUnavailable as error:
        raise UserError(
            f"the service that judges in batches is out of reach ({error}). What was handed in goes on "
            "there; the same command collects it."
        ) from None


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
