"""What several tests of the judge need: the shared verdicts and a judge that follows a script."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for ``chat_service`` under every import mode of pytest

from chat_service import BatchService, ChatService, verdict

from gemma_alignment.config import build
from gemma_alignment.judging.client import Reply, Request
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.parameters.judge import JudgeParameters

if TYPE_CHECKING:
    from gemma_alignment.judging.openai_judge import OpenAIJudge

SHARED = Path(os.environ.get("GEMMA_ALIGNMENT_SHARED", Path(__file__).parents[2] / ".." / "shared"))


@pytest.fixture(scope="session")
def judge_swap() -> Path:
    """The folder of real verdicts in both orders."""
    folder = SHARED / "data" / "judge_swap"
    if not folder.is_dir():
        pytest.skip(f"no real verdicts at {folder}")
    return folder


class ScriptedJudge:
    """Says what a function of the request and the attempt says."""

    model = "scripted"
    prompt_version = "scripted-1"
    decoding: Mapping[str, object] = {"temperature": 0.0}

    def __init__(self, say: Callable[[Request, int], str]) -> None:
        self.say = say
        self.asked: list[tuple[Request, int]] = []
        self.prepared: list[Sequence[Request]] = []
        self.stopped = False

    def prepare(self, requests: Sequence[Request]) -> None:
        self.prepared.append(requests)

    def judge(self, prompt: str, answer_1: str, answer_2: str, attempt: int = 0) -> Reply:
        request = Request(prompt, answer_1, answer_2)
        self.asked.append((request, attempt))
        return Reply(self.say(request, attempt), self.model, self.prompt_version, 10, 5, "fp", 0.25)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def scripted() -> type[ScriptedJudge]:
    return ScriptedJudge


@pytest.fixture
def longer_wins() -> Callable[[Request, int], str]:
    """The verdict of a judge that looks at length alone."""

    def say(request: Request, attempt: int) -> str:
        first, second = len(request.answer_1), len(request.answer_2)
        return verdict("1" if first > second else "2" if second > first else "tie")

    return say


@pytest.fixture
def service() -> Iterator[ChatService]:
    running = ChatService()
    yield running
    running.close()


@pytest.fixture
def batch_service() -> Iterator[BatchService]:
    running = BatchService()
    yield running
    running.close()


REMOTE = {
    "batch_poll_s": 0.05,
    "batch_size": 1000,
    "temperature": 0.0,
    "max_output_tokens": 100,
    "timeout_s": 5.0,
    "concurrency": 4,
    "requests_per_minute": 600_000,
    "max_attempts": 4,
    "backoff_s": 0.01,
    "max_backoff_s": 0.02,
    "spend_cap_usd": 1.0,
    "prices": [
        {
            "model": "gpt-4o-mini-2024-07-18",
            "input_usd_per_million": 0.15,
            "output_usd_per_million": 0.6,
            "batch_share": 0.5,
            "as_of": "2024-07-18",
        }
    ],
}


@pytest.fixture
def judge_section(service: ChatService) -> Callable[..., dict[str, Any]]:
    """Section ``judge`` for the service of the tests, with changes to it or to ``remote``."""

    def section(**changes: object) -> dict[str, Any]:
        judge: dict[str, Any] = {
            "kind": "openai",
            "model": "gpt-4o-mini-2024-07-18",
            "base_url": service.url,
            "mode": "live",
            "seed": 42,
            "attempts": 3,
            "canaries": 0,
            "repeats": 0,
            "labelled_path": None,
            "labelled_pairs": 0,
            "reference_path": None,
            "recorded_path": None,
            "rubric": {"noise": 0.0, "position_bias": 0.0, "tie_margin": 0.0},
            "remote": dict(REMOTE),
        }
        for name, value in changes.items():
            (judge if name in judge else judge["remote"])[name] = value
        return judge

    return section


KEY = "sk-very-secret-0123456789"


@pytest.fixture
def remote_judge(judge_section: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., "OpenAIJudge"]:
    """The real client at the service of the tests."""

    def make(**changes: object) -> "OpenAIJudge":
        parameters = build(JudgeParameters, judge_section(**changes), "judge")
        return JudgeConnection(tmp_path / "cache.jsonl", KEY).judge(parameters)

    return make
