"""What a judge is: a prompt and two answers in, one raw reply out.

A judge decides nothing about both orders, ties or missing replies: that is
:mod:`~gemma_alignment.judging.pairing` and :mod:`~gemma_alignment.judging.session`. The
reward model that training climbs is never a judge.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


def digest(*parts: object) -> str:
    """SHA-256 of ``parts`` written as one JSON list: no two lists of parts run together."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Request:
    """One ordering of two answers to one prompt."""

    prompt: str
    answer_1: str
    answer_2: str

    @property
    def content_key(self) -> str:
        """A name for the texts alone, whoever judges them."""
        return digest(self.prompt, self.answer_1, self.answer_2)


@dataclass(frozen=True)
class Reply:
    """What a judge said, word for word, and what it took."""

    text: str
    model: str
    prompt_version: str
    tokens_in: int = 0
    tokens_out: int = 0
    fingerprint: str | None = None
    """The provider's name for the exact backend, where it tells one."""
    cost: float = 0.0
    """US dollars."""


class JudgeUnavailable(Exception):
    """The judge gave no reply to this request within the allowed attempts; others may fare better."""


class RequestRefused(JudgeUnavailable):
    """The service answered, and will not judge this request: the request is at fault, not the service."""


class Judge(Protocol):
    """Compares two answers; says nothing of where they came from, because it is not told."""

    model: str
    prompt_version: str

    @property
    def decoding(self) -> Mapping[str, object]:
        """Every setting besides model and prompt that can change a reply: part of the cache key."""
        ...

    def prepare(self, requests: Sequence[Request]) -> None:
        """See every request before the first is sent, to estimate, or to refuse with a UserError."""
        ...

    def judge(self, prompt: str, answer_1: str, answer_2: str, attempt: int = 0) -> Reply:
        """Compare the answers; ``attempt`` counts earlier replies to the same request that did not parse.

        Raises:
            JudgeUnavailable: no reply within the allowed attempts.
            UserError: nothing will come of going on (key refused, quota used up, cap reached).
        """
        ...

    def stop(self) -> None:
        """Abandon waits at once; requests already sent are left to finish."""
        ...


def cache_key(judge: Judge, request: Request) -> str:
    """The name of a reply: everything that was sent, and to whom."""
    return digest(
        judge.model,
        judge.prompt_version,
        dict(judge.decoding),
        request.prompt,
        request.answer_1,
        request.answer_2,
    )
