"""Thousands of judgements through faults, kills and a cap: nothing lost, nothing doubled, nothing overspent."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chat_service import Answer, ChatService, completion, error, verdict

from gemma_alignment.judging.budget import SpendLedger, cost
from gemma_alignment.judging.client import Request, digest
from gemma_alignment.judging.parsing import parse_verdict
from gemma_alignment.parameters.judge import Price

SOURCE = Path(__file__).parents[2] / "src"
PRICE = Price("m", 0.15, 0.6, 0.5, "2024-07-18")
BILLED = cost(PRICE, 100, 20)
FAULTS = 0.2
CONCURRENCY = 8
SLOTS = {"1": "first", "2": "second", "tie": "tie"}

STUDY = """
import json, sys
from pathlib import Path
from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.session import Comparison
from gemma_alignment.parameters.judge import JudgeParameters

folder, pairs, section, name = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
comparisons = [Comparison(f"p{i}", f"q{i}", "a", "b", f"x{i}", f"y{i}") for i in range(pairs)]
session = JudgeConnection(folder / "cache.jsonl", "key").session(build(JudgeParameters, section, "judge"))
try:
    (folder / name).write_text(json.dumps(session.judgements(comparisons)))
except UserError as error:
    sys.exit(f"stopped: {error}")
"""


def right(texts: dict[str, str]) -> str:
    """What a faultless service says of a request."""
    return ("1", "2", "tie")[int(digest("right", *texts.values()), 16) % 3]


def hopeless(prompt: str) -> str:
    """A few prompts are never judged: refused as a request, or answered with a refusal."""
    return {0: "refused", 1: "unparsed"}.get(int(digest("hopeless", prompt), 16) % 100, "")


@dataclass
class Storm:
    """A service that fails one request in five, in every way there is, and keeps books of its own."""

    timeout_s: float
    seed: int = 20261126
    received: list[str] = field(default_factory=list)
    """Content keys, in the order of arrival."""
    faults: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    """By content key: verdicts that left whole and in time."""
    bill: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._lock = threading.Lock()

    def __call__(self, n: int, payload: dict[str, Any]) -> Answer:
        texts = json.loads(payload["messages"][1]["content"])
        key = Request(texts["prompt"], texts["answer_1"], texts["answer_2"]).content_key
        with self._lock:
            self.received.append(key)
            kind = hopeless(texts["prompt"])
            if not kind and self._rng.random() < FAULTS:
                kind = self._rng.choice(sorted(self._answers(texts).keys()))
            if kind:
                self.faults[kind] += 1
            else:
                self.delivered[key] += 1
            # Everything that may have cost work is billed, whether the client ever sees it or not.
            self.bill += 0.0 if kind in ("429", "refused") else BILLED
            if kind == "refused":
                return error(400, "content_filter", "flagged")
            if kind == "unparsed":
                return completion(None, refusal="I can't help with that.")
            return self._answers(texts)[kind] if kind else completion(verdict(right(texts)))

    def _answers(self, texts: dict[str, str]) -> dict[str, Answer]:
        fine = vars(completion(verdict(right(texts))))
        return {
            "429": error(429, "rate_limit_exceeded", retry_after="0.02"),
            "500": error(500),
            "time-out": Answer(**fine | {"delay_s": 1.5 * self.timeout_s}),
            "dropped": Answer(drop=True),
            "truncated": Answer(body=json.dumps(fine["body"]).encode()[:-40], announce=40),
            "no JSON": Answer(body=json.dumps(fine["body"]).encode()[:-40]),
            "refusal": completion(None, refusal="I can't help with that."),
            "wrong enum": completion('{"reason": "x", "verdict": "A"}'),
            "slow drip": Answer(**fine | {"drip_s": self.timeout_s / 20}),
            "slow head": Answer(**fine | {"drip_head_s": self.timeout_s / 20}),
        }


def section(service: ChatService, judge: dict[str, Any], timeout_s: float, cap: float) -> dict[str, Any]:
    remote = {**judge["remote"], "timeout_s": timeout_s, "concurrency": CONCURRENCY, "spend_cap_usd": cap}
    return {**judge, "base_url": service.url, "remote": {**remote, "max_attempts": 6}}


def start(folder: Path, pairs: int, judge: dict[str, Any], name: str = "rows.json") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STUDY, str(folder), str(pairs), json.dumps(judge), name]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def whole_lines(path: Path) -> bytes:
    """What is on the disk, without a line that a kill tore."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is on the disk and whole."""
    rows = []
    for line in whole_lines(path).splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # torn by a kill, and closed off since
            continue
    return rows


def replies(path: Path) -> Counter[str]:
    """Content key -> replies in the cache."""
    return Counter(row["content_key"] for row in rows_of(path))


def stored(path: Path) -> Counter[str]:
    """Content key -> verdicts in the cache."""
    return Counter(row["content_key"] for row in rows_of(path) if parse_verdict(row["reply"]) is not None)


