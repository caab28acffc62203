"""What several tests of the judge need: the shared verdicts and a judge that follows a script."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from gemma_alignment.judging.client import Reply, Request

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


def verdict(slot: str) -> str:
    return json.dumps({"reason": "because", "verdict": slot})


@pytest.fixture
def longer_wins() -> Callable[[Request, int], str]:
    """The verdict of a judge that looks at length alone."""

    def say(request: Request, attempt: int) -> str:
        first, second = len(request.answer_1), len(request.answer_2)
        return verdict("1" if first > second else "2" if second > first else "tie")

    return say
