"""The whole study on preferences that are no generated world: no gold score, no verdicts, and verdicts later."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_alignment.fingerprints import Record

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("GEMMA_ALIGNMENT_SHARED", ROOT / ".." / "shared"))
WORDS = "the a river stone garden slowly answer question found under over bright old new was is it of and".split()

pytestmark = [pytest.mark.pipeline, pytest.mark.cli]


def sentence(chance, least=4, most=14):
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(least, most))).capitalize() + "."


def written(path, count=60):
    """Preference rows of invented sentences, some with what real text has: quotes, accents, line breaks."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            prompt = f"{sentence(chance)} Why “{chance.choice(WORDS)}”, naïve reader {number}?"
            chosen, rejected = f"{sentence(chance)}\n{sentence(chance)}", sentence(chance, 1, 5)
            row = {
                "prompt": prompt,
                "prompt_id": f"{number:04}",
                **{
                    side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
                    for side, text in (("chosen", chosen), ("rejected", rejected))
                },
                "score_chosen": 7.5,
                "score_rejected": 3.0,
            }
            lines.write(json.dumps({**row, "messages": row["chosen"]}, ensure_ascii=False) + "\n")
    return path


class Project:
    """A copy of the configuration, run by the real package in processes of their own."""

    def __init__(self, root, path):
        self.root, self.data = root, root / "data" / "real"
        self._given = f"preferences.source=jsonl,preferences.path={path},data_root={self.data}"
        root.mkdir()
        shutil.copytree(ROOT / "conf", root / "conf", ignore=shutil.ignore_patterns("local"))
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "src").mkdir()

    def command(self, *words, more="", **environment):
        done = subprocess.run(
            [sys.executable, "-m", "kedro", *words, "--env=test", "--params", self._given + more],
            cwd=self.root, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **environment},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        assert "Traceback" not in done.stdout

    def rows(self, path):
        return [json.loads(line) for line in (self.data / path).read_text(encoding="utf-8").splitlines()]

    @property
    def report(self):
        return (self.data / "08_reporting" / "report.html").read_text(encoding="utf-8")

    @property
    def comparison(self):
        return json.loads((self.data / "08_reporting" / "comparison.json").read_text(encoding="utf-8"))

    def trained(self):
        """What no later command may touch: every file of models and runs."""
        folders = [self.data / "06_models", *(self.data / "07_model_output" / name for name in ("sft", "ppo", "grpo"))]
        return {path: path.stat().st_mtime_ns for one in folders for path in one.rglob("*") if path.is_file()}


def check_study(project):
    """Nothing says gold, nothing is judged, and the report says how it can be."""
    for arm in ("ppo", "grpo"):
        folder = Path("07_model_output", arm, "seed=42")
        assert Record.read(project.data / folder).status == "finished"
        history, responses = project.rows(folder / "history.jsonl"), project.rows(folder / "responses.jsonl")
        assert len(history) == 4 and responses
        assert "eval/score_mean" in history[-1]
        assert not [key for row in history + responses for key in row if "gold" in key]
    assert project.rows("07_model_output/judgements.jsonl") == []
    comparison = project.comparison
    assert comparison["judge"]["judged"] is False
    assert not [name for name in comparison["metrics"] if "gold" in name]
    assert "Not judged" in project.report
    assert "without training again" in project.report
    assert "kedro run --pipeline=evaluation --params judge.kind=openai" in project.report


def judge_later(project, kind, more="", **environment):
    """Verdicts for the answers on disk; what was trained stays as it is."""
    before = project.trained()
    project.command("run", "--pipelines=evaluation,reporting", more=f",judge.kind={kind}{more}", **environment)
    assert project.trained() == before
    judgements = project.rows("07_model_output/judgements.jsonl")
    assert judgements and all(row["verdict"] in ("first", "second", "tie") for row in judgements)
    assert project.comparison["judge"]["judged"] is True
    assert project.comparison["judge"]["kind"] == kind
    assert "Not judged" not in project.report
    return judgements


@pytest.fixture
def service(monkeypatch):
    """A service of chat completions on the loopback; it calls every pair a tie."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "judging")
    from chat_service import ChatService, completion, verdict

    running = ChatService()
    running.script = lambda n, payload: completion(verdict("tie"))
    yield running
    running.close()


def test_invented_sentences_go_through_the_whole_study_and_are_judged_later(tmp_path, service):
    project = Project(tmp_path / "project", written(tmp_path / "preferences.jsonl"))
    project.command("study", "--seeds", "42")
    check_study(project)
    remote = f",judge.base_url={service.url},judge.remote.spend_cap_usd=null"
    first = judge_later(project, "openai", remote, OPENAI_API_KEY="test")
    assert service.received
    kept = tmp_path / "verdicts.jsonl"
    shutil.copy(project.data / "07_model_output" / "judgements.jsonl", kept)
    again = judge_later(project, "recorded", f",judge.recorded_path={kept}")
    assert [row["verdict"] for row in again] == [row["verdict"] for row in first]


@pytest.mark.slow
def test_real_preferences_go_through_the_whole_study(tmp_path):
    path = SHARED / "data" / "preferences_real.jsonl"
    if not path.is_file():
        pytest.skip(f"no real preferences at {path}")
    project = Project(tmp_path / "project", path.resolve())
    project.command("study")
    check_study(project)
    assert len(project.rows("01_raw/preferences.jsonl")) == 1157
    reasons = [row["reason"] for row in project.rows("02_intermediate/rejected_rows.jsonl")]
    assert sum("exact repeat" in reason for reason in reasons) == 30
