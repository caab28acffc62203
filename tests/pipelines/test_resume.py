"""A run that is interrupted and goes on is, byte for byte, the run that was never interrupted.

The nodes are the real ones, on a toy base. A process that is to be shot is forked and shoots itself with
SIGKILL inside the function that a test names: nothing is cleaned up, as when the power goes.
"""

import itertools
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy
import yaml
from killing import at_call, die, shot

from gemma_alignment.datasets import atomic, checkpoint_store
from gemma_alignment.datasets.checkpoint_store import CheckpointStore, saved
from gemma_alignment.datasets.run_log import RunLog
from gemma_alignment.errors import RunInterrupted, UserError
from gemma_alignment.modeling.saving import SavedModel, saved_adapter
from gemma_alignment.pipelines import group, several
from gemma_alignment.pipelines.arm_nodes import answer_with_policy, train_policy
from gemma_alignment.training import policy_optimization

CONF = Path(__file__).parents[2] / "conf" / "base"
ITERATIONS = 3
SHAPE = SimpleNamespace(hidden_size=64, layers=1, heads=2, intermediate_size=64, max_positions=256)
PROMPTS = [{"prompt_id": f"p{i}", "prompt": text} for i, text in enumerate(toy.PROMPTS)]
PAIRS = [{"prompt_id": "h0", "prompt": toy.PROMPTS[0], "chosen": [{"role": "assistant", "content": "apple and pear"}]}]
SMALL = {
    "num_iterations": ITERATIONS, "responses_per_iteration": 8, "minibatch_size": 4, "microbatch_size": 4,
    "learning_rate": 5e-3, "eval_every": 2, "eval_prompts": 2, "checkpoint_every": 2,
}  # fmt: skip


def section(name):
    file = {"runtime": "modeling"}.get(name, name if name in ("ppo", "grpo", "modeling") else "policy_optimization")
    return yaml.safe_load((CONF / f"parameters_{file}.yml").read_text(encoding="utf-8"))[name]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Directories of a toy base and of a reward model on it."""
    folder = tmp_path_factory.mktemp("base")
    plain = toy.tiny_gemma(SHAPE, len(toy.chat().tokenizer), 0)
    SavedModel(plain, toy.chat().tokenizer).save_pretrained(str(folder / "model"))
    shared = toy.SharedBase(plain, toy.LORA, 0)
    shared.add("reward")
    toy.disturb(shared, "reward")
    numbers = {"mean": 0.0, "sd": 1.0}
    saved_adapter(shared, "reward", str(folder / "model"), numbers).save_pretrained(str(folder / "reward"))
    return folder


class Arm:
    """One run directory, filled by the nodes of an arm."""

    def __init__(self, base, directory, method, quantization="none"):
        self.base, self.directory, self.method = base, directory, method
        self.checkpoints = directory / "checkpoints"
        self.modeling = {**section("modeling"), "quantization": quantization}
        self.modeling["lora"] = {**self.modeling["lora"], "rank": 4}
        self.shared = {**section("policy_optimization"), **SMALL}
        self.rollout = {**section("rollout"), "max_new_tokens": 6}

    def train(self, resume=False, train=train_policy, pairs=PAIRS):
        how = {**section(self.method), **({"group_size": 4} if self.method != "ppo" else {})}
        adapter, *_ = train(
            self.method, str(self.base / "model"), str(self.base / "reward"), PROMPTS, PROMPTS[:2], pairs, how,
            self.shared, self.rollout, section("kl_control"), section("score_normalization"), self.modeling,
            section("runtime"), {"source": "jsonl"}, 1, 42, "no base", "no adapter", RunLog(self.directory),
            CheckpointStore(self.checkpoints, resume),
        )  # fmt: skip
        adapter.save_pretrained(str(self.directory / "policy"))
        answers = several.shared_out_in_shares(answer_with_policy)(
            self.method, str(self.base / "model"), str(self.base / "reward"), str(self.directory / "policy"), PROMPTS,
            self.shared, self.rollout, self.modeling, section("runtime"), {"source": "jsonl"}, 1, "no base",
            "no adapter",
        )  # fmt: skip
        (self.directory / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        return self

    def rows(self, name):
        return [json.loads(line) for line in (self.directory / f"{name}.jsonl").read_text().splitlines()]

    def kept(self):
        """What must be equal, byte for byte."""
        names = ("history.jsonl", "samples.jsonl", "responses.jsonl", "policy/adapter_model.safetensors")
        return {name: (self.directory / name).read_bytes() for name in names}

    def last_checkpoint(self):
        """The bytes of its tensors: what the next iteration would start from, the critic's included."""
        folder = self.checkpoints / f"iteration={saved(self.checkpoints)[-1]:06d}"
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    """Finished runs by method and quantisation, each made once."""
    made = {}

    def get(method, quantization="none"):
        if (method, quantization) not in made:
            arm = Arm(base, tmp_path_factory.mktemp("whole"), method, quantization)
            made[method, quantization] = arm.train()
        return made[method, quantization]

    return get


