"""The nodes of an arm: train a policy, answer with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.pipelines.models import Start, gold_of, load_role, open_start, peak_memory_mb, prepare
from gemma_alignment.pipelines.views import View

Rows = Sequence[Mapping[str, Any]]


def _held_out(chat: Any, prompts: Rows, pairs: Rows, count: int) -> Any:
    """The first held-out prompts and chosen responses: the same for every arm and seed."""
    from gemma_alignment.training.policy_evaluation import HeldOut

    rows = [prompts[i] for i in range(min(count, len(prompts)))]
    chosen = [pairs[i] for i in range(min(count, len(pairs)))]
    return HeldOut(
        [(row["prompt_id"], row["prompt"]) for row in rows],
        [(chat.encode_prompt(r["prompt"]), chat.encode_response(r["chosen"][-1]["content"])) for r in chosen],
        [row["prompt_id"] for row in chosen],
    )


def train_policy(
    method_name: str, sft_merged_model: str, rm_model_bt: str, prompts_train: Rows, prompts_eval: Rows,
    preferences_eval: Rows, method: dict[str, Any], policy_optimization: dict[str, Any], rollout: dict[str, Any],
    kl_control: dict[str, Any], score_normalization: dict[str, Any], modeling: dict[str, Any],
    runtime: dict[str, Any], preferences: dict[str, Any], seed: int, prepare_seed: int, base_model: str,
    sft_adapter: str, run_log: Any, checkpoints: Any,
) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """Train a policy against the frozen reward model with the one loop, on from a checkpoint where there is one.

    Returns: the policy's adapter, its history, its timing, and sample responses.

    Raises:
        UserError: for parameters that do not fit together.
    """
    from gemma_alignment.modeling.saving import read_normalizer, saved_adapter
    from gemma_alignment.parameters import training as p
    from gemma_alignment.parameters.rollout import RolloutParameters
    from gemma_alignment.training.checkpoints import train_on
    from gemma_alignment.training.kl_control import KLController
    from gemma_alignment.training.methods import METHODS
    from gemma_alignment.training.policy_optimization import Run, optimize
    from gemma_alignment.training.score_normalization import score_normalizer

    how = build(METHODS[method_name], method, method_name)
    shared = build(p.PolicyOptimizationParameters, policy_optimization, "policy_optimization")
    control = build(p.KLControlParameters, kl_control, "kl_control")
    ema = build(p.ScoreNormalizationParameters, score_normalization, "score_normalization")
    try:
        shared.prompts_per_iteration(how.group_size)
    except ValueError as error:
        raise UserError(f"{method_name}: {error}") from error
    device = prepare(runtime)
    origin = Start(sft_merged_model, base_model, sft_adapter)
    model, chat = open_start(origin, modeling, device, seed, modeling["sharding"] == "base")
    model.add("policy")
    load_role(model, "reward", rm_model_bt, sft_merged_model)
    if how.needs_critic:
        model.add("critic", zero_head=True)
    mean, sd = read_normalizer(rm_model_bt)
    start_at = (mean, sd**2) if how.normalize_scores == "none" else (0.0, 1.0)  # scores come as (r - mean) / sd
    run = Run(
        method=how, model=model, chat=chat,
        prompts=View(prompts_train, lambda row: (row["prompt_id"], row["prompt"])),
        held_out=_held_out(chat, prompts_eval, preferences_eval, shared.eval_prompts),
        settings=shared, rollout=build(RolloutParameters, rollout, "rollout"),
        kl_controller=KLController(
            control.schedule, control.target, control.horizon, control.max_rise, control.max_fall, control.ceiling
        ),
        score_normalizer=score_normalizer(how.normalize_scores, *start_at, ema.decay),
        scale=(mean, sd), seed=seed, evaluation_seed=prepare_seed,
        gold=gold_of(preferences),
        peak_memory=lambda: peak_memory_mb(device),
    )  # fmt: skip
    train_on(checkpoints, run_log, shared, lambda start: optimize(run, start))
    return (
        saved_adapter(model, "policy", origin.base(modeling), method=method_name, seed=seed),
        *(run_log.rows(name) for name in ("history", "timing", "samples")),
    )


def answer_with_policy(
    method_name: str, sft_merged_model: str, rm_model_bt: str, policy: str, prompts_eval: Rows,
    policy_optimization: dict[str, Any], rollout: dict[str, Any], modeling: dict[str, Any], runtime: dict[str, Any],
    preferences: dict[str, Any], prepare_seed: int, base_model: str, sft_adapter: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """The policy's answers to every held-out prompt, with the same random numbers as the SFT model's."""
    from gemma_alignment.modeling import ranks
    from gemma_alignment.modeling.saving import read_normalizer
    from gemma_alignment.parameters.rollout import RolloutParameters
    from gemma_alignment.parameters.training import PolicyOptimizationParameters
    from gemma_alignment.training.policy_evaluation import answer
    from gemma_alignment.training.seeding import generator

    shared = build(PolicyOptimizationParameters, policy_optimization, "policy_optimization")
    origin = Start(sft_merged_model, base_model, sft_adapter)
    is_shared_out = modeling["sharding"] == "base" and ranks.count() > 1
    model, chat = open_start(origin, modeling, prepare(runtime), prepare_seed, is_shared_out)
    load_role(model, "policy", policy, origin.base(modeling), method_name)
    load_role(model, "reward", rm_model_bt, sft_merged_model)
    rows, _ = answer(
        model, chat, [(row["prompt_id"], row["prompt"]) for row in prompts_eval], role="policy",
        settings=build(RolloutParameters, rollout, "rollout"), scale=read_normalizer(rm_model_bt),
        penalty=shared.missing_eos_penalty, size=shared.microbatch_size,
        generator=generator(prepare_seed, "responses"), gold=gold_of(preferences),
        where=f"{method_name}, final answers",
    )  # fmt: skip
    return rows
