"""The one loop of every arm. It yields records and writes nothing; a method is what differs.

Each iteration: (1) sample and score, (2) assign credit, (3) update policy and, where the method has
one, critic, (4) move the KL controller and the score normaliser, (5) report.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling import ranks
from gemma_alignment.modeling.protocols import Text
from gemma_alignment.modeling.transfers import to_device
from gemma_alignment.rollout.experience import OldLogprobs, collect
from gemma_alignment.schemas import Credit, Experience, Minibatch, Normalizer, TrainingState, UpdateRecord
from gemma_alignment.training.checkpoints import capture, flops_of_all, restore
from gemma_alignment.training.guards import FirstRatio, check_finite, check_loss, check_metrics, named
from gemma_alignment.training.policy_evaluation import Gold, HeldOut, evaluate_policy
from gemma_alignment.training.rollout_metrics import describe
from gemma_alignment.training.schedule import clipped
from gemma_alignment.training.seeding import generator, prompt_order


@dataclass(frozen=True)
class Run:
    """Everything that an arm's run is made of, built by the node."""

    method: Any
    model: Any
    chat: Text
    prompts: Sequence[tuple[str, str]]
    held_out: HeldOut
    settings: Any
    """The shared policy-optimization parameters."""
    rollout: Any
    kl_controller: Any
    score_normalizer: Any
    scale: tuple[float, float]
    """Mean and sd of the reward model's fixed normaliser."""
    seed: int
    evaluation_seed: int
    """Of the random numbers that answer held-out prompts: the same for every seed, or the spread over seeds would be
    mostly that of the sampling."""
    gold: Gold | None
    peak_memory: Callable[[], float]
    """Peak memory of the process or device, in MB."""
    old_logprobs: OldLogprobs = field(default_factory=OldLogprobs)


@dataclass
class _Budget:
    """What has been spent so far."""

    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0


def optimize(run: Run, start: TrainingState | None = None) -> Iterator[UpdateRecord]:
    """Train the policy adapter (and critic) of ``run.model`` in place; yields one record an iteration.

    Record 0 is the policy before any update; record i comes after the i-th update. With ``start``, the
    state of an earlier attempt's record, the first record is that of the iteration after it.

    Raises:
        UserError: when a loss, gradient, score or log-probability is not finite, or when the first
            ratio of an iteration differs from 1; no weight was changed by the step that failed. When a number that
            is measured after a step is not finite; the iteration leaves no record.
        ValueError: when the group size does not divide the responses of an iteration.
    """
    settings, budget, done = run.settings, _Budget(), 0
    per_iteration = settings.prompts_per_iteration(run.method.group_size)
    optimizers = {"policy": _adam(run, "policy", settings.learning_rate)}
    if run.method.needs_critic:
        optimizers["critic"] = _adam(run, "critic", settings.critic_learning_rate)
    if start is not None:
        budget, done = _Budget(**restore(start, run, optimizers)), start.iteration
    else:
        metrics, samples = _evaluation(run, 0)
        check_metrics(metrics, f"{run.method.name}, iteration 0")
        state = capture(0, run, optimizers, asdict(budget))
        yield UpdateRecord(0, {**metrics, "policy/kl_coef": run.kl_controller.coef}, {}, samples, state)
    for iteration in range(done + 1, settings.num_iterations + 1):
        started = time.perf_counter()
        is_evaluated = iteration % settings.eval_every == 0 or iteration == settings.num_iterations
        _anneal(optimizers, 1 - (iteration - 1) / settings.num_iterations)
        rows = prompt_order(len(run.prompts), per_iteration, iteration - 1, run.seed)
        prompts = [run.prompts[i] for i in rows]
        experience = collect(
            run.model, run.chat, prompts, run.method.group_size, settings=run.rollout,
            scale=run.scale, penalty=settings.missing_eos_penalty, normalize=run.score_normalizer.normalize,
            with_critic=run.method.needs_critic, microbatch_size=settings.microbatch_size,
            generator=generator(run.seed, "rollout", iteration), old_logprobs=run.old_logprobs,
            ask_sampler=is_evaluated,
        )  # fmt: skip
        sampled = time.perf_counter() - started
        check_finite(experience, iteration)
        kl_coef = run.kl_controller.coef
        credit = run.method.assign_credit(experience, kl_coef)
        stats = _update(run, experience, credit, optimizers, iteration)
        metrics = {**describe(experience, run.chat, dict(prompts), run.gold), **stats, "policy/kl_coef": kl_coef}
        run.score_normalizer.update(experience.raw_scores)
        run.kl_controller.update(
            metrics["policy/kl_to_reference"], len(experience.ended), iteration / settings.num_iterations
        )
        tokens = int(experience.response_mask.sum())
        budget.responses += len(experience.ended)
        budget.tokens += tokens
        budget.seconds += time.perf_counter() - started
        samples = []
        if is_evaluated:
            held_out, samples = _evaluation(run, iteration)
            metrics |= held_out
        metrics |= {
            "budget/responses": float(budget.responses),
            "budget/tokens_generated": float(budget.tokens),
            "budget/flops": flops_of_all(run.model),
        }
        check_metrics(metrics, f"{run.method.name}, iteration {iteration}")
        timing = {
            "rollout/tokens_per_second": tokens / sampled,
            "budget/seconds": budget.seconds,
            "memory/peak_mb": run.peak_memory(),
        }
        state = capture(iteration, run, optimizers, asdict(budget))
        yield UpdateRecord(iteration, metrics, timing, samples, state)