def assert_equal(found, expected):
    assert found.kept() == expected.kept()
    assert found.last_checkpoint() == expected.last_checkpoint()


@pytest.mark.parametrize(
    ("method", "quantization", "done"),
    [*(("ppo", "none", done) for done in range(ITERATIONS + 1)), ("grpo", "none", 1), ("ppo", "nf4", 1)],
)
def test_going_on_after_any_iteration_equals_never_having_stopped(
    base, uninterrupted, tmp_path, monkeypatch, method, quantization, done
):
    """Stopped in the middle of the update of iteration ``done`` + 1, or after the last."""
    arm = Arm(base, tmp_path, method, quantization)

    def stop():
        raise RunInterrupted(signal.SIGTERM)

    roles = 2 if method == "ppo" else 1  # each is clipped once in each of an iteration's two steps
    with monkeypatch.context() as patch:
        at_call(patch, policy_optimization, "clipped", (2 * done + 1) * roles + 1, stop)
        if done < ITERATIONS:
            with pytest.raises(RunInterrupted):
                arm.train()
        else:
            arm.train()
    assert saved(arm.checkpoints)[-1] == done
    assert_equal(arm.train(resume=True), uninterrupted(method, quantization))


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        pytest.param(policy_optimization, "clipped", 12, id="between the steps of an iteration"),
        pytest.param(policy_optimization, "evaluate_policy", 2, id="in an evaluation"),
        pytest.param(RunLog, "_write", 11, id="between the line files"),
        pytest.param(Path, "write_bytes", 9, id="in the middle of a checkpoint"),
        pytest.param(atomic, "_swap", 5, id="before a checkpoint gets its name"),
        pytest.param(checkpoint_store, "discard", 2, id="before an old checkpoint is removed"),
    ],
)
def test_a_run_that_is_shot_goes_on_as_if_nothing_had_happened(
    base, uninterrupted, tmp_path, monkeypatch, owner, name, number
):
    arm = Arm(base, tmp_path, "ppo")
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, number, die)
        assert shot(arm.train) == signal.SIGKILL
    assert_equal(arm.train(resume=True), uninterrupted("ppo"))
    assert [path.name for path in arm.checkpoints.glob(".*")] == []


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_costs_a_warning_and_the_end_is_the_same(
    base, uninterrupted, tmp_path, monkeypatch, caplog, damage
):
    arm = Arm(base, tmp_path, "ppo")
    with monkeypatch.context() as patch:
        at_call(patch, policy_optimization, "clipped", 9, die)
        assert shot(arm.train) == signal.SIGKILL
    assert saved(arm.checkpoints) == [0, 2]
    path = arm.checkpoints / "iteration=000002" / "critic_optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-5])
    assert_equal(arm.train(resume=True), uninterrupted("ppo"))
    assert "critic_optimizer.safetensors does not match its checksum" in caplog.text


