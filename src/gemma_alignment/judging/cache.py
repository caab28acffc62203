"""Replies that were paid for, by the content of what was asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_alignment.judging.append_log import AppendLog
from gemma_alignment.judging.claims import Claims
from gemma_alignment.judging.client import Judge, Reply, Request, cache_key
from gemma_alignment.judging.parsing import parse_verdict


class ReplyCache:
    """An append-only file of raw replies, one line a call, written before the verdict is used.

    The key of a line is the SHA-256 of model, prompt version, decoding settings, prompt and
    both answers in their order. Every reply is kept, a refusal too, but only one that parses
    answers a request: a failure is evidence, never a verdict. Verdicts are parsed anew from the
    raw text, so better parsing bills nothing. Threads and processes may share the file; who asks
    for a reply holds its claim meanwhile.
    """

    def __init__(self, path: str | Path) -> None:
        self._log = AppendLog(path)
        self._replies: dict[str, list[Reply]] = {}
        self._sources: set[tuple[str, str]] = set()
        self.claims = Claims(Path(path).with_suffix(".claims"))

    @property
    def path(self) -> Path:
        """Where the replies are."""
        return self._log.path

    def get(self, judge: Judge, request: Request) -> Sequence[Reply]:
        """All replies to ``request`` up to the first that parses, which is its verdict whatever follows."""
        with self._log.locked() as log:
            self._take_in(log.fresh())
            replies = self._replies.get(cache_key(judge, request), [])
            for count, reply in enumerate(replies, start=1):
                if parse_verdict(reply.text) is not None:
                    return replies[:count]
            return list(replies)

    def put(self, judge: Judge, request: Request, reply: Reply) -> None:
        """Keep ``reply``; on return it is on the disk."""
        with self._log.locked() as log:
            log.append(_Line(cache_key(judge, request), request.content_key, reply).record())

    def put_once(self, source: str, replies: Iterable[tuple[str, str, Reply]]) -> None:
        """Keep the replies of ``source``, one for each key: those that are kept already are passed over.

        Args:
            source: what they come from, as a batch that a killed run has left half collected.
            replies: each with its key and content key; on return they are on the disk.
        """
        with self._log.locked() as log:
            self._take_in(log.fresh())
            new = [_Line(*reply, source) for reply in replies if (reply[0], source) not in self._sources]
            log.append(*(line.record() for line in new))

    def _take_in(self, records: Sequence[dict[str, object]]) -> None:
        for record in records:
            line = _Line.of(record)
            if line is not None:
                self._replies.setdefault(line.key, []).append(line.reply)
                self._sources.add((line.key, line.source))


@dataclass(frozen=True)
class _Line:
    key: str
    content_key: str
    reply: Reply
    source: str = ""
    """The batch that it came with; empty for a reply of its own."""

    def record(self) -> dict[str, object]:
        reply = self.reply
        return {
            "key": self.key,
            "content_key": self.content_key,
            "reply": reply.text,
            "model": reply.model,
            "prompt_version": reply.prompt_version,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "fingerprint": reply.fingerprint,
            "cost": reply.cost,
            **({"source": self.source} if self.source else {}),
        }

    @classmethod
    def of(cls, record: dict[str, object]) -> "_Line | None":
        """The line that ``record`` is; None for one that is something else."""
        try:
            reply = Reply(
                text=str(record["reply"]),
                model=str(record["model"]),
                prompt_version=str(record["prompt_version"]),
                tokens_in=int(str(record["tokens_in"])),
                tokens_out=int(str(record["tokens_out"])),
                fingerprint=None if record["fingerprint"] is None else str(record["fingerprint"]),
                cost=float(str(record["cost"])),
            )
            return cls(str(record["key"]), str(record["content_key"]), reply, str(record.get("source", "")))
        except (KeyError, ValueError):
            return None
