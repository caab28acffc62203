"""What a batch left at the service: the replies of its output file, the reasons of its error file."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma_alignment.judging.client import Reply
from gemma_alignment.judging.service import Malformed, is_final, is_quota

logger = logging.getLogger(__name__)

FINE = 200


@dataclass
class Results:
    """What became of the requests of one batch, by custom id; those not refused may be handed in again."""

    replies: dict[str, Reply] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """The service will not judge these, however often it is asked."""
    unreadable: set[str] = field(default_factory=set)
    """The service answered these and charges for it, and what it says is no reply."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why requests have no reply, and how many."""
    quota_used_up: bool = False
    gone: list[str] = field(default_factory=list)
    """What the service no longer has, in words: its lines and its bill are unknown."""

    def told(self) -> str:
        """The reasons in words, the commonest first."""
        return ", ".join(f"{reason}: {count}" for reason, count in self.reasons.most_common())


def read_results(files: Iterable[bytes], known: Mapping[str, str], read: Callable[[Any], Reply]) -> Results:
    """The lines of a batch's output and error files, in whatever order they stand.

    Args:
        files: their contents. An expired batch has both; a completed one may have an error file alone.
        known: the custom ids that were handed in; lines of others are passed over.
        read: from a completion to its reply; raises Malformed for anything else.
    """
    results = Results()
    for row in (row for content in files for row in _rows(content)):
        name = row.get("custom_id")
        if not isinstance(name, str) or name not in known:
            continue
        response = row.get("response")
        if isinstance(response, dict) and response.get("status_code") == FINE:
            try:
                results.replies[name] = read(response.get("body"))
            except Malformed as error:
                results.unreadable.add(name)
                results.reasons[f"unreadable ({error})"] += 1
        else:
            _note_failure(results, name, response, row.get("error"))
    return results


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield row
        elif line.strip():
            logger.warning("A line of %d bytes in a batch's results cannot be read.", len(line))


def _note_failure(results: Results, name: str, response: object, error: object) -> None:
    """An expired request has an error and no response; a refused one has the error in its response."""
    status = response.get("status_code") if isinstance(response, dict) else None
    if isinstance(response, dict):
        body = response.get("body")
        error = body.get("error") if isinstance(body, dict) else error
    code, kind = (error.get("code"), error.get("type")) if isinstance(error, dict) else (None, None)
    results.reasons[str(code or kind or (f"status {status}" if status else "no reason given"))] += 1
    if is_quota(code, kind):
        results.quota_used_up = True
    elif isinstance(status, int) and is_final(status):
        results.refused.add(name)
