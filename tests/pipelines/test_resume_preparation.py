"""Pre-training, SFT and reward model go on, byte for byte, as if they had never been interrupted.

The nodes are the real ones, on a toy base; see test_resume.py for the arms.
"""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy
import yaml
from killing import at_call, die, shot

from gemma_alignment.datasets.checkpoint_store import CheckpointStore, saved
from gemma_alignment.datasets.run_log import RunLog
from gemma_alignment.errors import RunInterrupted
from gemma_alignment.modeling.saving import SavedModel
from gemma_alignment.pipelines.data_processing.nodes import pretrain_base, to_genrm_record
from gemma_alignment.pipelines.reward_model.nodes import train_reward_model
from gemma_alignment.pipelines.sft.nodes import merge_sft, train_sft
from gemma_alignment.training import course, preference, pretraining, supervised

CONF = Path(__file__).parents[2] / "conf" / "base"
SHAPE = SimpleNamespace(hidden_size=64, layers=1, heads=2, intermediate_size=64, max_positions=256)
STEPS = 4
SMALL = {"batch_size": 2, "microbatch_size": 2, "log_every": 1, "checkpoint_every": 2}
ROWS = [
    {
        "prompt_id": f"p{i}", "prompt": toy.PROMPTS[i % len(toy.PROMPTS)], "score_chosen": 7.0, "score_rejected": 3.0,
        "chosen": [{"content": "apple and pear"}], "rejected": [{"content": "a song for tools"}],
    }
    for i in range(2 * STEPS)
]  # fmt: skip
GENRM = [to_genrm_record(row) for row in ROWS]


def section(name, file):
    return yaml.safe_load((CONF / f"parameters_{file}.yml").read_text(encoding="utf-8"))[name]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of a toy base."""
    folder = tmp_path_factory.mktemp("base")
    plain = toy.tiny_gemma(SHAPE, len(toy.chat().tokenizer), 0)
    SavedModel(plain, toy.chat().tokenizer).save_pretrained(str(folder))
    return str(folder)


class Training:
    """One stage that trains before the arms, in a directory of its own."""

    def __init__(self, name, base, directory):
        self.name, self.base, self.directory = name, base, directory
        self.checkpoints = directory / "checkpoints"
        self.log = None

    def train(self, resume=False):
        self.log = RunLog(self.directory)
        made, _ = getattr(self, f"_{self.name}")(self.log, CheckpointStore(self.checkpoints, resume))
        made.save_pretrained(str(self.directory / "made"))
        return self

    def _pretraining(self, *handles):
        settings = {**section("pretraining", "data_processing"), "steps": STEPS, "log_every": 1, "checkpoint_every": 2}
        shape = {**section("tiny_model", "data_processing"), "hidden_size": 64, "layers": 1, "intermediate_size": 64}
        return pretrain_base(
            ROWS, self.base, shape, settings, section("world", "data_processing"), {"source": "jsonl"},
            section("modeling", "modeling"), section("runtime", "modeling"), 1, *handles,
        )  # fmt: skip

    def _sft(self, *handles):
        settings = {**section("sft", "sft"), **SMALL, "genrm_share": 0.0}
        return train_sft(
            self.base, ROWS, ROWS[:2], GENRM, section("modeling", "modeling"), section("runtime", "modeling"), settings,
            1, *handles,
        )  # fmt: skip

    def _reward_model(self, *handles):
        settings = {**section("reward_model", "reward_model"), **SMALL, "epochs": 1, "normalizer_prompts": 2}
        rollout = {**section("rollout", "policy_optimization"), "max_new_tokens": 4}
        return train_reward_model(
            self.base, ROWS, ROWS[:3], ROWS[:2], section("modeling", "modeling"), section("runtime", "modeling"),
            settings, rollout, 1, *handles,
        )  # fmt: skip

    def kept(self):
        """What must be equal, byte for byte: the lines, what was made, and the last state with its moments."""
        last = self.checkpoints / f"iteration={saved(self.checkpoints)[-1]:06d}"
        paths = [self.directory / "history.jsonl", *(self.directory / "made").iterdir(), *last.glob("*.safetensors")]
        return {path.name: path.read_bytes() for path in sorted(paths) if path.name != "adapter_config.json"}


STAGES = {"pretraining": pretraining, "sft": supervised, "reward_model": preference}
"""With the module whose ``guarded_step`` is called once a step."""


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    return {name: Training(name, base, tmp_path_factory.mktemp(name)).train().kept() for name in STAGES}


@pytest.mark.parametrize("done", range(STEPS))
@pytest.mark.parametrize("name", STAGES)
def test_going_on_after_any_step_equals_never_having_stopped(base, uninterrupted, tmp_path, monkeypatch, name, done):
    """Stopped in the middle of the step after ``done``: the state of the record before is saved."""
    training = Training(name, base, tmp_path)

    def stop():
        raise RunInterrupted(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(RunInterrupted):
        at_call(patch, STAGES[name], "guarded_step", done + 1, stop)
        training.train()
    assert saved(training.checkpoints)[-1:] == ([done] if done else [])
    assert training.train(resume=True).kept() == uninterrupted[name]
    assert len({*uninterrupted[name]}) >= 4


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_training_goes_on_from_its_end_without_a_step(base, uninterrupted, tmp_path, monkeypatch, name):
    training = Training(name, base, tmp_path).train()
    with monkeypatch.context() as patch:
        at_call(patch, STAGES[name], "guarded_step", 1, pytest.fail)
        assert training.train(resume=True).kept() == uninterrupted[name]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("owner", "function", "number"),
    [
        pytest.param(course, "copied", 3, id="after a step"),
        pytest.param(RunLog, "_write", 8, id="between the line files"),
        pytest.param(Path, "write_bytes", 6, id="in the middle of a checkpoint"),
    ],
)
def test_one_that_is_shot_goes_on_as_if_nothing_had_happened(
    base, uninterrupted, tmp_path, monkeypatch, name, owner, function, number
):
    training = Training(name, base, tmp_path)
    with monkeypatch.context() as patch:
        at_call(patch, owner, function, number, die)
        assert shot(training.train) == signal.SIGKILL
    assert training.train(resume=True).kept() == uninterrupted[name]


def test_what_comes_after_the_training_is_logged_once(base, tmp_path):
    """The merge of an attempt that was lost leaves a line, which the next attempt writes anew."""
    training = Training("sft", base, tmp_path).train()

    def merge():
        rows = training.log.rows("history")
        merge_sft(
            base, str(tmp_path / "made"), ROWS[:2], section("modeling", "modeling"), section("runtime", "modeling"), 1,
            training.log, rows,
        )  # fmt: skip
        return [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]

    before = merge()
    assert [row["iteration"] for row in before] == [1, 2, 3, 4, 5, 6]
    training.train(resume=True)
    assert merge() == before
