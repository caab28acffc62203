"""The judge that says again what another one said: no network, no cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.judging.client import Reply, Request
from gemma_alignment.judging.parsing import parse_verdict


class RecordedJudge:
    """Replies by ``content_key`` from a JSON-lines file: earlier judgements, or a judge's cache.

    Where a request was asked more than once, a reply that parses is preferred.

    Raises:
        UserError: there is no such file, or it holds no reply.
    """

    decoding: Mapping[str, object] = {}

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._replies = _read(self._path)
        self.model = _only({reply.model for reply in self._replies.values()})
        self.prompt_version = _only({reply.prompt_version for reply in self._replies.values()})

    def prepare(self, requests: Sequence[Request]) -> None:
        """Refuse before the first judgement when replies are missing, and say how many."""
        missing = sum(request.content_key not in self._replies for request in requests)
        if missing:
            raise UserError(
                f"{missing} of {len(requests)} judgements are not in {self._path}: the answers differ from "
                "those that were judged. Judge them anew with judge.kind=openai or rubric, or give the file "
                "that was recorded for these answers in judge.recorded_path."
            )

    def stop(self) -> None:
        """Nothing to abandon."""

    def judge(self, prompt: str, answer_1: str, answer_2: str, attempt: int = 0) -> Reply:
        """The reply on record.

        Raises:
            UserError: there is none.
        """
        request = Request(prompt, answer_1, answer_2)
        self.prepare([request])
        return self._replies[request.content_key]


def _only(names: set[str]) -> str:
    """The one name that every reply carries, so that a replay says whose verdicts it repeats."""
    return names.pop() if len(names) == 1 else "recorded"


def _read(path: Path) -> dict[str, Reply]:
    if not path.is_file():
        raise UserError(f"no file of recorded judgements at {path}: set judge.recorded_path to one that exists.")
    replies: dict[str, Reply] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # the torn last line of a killed run
                continue
            if not isinstance(row, dict) or not row.get("content_key") or not row.get("reply"):
                continue
            known = replies.get(row["content_key"])
            if known is None or parse_verdict(known.text) is None:
                replies[row["content_key"]] = _reply(row)
    if not replies:
        raise UserError(f"{path} holds no judgement with a content_key and a reply: it cannot be replayed.")
    return replies


def _reply(row: Mapping[str, object]) -> Reply:
    return Reply(
        text=str(row["reply"]),
        model=str(row.get("model", "recorded")),
        prompt_version=str(row.get("prompt_version", "recorded")),
        tokens_in=int(str(row.get("tokens_in") or 0)),
        tokens_out=int(str(row.get("tokens_out") or 0)),
        fingerprint=str(row["fingerprint"]) if row.get("fingerprint") else None,
        cost=float(str(row.get("cost") or 0.0)),
    )
