"""A worker of ours: one iteration of an arm, or ten steps of SFT or of the reward model, a lap.

    python benchmarks/ours.py '{"job": "grpo", "model": FOLDER, "set": {"rollout.weights": "merged"}}'

Everything comes from ``conf/base`` but what ``set`` changes, by the names that ``--params`` knows.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from laps import Laps, resident
from peft import LoraConfig, get_peft_model  # noqa: F401  what is imported here counts as imports
from switches import FUNCTIONS
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaForCausalLM  # noqa: F401

from gemma_alignment.config import build
from gemma_alignment.dotted import merged, nested
from gemma_alignment.parameters import training as p
from gemma_alignment.parameters.rollout import RolloutParameters
from gemma_alignment.pipelines.models import open_base
from gemma_alignment.pipelines.views import View
from gemma_alignment.training.kl_control import KLController
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.policy_evaluation import HeldOut
from gemma_alignment.training.policy_optimization import Run, optimize
from gemma_alignment.training.preference import train_reward_model
from gemma_alignment.training.score_normalization import score_normalizer
from gemma_alignment.training.supervised import train_supervised

CONF = Path(__file__).parents[1] / "conf" / "base"
FOREVER = 10**6
STEPS = 10
"""Optimizer steps of SFT and reward model in a lap."""
COMMON = {
    "policy_optimization.num_iterations": FOREVER, "policy_optimization.eval_every": FOREVER,
    "policy_optimization.learning_rate": 1e-5, "policy_optimization.critic_learning_rate": 1e-5,
    "kl_control.schedule": [0.05], "kl_control.max_rise": 0.0, "kl_control.max_fall": 0.0,
    "sft.epochs": FOREVER, "sft.log_every": STEPS, "sft.checkpoint_every": STEPS,
    "reward_model.epochs": FOREVER, "reward_model.log_every": STEPS, "reward_model.checkpoint_every": STEPS,
    "sft.learning_rate": 1e-5, "reward_model.learning_rate": 1e-5,
}  # fmt: skip
"""96 responses of up to 48 tokens, two minibatches and LoRA of rank 16 are the defaults. The rates are low, so that the
work of a lap does not drift with what was learned."""


def parameters(changed: dict[str, Any]) -> dict[str, Any]:
    """``conf/base`` with what is changed."""
    tree: dict[str, Any] = {}
    for path in sorted(CONF.glob("parameters_*.yml")):
        tree = merged(tree, yaml.safe_load(path.read_text()) or {})
    return merged(tree, nested({**COMMON, **changed}))


def arm(
    method: str, model: Any, chat: Any, data: Sequence[dict[str, Any]], tree: dict[str, Any], off: Sequence[str] = ()
) -> Iterator[Any]:
    """The loop of an arm with a fresh reward model of the same base, after the evaluation that it begins with.

    ``off``: levers of ``switches.FUNCTIONS`` that are switched off.
    """
    how = build(METHODS[method], tree[method], method)
    shared = build(p.PolicyOptimizationParameters, tree["policy_optimization"], "policy_optimization")
    control = build(p.KLControlParameters, tree["kl_control"], "kl_control")
    for role in ("policy", "reward"):
        model.add(role)
    if how.needs_critic:
        model.add("critic", zero_head=True)
    one = data[0]
    run = Run(
        method=how, model=model, chat=chat, prompts=View(data, lambda row: (row["prompt"], row["prompt"])),
        held_out=HeldOut([("0", one["prompt"])], [(one["prompt_ids"], one["chosen"])], ["0"]),
        settings=shared, rollout=build(RolloutParameters, tree["rollout"], "rollout"),
        kl_controller=KLController(**{f.name: getattr(control, f.name) for f in fields(control)}),
        score_normalizer=score_normalizer(how.normalize_scores, 0.0, 1.0, 0.95), scale=(0.0, 1.0), seed=1,
        evaluation_seed=2, gold=None, peak_memory=lambda: resident("VmHWM"),
    )  # fmt: skip
    for lever in off:
        FUNCTIONS[lever](run)
    records = optimize(run)
    next(records)
    return records


def work(asked: dict[str, Any]) -> tuple[Iterator[Any], Any]:
    """What is to be done, a lap at a time, and the model that does it."""
    folder, tree = asked["model"], parameters(asked.get("set", {}))
    torch.set_num_threads(int(tree["runtime"]["threads"]))
    data = json.loads(Path(folder, "data.json").read_text())
    model, chat = open_base(folder, tree["modeling"], torch.device("cpu"), 0)
    if asked["job"] == "sft":
        model.add("policy")
        sft = build(p.SFTParameters, tree["sft"], "sft")
        return train_supervised(model, [(r["prompt_ids"], r["chosen"]) for r in data], sft, chat.pad_id, 1), model
    if asked["job"] == "reward_model":
        model.add("reward")
        settings = build(p.RewardModelParameters, tree["reward_model"], "reward_model")
        pairs = [(r["prompt_ids"], r["chosen"], r["rejected"]) for r in data]
        return train_reward_model(model, pairs, settings, chat.pad_id, 1), model
    return arm(asked["job"], model, chat, data, tree, asked.get("off", ())), model


def main() -> None:
    laps = Laps()
    records, model = work(json.loads(sys.argv[1]))
    while True:
        before = model.forward_flops()
        laps.begin(torch=torch.__version__)
        record = next(records)
        length = record.metrics.get("rollout/response_length")
        laps.end(flops=model.forward_flops() - before, length=length)


if __name__ == "__main__":
    main()