def _adam(run: Run, role: Any, rate: float) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = run.model.adam(role, rate, run.settings.adam_epsilon)
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    return optimizer


def _anneal(optimizers: dict[str, torch.optim.Optimizer], remaining: float) -> None:
    """Every learning rate at this part of its first value."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * remaining


def minibatch_of(experience: Experience, credit: Credit, kl_coef: float) -> Minibatch:
    """The whole experience with its credit as one batch."""
    return Minibatch(
        experience.prompt_tokens, experience.prompt_mask, experience.response_tokens, experience.response_mask,
        experience.old_logprobs, experience.ref_logprobs, credit.advantages, experience.values, credit.returns,
        kl_coef, experience.prompt_ids,
    )  # fmt: skip


def _update(
    run: Run, experience: Experience, credit: Credit, optimizers: dict[str, torch.optim.Optimizer], iteration: int
) -> dict[str, float]:
    """Every epoch's minibatches in a shuffled order; returns the statistics' mean over optimizer steps."""
    whole = minibatch_of(experience, credit, run.kl_controller.coef)
    totals: dict[str, float] = {}
    steps = 0
    for epoch in range(run.method.update_epochs):
        chance = generator(run.seed, "minibatches", iteration * run.method.update_epochs + epoch)
        order = torch.randperm(len(whole), generator=chance)
        for start in range(0, len(whole), run.settings.minibatch_size):
            minibatch = whole.select(order[start : start + run.settings.minibatch_size])
            found = _step(run, minibatch, optimizers, iteration, first=steps == 0)
            totals = {key: totals.get(key, 0.0) + value for key, value in found.items()}
            steps += 1
    return {key: value / steps for key, value in totals.items()}


def _step(
    run: Run, minibatch: Minibatch, optimizers: dict[str, torch.optim.Optimizer], iteration: int, first: bool
) -> dict[str, float]:
    """One optimizer step of policy and critic, accumulated over micro-batches with global counts.

    The policy's forward and backward end before the critic's forward begins: both are adapters on
    one base, and a switch between would corrupt the pending backward. Several processes share the micro-batches.
    """
    normalizer = Normalizer.of(minibatch, run.rollout.max_new_tokens)
    stats: dict[str, float] = {}
    where = {role: f"{run.method.name}, iteration {iteration}, {role}" for role in optimizers}
    beginning = FirstRatio(run.model.is_exact) if first else None
    for part in ranks.mine([*minibatch.split(ranks.at_most(run.settings.microbatch_size, len(minibatch)))]):
        micro = _on(run.model.device, part)  # for the losses: the model packs what is still in this process's memory
        with run.model.role("policy", train=True):
            logprobs, entropy = run.model.logprobs(part, run.rollout.temperature)
            loss, found = run.method.policy_loss(logprobs, micro, normalizer)
            check_loss(loss, {"logprobs": logprobs}, micro, where["policy"])
            if beginning is not None:
                beginning.add(logprobs, micro)
            loss.backward()
        _add(stats, {"policy/" + key: value for key, value in found.items()})
        _add(stats, {"policy/entropy": (entropy * micro.response_mask).sum() / normalizer.tokens})
        if run.method.needs_critic:
            with run.model.role("critic", train=True):
                values = run.model.values(part)
                loss, found = run.method.value_loss(values, micro, normalizer)
                check_loss(loss, {"values": values}, micro, where["critic"])
                loss.backward()
            _add(stats, {"value/loss": found["value_loss"]})
    if beginning is not None:
        beginning.check(iteration)
    stats = ranks.total(stats)
    rows = named(minibatch.prompt_ids, range(len(minibatch)))
    for role in optimizers:  # all are checked before any steps
        parameters = run.model.named_parameters_of(role)
        ranks.add_gradients(parameters.values())
        norm = clipped(parameters, run.settings.max_grad_norm, f"{where[role]}, {rows}")
        stats["policy/grad_norm" if role == "policy" else "value/grad_norm"] = norm
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return stats


def _on(device: torch.device, micro: Minibatch) -> Minibatch:
    if device.type == "cpu":
        return micro
    parts: dict[str, Any] = {f.name: getattr(micro, f.name) for f in fields(micro)}
    moved: dict[str, Any] = {k: to_device(v, device) for k, v in parts.items() if isinstance(v, Tensor)}
    return replace(micro, **moved)


def _add(stats: dict[str, float], found: dict[str, Tensor]) -> None:
    for key, value in found.items():
        stats[key] = stats.get(key, 0.0) + float(value)


def _evaluation(run: Run, iteration: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Held-out metrics with the same random numbers at every evaluation of every run; no part of the budget."""
    counted = run.model.forward_flops()
    metrics, rows = evaluate_policy(
        run.model, run.chat, run.held_out, settings=run.rollout, scale=run.scale,
        penalty=run.settings.missing_eos_penalty, size=run.settings.microbatch_size,
        generator=generator(run.evaluation_seed, "evaluation"), gold=run.gold,
        where=f"{run.method.name}, evaluation at iteration {iteration}",
    )  # fmt: skip
    run.model.count_from(counted)
    return metrics, [{"iteration": iteration, **row} for row in rows[: run.settings.samples_per_evaluation]]
