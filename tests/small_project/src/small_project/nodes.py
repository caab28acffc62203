"""Nodes with the inputs and outputs of the real ones, and arithmetic in place of training.

The environment variable SMALL_FAIL (such as ``grpo:123``) makes an arm fail after two records,
SMALL_HANG makes it wait there (for SMALL_HANG_S seconds), SMALL_FILL ask for more memory than there is.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace


@dataclass(frozen=True)
class Record:
    iteration: int
    metrics: dict
    timing: dict
    samples: tuple = ()
    state: object = None


@dataclass(frozen=True)
class Weights:
    value: float

    def save_pretrained(self, directory):
        Path(directory, "adapter_config.json").write_text(json.dumps({"value": self.value}))


def make_base(source, preferences, prepare_seed):
    rows = [{"prompt_id": str(i), "prompt": f"prompt {i}"} for i in range(preferences["sample_size"] % 7 + 3)]
    return Weights(prepare_seed), rows


def split(rows):
    return rows[1:], rows[:1], rows[1:], rows[:1], {"data/rows_kept": len(rows)}


def make_records(prompts):
    return [{"messages": [row["prompt"]]} for row in prompts]


def train_sft(base_model, sft, prepare_seed, run_log, checkpoints):
    values = {0: 2.0 * sft["learning_rate"], 1: 1.0}
    _train("sft", prepare_seed, sft, 1, lambda i: {"sft/loss": values[i]}, run_log, checkpoints)
    return Weights(prepare_seed + sft["learning_rate"]), run_log.rows("history")


def merge_sft(sft_adapter, history, genrm_train, run_log):
    assert [row["iteration"] for row in history[:2]] == [0, 1]  # and the line of a merge that was shot after it
    run_log.append(Record(2, {"sft/merge_max_logit_diff": 0.25}, {}))
    return Weights(json.loads(Path(sft_adapter, "adapter_config.json").read_text())["value"])


def train_reward_model(sft_merged_model, preferences_train, prepare_seed, run_log):
    run_log.append(Record(0, {"reward_model/accuracy": 0.75}, {}))
    return Weights(prepare_seed), run_log.rows("history")


def answer(model, prompts):
    return [{**row, "response": "yes", "reward_model_score": 0.5} for row in prompts]


def _train(name, seed, settings, last, metrics, run_log, checkpoints):
    """Records from 0 to ``last``, with what the environment does to this one after record 1."""
    from gemma_alignment.schemas import TrainingState
    from gemma_alignment.training.checkpoints import train_on

    def records(start):
        for i in range(0 if start is None else start.iteration + 1, last + 1):
            state = TrainingState(i, {}, {})
            yield Record(i, metrics(i), {"budget/seconds": 0.001}, ({"response": "é"},), state)
            if i == 1 and os.environ.get("SMALL_FAIL") == f"{name}:{seed}":
                raise ArithmeticError(f"the loss is not finite{os.environ.get('SMALL_FAIL_WITH', '')}")
            if i == 1 and f"{name}:{seed}" in os.environ.get("SMALL_HANG", "").split(","):
                time.sleep(float(os.environ.get("SMALL_HANG_S", "60")))
            if i == 1 and os.environ.get("SMALL_FILL") == f"{name}:{seed}":
                _fill()

    schedule = SimpleNamespace(
        checkpoint_every=settings["checkpoint_every"], checkpoints_kept=settings["checkpoints_kept"]
    )
    train_on(checkpoints, run_log, schedule, records)


def _fill():
    """Ask for more memory than the process may have."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), resource.RLIM_INFINITY))
    held = []
    while True:
        held.append(bytearray(1 << 24))


def train(method, sft, reward_model, prompts, settings, shared, runtime, seed, run_log, checkpoints):
    def metrics(i):
        return {"reward/score_mean": seed + i / 8, "policy/kl_to_reference": 0.5}

    _train(method, seed, shared, shared["num_iterations"], metrics, run_log, checkpoints)
    return Weights(seed), *(run_log.rows(kind) for kind in ("history", "timing", "samples"))


def judge(responses, run_cards, connection, evaluation, settings, *finished):
    return [{"run": key, "rows": len(load())} for key, load in sorted(responses.items())]


def compare(histories, judgements, protocol, *finished):
    numbers = {key: len(load()) for key, load in histories.items()}
    summary = {"evaluation/win_rate": 0.5, "evaluation/cohens_d": None}
    return {"histories": numbers, "judged": len(judgements)}, summary


def render(comparison):
    return f"<html>{len(comparison['histories'])}</html>"