def most_ever_reserved(path: Path) -> float:
    """The largest sum of bills and reservations at any line of the ledger."""
    amounts: dict[str, float] = {}
    total = most = 0.0
    for row in rows_of(path):
        total += row["usd"] - amounts.get(row["id"], 0.0)
        amounts[row["id"]] = row["usd"]
        most = max(most, total)
    return most


def weather(service: ChatService, judge: dict[str, Any], folder: Path, pairs: int, timeout_s: float) -> dict[str, Any]:
    """Three runs killed at random moments, one that the cap stops, two at once that end; every promise is checked."""
    storm = Storm(timeout_s)
    service.script = storm
    rng = random.Random(7)
    cache, spend = folder / "cache.jsonl", folder / "cache.spend.jsonl"
    cap = 4e-4 * 2 * pairs  # about a worst case for every judgement
    ledger = SpendLedger(spend, cap)
    kept, known = b"", Counter[str]()

    def settled(limit: float) -> float:
        """Checks what must hold at any time; the spending."""
        nonlocal kept, known
        lines = whole_lines(cache)
        assert lines.startswith(kept), "a stored reply was lost or changed"
        kept, known = lines, stored(cache)
        assert set(known.values()) <= {1}, "a verdict was stored twice"
        assert max(replies(cache).values(), default=0) <= judge["attempts"], "an unparsed reply was paid for again"
        spent = ledger.spent()
        assert storm.bill <= spent + 1e-9, "the service billed more than the ledger holds"
        assert most_ever_reserved(spend) <= limit + 1e-9
        return spent

    kills = []
    for share in sorted(rng.uniform(0.05, 0.75) for _ in range(3)):
        process = start(folder, pairs, section(service, judge, timeout_s, cap))
        while len(storm.received) < share * 2 * pairs / (1 - FAULTS):
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        time.sleep(2.0 * timeout_s)  # what was on its way to the service arrives
        settled(cap)
        kills.append((len(storm.received), set(known)))

    little = ledger.spent() + 0.02 * cap
    process = start(folder, pairs, section(service, judge, timeout_s, little))
    message = process.communicate()[1].decode()
    assert process.returncode == 1
    assert "spend" in message and "cap" in message, message
    assert settled(little) <= little
    kills.append((len(storm.received), set(known)))

    names = ("rows.json", "rows too.json")
    last = [start(folder, pairs, section(service, judge, timeout_s, cap), name) for name in names]
    for process in last:
        message = process.communicate()[1].decode()
        assert process.returncode == 0, message
    assert (folder / names[0]).read_bytes() == (folder / names[1]).read_bytes()
    spent = settled(cap)
    for received, before in kills:
        assert not before & set(storm.received[received:]), "what was paid for was asked again"
    again = sum(count - 1 for count in storm.delivered.values())
    assert again <= 3 * CONCURRENCY, "more was repeated than was in flight at the kills"
    rows = json.loads((folder / "rows.json").read_text())
    return {"rows": rows, "storm": storm, "spent": spent, "cap": cap, "again": again, "known": known}


def check(found: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Every judgement is the right one or listed as unparsed."""
    rows, known = found["rows"], found["known"]
    asked = [(f"p{i}", order) for i in range(pairs) for order in ("ab", "ba")]
    assert [(row["prompt_id"], row["order"]) for row in rows] == asked
    listed = [row for row in rows if row["verdict"] == "unparsed"]
    for row in rows:
        i = row["prompt_id"][1:]
        answers = (f"x{i}", f"y{i}") if row["order"] == "ab" else (f"y{i}", f"x{i}")
        texts = {"prompt": f"q{i}", "answer_1": answers[0], "answer_2": answers[1]}
        if row["verdict"] != "unparsed":
            assert row["verdict"] == SLOTS[right(texts)]
            assert known[row["content_key"]] == 1
    hopeless_rows = {f"p{i}" for i in range(pairs) if hopeless(f"q{i}")}
    assert hopeless_rows <= {row["prompt_id"] for row in listed}
    unlucky = sum(row["prompt_id"] not in hopeless_rows for row in listed)
    assert unlucky <= 3 + pairs // 500
    storm = found["storm"]
    return {
        "judgements": len(rows),
        "verdicts": len(rows) - len(listed),
        "listed as unparsed": len(listed),
        "of them by bad luck": unlucky,
        "requests": len(storm.received),
        "faults": dict(sorted(storm.faults.items())),
        "repeated after kills": found["again"],
        "billed by the service": round(storm.bill, 4),
        "billed or reserved": round(found["spent"], 4),
        "cap": found["cap"],
    }


def test_a_few_hundred_judgements_through_faults_three_kills_and_a_cap(service, judge_section, tmp_path):
    pairs = 150
    figures = check(weather(service, judge_section(), tmp_path, pairs, timeout_s=1.0), pairs)
    assert sum(figures["faults"].values()) > 0.12 * figures["requests"]


@pytest.mark.slow
def test_ten_thousand_judgements_through_faults_three_kills_and_a_cap(service, judge_section, tmp_path, capsys):
    pairs = 5_000
    figures = check(weather(service, judge_section(), tmp_path, pairs, timeout_s=2.0), pairs)
    assert figures["judgements"] == 10_000
    with capsys.disabled():
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
