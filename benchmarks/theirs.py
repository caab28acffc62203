"""A worker of TRL's: the same job with its trainers, held at the end of a lap until the next one is asked for.

    python benchmarks/theirs.py '{"job": "grpo", "model": FOLDER}'

Knows nothing of the package: it runs in an environment of its own. GRPO, SFT and reward model are in every version; PPO
is in 1.12.0 and not in 1.16.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from laps import Laps
from peft import LoraConfig, get_peft_model, inject_adapter_in_model  # noqa: F401
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaForCausalLM,  # noqa: F401  what is imported here counts as imports
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

STEPS = {"grpo": 2, "ppo": 1, "sft": 10, "reward_model": 10}
"""Optimizer steps, as the trainer counts them, of a lap: two minibatches, one PPO batch, ten batches."""
RESPONSES, TOKENS, RANK = 96, 48, 16
ENDING = "<end_of_turn>"


class Held(TrainerCallback):
    """Stops the trainer after every lap until the next is asked for."""

    def __init__(self, laps: Laps, steps: int) -> None:
        self._laps, self._steps = laps, steps
        self.trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._laps.begin(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step % self._steps == 0:
            lengths = getattr(self.trainer, "_metrics", {}).get("train", {}).get("completions/mean_length", [])
            self._laps.end(length=float(lengths[-1]) if lengths else None)
            self._laps.begin()


def common(steps: int, batch: int) -> dict[str, Any]:
    """What every trainer is told: fp32 on the CPU, no checkpointing, no logging, no saving."""
    return {
        "output_dir": tempfile.mkdtemp(prefix="trl-"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": 1,
        "learning_rate": 1e-5, "max_grad_norm": 1.0, "per_device_train_batch_size": batch,
        "dataloader_pin_memory": False, "max_steps": steps,
    }  # fmt: skip


def lora(task: str) -> LoraConfig:
    saved = ["score"] if task == "SEQ_CLS" else None
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=task, modules_to_save=saved)


def scorer(folder: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


def grpo(folder: str, data: list[dict[str, Any]], tokenizer: Any, held: Held, _: dict[str, Any]) -> Any:
    args = GRPOConfig(
        **common(10**6, RESPONSES // 2), steps_per_generation=2, num_generations=6, beta=0.05, loss_type="grpo",
        scale_rewards="none", max_completion_length=TOKENS, temperature=1.0, num_iterations=1, epsilon=0.2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return GRPOTrainer(
        model=model, reward_funcs=scorer(folder).requires_grad_(False).eval(), args=args,
        train_dataset=Dataset.from_list([{"prompt": row["asked"]} for row in data]), processing_class=tokenizer,
        reward_processing_classes=tokenizer, peft_config=lora("CAUSAL_LM"), callbacks=[held],
    )  # fmt: skip


def ppo(folder: str, data: list[dict[str, Any]], tokenizer: Any, held: Held, asked: dict[str, Any]) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    told = common(-1, RESPONSES)
    args = PPOConfig(
        **told, total_episodes=RESPONSES * 10**5, num_ppo_epochs=1, num_mini_batches=2, response_length=TOKENS,
        local_rollout_forward_batch_size=RESPONSES, stop_token="eos", missing_eos_penalty=1.0, temperature=1.0,  # noqa: S106
        kl_coef=0.05, num_sample_generations=0, cliprange=0.2, lam=0.95, vf_coef=0.5,
    )  # fmt: skip
    value = scorer(folder)
    if asked.get("critic") == "adapter":  # as many trainable parameters as our critic
        value = inject_adapter_in_model(lora("SEQ_CLS"), value)
        for name, parameter in value.named_parameters():
            parameter.requires_grad_("lora_" in name or name.startswith("score"))
    return PPOTrainer(
        args=args, processing_class=tokenizer, ref_model=None, reward_model=scorer(folder).requires_grad_(False).eval(),
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in data]),
        eval_dataset=Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in data[:96]]),
        peft_config=lora("CAUSAL_LM"), callbacks=[held],
    )  # fmt: skip


def sft(folder: str, data: list[dict[str, Any]], tokenizer: Any, held: Held, _: dict[str, Any]) -> Any:
    rows = [
        {
            "input_ids": row["prompt_ids"] + row["chosen"],
            "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["chosen"]),
        }
        for row in data
    ]
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=SFTConfig(**common(10**6, 32), completion_only_loss=True, packing=False),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora("CAUSAL_LM"),
        callbacks=[held],
    )  # fmt: skip


def reward_model(folder: str, data: list[dict[str, Any]], tokenizer: Any, held: Held, _: dict[str, Any]) -> Any:
    rows = [{f"{side}_ids": row["prompt_ids"] + row[side] for side in ("chosen", "rejected")} for row in data]
    return RewardTrainer(
        model=scorer(folder), args=RewardConfig(**common(10**6, 32)), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=lora("SEQ_CLS"), callbacks=[held],
    )  # fmt: skip


def main() -> None:
    laps = Laps()
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    data = json.loads(Path(asked["model"], "data.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.eos_token = ENDING  # Gemma's answers end with the turn
    held = Held(laps, STEPS[asked["job"]])
    make = {"grpo": grpo, "ppo": ppo, "sft": sft, "reward_model": reward_model}[asked["job"]]
    held.trainer = make(asked["model"], data, tokenizer, held, asked)
    held.trainer.train()


if __name__ == "__main__":
    main()
