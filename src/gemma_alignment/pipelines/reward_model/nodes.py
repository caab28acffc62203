"""Nodes of the reward model."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.pipelines.models import open_base, prepare

Rows = Sequence[Mapping[str, Any]]


def _pairs(chat: Any, rows: Rows, drop_equal_scores: bool) -> list[tuple[list[int], list[int], list[int]]]:
    return [
        (
            chat.encode_prompt(row["prompt"]),
            chat.encode_response(row["chosen"][-1]["content"]),
            chat.encode_response(row["rejected"][-1]["content"]),
        )
        for row in rows
        if not (drop_equal_scores and row["score_chosen"] == row["score_rejected"])
    ]


def _normalizer(
    model: Any, chat: Any, prompts: Rows, settings: Any, rollout_settings: Any, seed: int
) -> dict[str, float]:
    """Mean and sd of the raw score over the SFT model's own responses to training prompts."""
    from gemma_alignment.rollout.experience import rollout, score
    from gemma_alignment.training.seeding import generator

    texts = [prompts[i]["prompt"] for i in range(min(settings.normalizer_prompts, len(prompts)))]
    found = rollout(model, chat, texts, 1, rollout_settings, generator(seed, "normalizer"), "reference")
    raw = score(model, found.sequences, found.ended, (0.0, 1.0), 0.0, settings.microbatch_size).double()
    return {"mean": float(raw.mean()), "sd": max(1e-6, float(raw.std(correction=0))), "responses": float(len(raw))}


def train_reward_model(
    sft_merged_model: str, preferences_train: Rows, preferences_eval: Rows, prompts_train: Rows,
    modeling: dict[str, Any], runtime: dict[str, Any], reward_model: dict[str, Any], rollout: dict[str, Any],
    prepare_seed: int, run_log: Any,
) -> tuple[Any, list[dict[str, Any]]]:  # fmt: skip
    """Train adapter and head on preference pairs, measure held-out accuracy, fix the normaliser.

    Returns: the reward model (adapter, head, normaliser) and the history.
    """
    from gemma_alignment.modeling.saving import saved_adapter
    from gemma_alignment.parameters.training import RewardModelParameters, RolloutParameters
    from gemma_alignment.schemas import UpdateRecord
    from gemma_alignment.statistics.intervals import wilson
    from gemma_alignment.training import preference

    settings = build(RewardModelParameters, reward_model, "reward_model")
    model, chat = open_base(sft_merged_model, modeling, prepare(runtime), prepare_seed)
    model.add("reward")
    pairs = _pairs(chat, preferences_train, settings.drop_equal_scores)
    step = 0
    for record in preference.train_reward_model(model, pairs, settings, chat.pad_id, prepare_seed):
        run_log.append(record)
        step = record.iteration
    held_out = _pairs(chat, preferences_eval, settings.drop_equal_scores)
    margins = preference.margins(model, held_out, chat.pad_id, settings.microbatch_size)
    right = sum(margin > 0 for margin in margins)
    low, high = wilson(right, len(margins))
    found = {
        "reward_model/accuracy": right / max(1, len(margins)),
        "reward_model/accuracy_low": low,
        "reward_model/accuracy_high": high,
        "reward_model/eval_pairs": float(len(margins)),
    }
    metrics = {key: value for key, value in found.items() if value is not None}
    run_log.append(UpdateRecord(step + 1, metrics, {}))
    numbers = _normalizer(
        model, chat, prompts_train, settings, build(RolloutParameters, rollout, "rollout"), prepare_seed
    )
    return saved_adapter(model, "reward", sft_merged_model, numbers), run_log.rows("history")