def test_a_number_that_is_not_finite_leaves_the_last_good_state(base, uninterrupted, tmp_path, monkeypatch):
    """The gradient is bad in iteration 2, whose predecessor was not due; mended, the run goes on from there."""
    arm = Arm(base, tmp_path, "grpo")
    real, calls = policy_optimization.clipped, []

    def poisoned(parameters, *args):
        calls.append(parameters)
        if len(calls) == 4:
            next(iter(parameters.values())).grad[0, 0] = float("nan")
        return real(parameters, *args)

    with monkeypatch.context() as patch:
        patch.setattr(policy_optimization, "clipped", poisoned)
        with pytest.raises(UserError, match=r"grpo, iteration 2, policy, prompts? p\d.*: the gradient of .* is not"):
            arm.train()
    assert saved(arm.checkpoints) == [0, 1]
    assert_equal(arm.train(resume=True), uninterrupted("grpo"))


def test_seconds_are_those_of_all_attempts(base, tmp_path, monkeypatch):
    """By a clock that a look moves on by a second, so an iteration takes two of them."""
    ticks = itertools.count()
    monkeypatch.setattr(policy_optimization.time, "perf_counter", lambda: float(next(ticks)))
    arm = Arm(base, tmp_path, "grpo")
    with monkeypatch.context() as patch:
        at_call(patch, policy_optimization, "clipped", 3, die)
        assert shot(arm.train) == signal.SIGKILL
    assert [row.get("budget/seconds") for row in arm.rows("timing")] == [None, 2.0]
    assert saved(arm.checkpoints) == [0]
    arm.train(resume=True)
    assert [row.get("budget/seconds") for row in arm.rows("timing")] == [None, 4.0, 6.0, 8.0]


@pytest.fixture
def in_two(monkeypatch):
    """The node that trains, in two processes; what the second one does first may be changed by a variable."""
    monkeypatch.setenv(several.PROCESSES, "2")
    return several.shared_out(train_policy)


def assert_like(found, expected):
    """The same history, up to rounding; a prompt that both have rows of is computed twice."""
    for one, other in zip(found.rows("history"), expected.rows("history"), strict=True):
        tolerances = {key: 0.3 if key == "budget/flops" else 1e-3 for key in other}
        assert one == {key: pytest.approx(value, rel=tolerances[key], abs=1e-4) for key, value in other.items()}


@pytest.mark.parametrize("sharding", ["none", "base"])
def test_two_processes_leave_the_history_of_one_and_one_goes_on_where_two_stopped(
    base, tmp_path, monkeypatch, in_two, sharding
):
    """Of two the second one is shot: the first says so, with its last good state kept. The base may be in shares."""
    pairs, weights = 2 * PAIRS, {"none": "merged", "base": "adapter"}[sharding]

    def arm_in(name, sharding=sharding):
        arm = Arm(base, tmp_path / name, "grpo")
        arm.modeling["sharding"], arm.rollout["weights"] = sharding, weights
        return arm

    alone = arm_in("alone", "none").train(pairs=pairs)
    together = arm_in("together").train(train=in_two, pairs=pairs)
    assert_like(together, alone)
    said = [[row["response"] for row in arm.rows("responses")] for arm in (together, alone)]
    assert said[0] == said[1]
    names = [sorted(path.name for path in arm.directory.iterdir()) for arm in (together, alone)]
    assert names[0] == names[1]
    started = []

    def shoot():
        started[0].kill()

    popen = group.subprocess.Popen
    monkeypatch.setattr(group.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    arm = arm_in("shot")
    with monkeypatch.context() as patch:
        at_call(patch, policy_optimization, "clipped", 4, shoot)
        with pytest.raises(UserError, match=r"process 2 of the 2 of this run has ended \(status -9\)"):
            arm.train(train=in_two, pairs=pairs)
    assert saved(arm.checkpoints) == [0, 1]
    assert_like(arm_in("shot", "none").train(resume=True, pairs=pairs), alone)


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv(several.PROCESSES, value)
    with pytest.raises(UserError, match=r"GEMMA_ALIGNMENT_PROCESSES is .* but must be a number of processes from 1"):
        several.wanted()


def test_more_processes_than_gpus_are_refused(base, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv(several.PROCESSES, "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="3 processes of a run need a GPU each, and this machine has 2"):
        several.shared_out(lambda *inputs: None)("grpo", None, None)
