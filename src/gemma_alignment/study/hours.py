"""The GPU hours of a study on a hub model: counts times rates, measured ones or assumed ones.

Every prompt and answer is taken as long as it may be, so the hours are an upper estimate where the rates are right.
"""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.parameters.rates import RateParameters
from gemma_alignment.study.memory_needs import has_critic, longest, work_of
from gemma_alignment.study.plan import Plan

GENRM_STEPS = 24
"""Tokens that the SFT model may write when it is asked for a score."""
Parameters = Mapping[str, Any]


def hours(plan: Plan, parameters: Parameters, rates: RateParameters) -> dict[str, float]:
    """GPU hours by stage, the runs of a method together."""
    seconds = {"sft": _sft(parameters, rates), "reward model": _reward_model(parameters, rates)}
    for method in plan.methods:
        runs = len(plan.seeds) * (1 + sum(variant.method == method for variant in plan.variants))
        seconds[f"{method}, {runs} runs"] = runs * _arm(parameters, method, rates)
    return {name: value / 3600 for name, value in seconds.items()}


def hours_of_runs(plan: Plan, parameters: Parameters, rates: RateParameters) -> tuple[float, list[float]]:
    """GPU hours of the preparation, and of each run in the order in which they begin."""
    seconds = {method: _arm(parameters, method, rates) for method in plan.methods}
    preparation = _sft(parameters, rates) + _reward_model(parameters, rates)
    return preparation / 3600, [seconds[run.stages[-1].name] / 3600 for run in plan.arms]


def _answer(parameters: Parameters) -> int:
    return int(parameters["preferences"]["max_prompt_tokens"] + parameters["preferences"]["max_response_tokens"])


def _held_out(parameters: Parameters) -> float:
    preferences = parameters["preferences"]
    return float(preferences["sample_size"] * preferences["eval_fraction"])


def _sft(parameters: Parameters, rates: RateParameters) -> float:
    """Training on the mixture, perplexity before and after, and the answers of the SFT model, scored."""
    sft, rows = parameters["sft"], parameters["preferences"]["sample_size"] - _held_out(parameters)
    trained = sft["chosen_share"] * rows * _answer(parameters) + sft["genrm_share"] * rows * longest(parameters)
    tested = 2 * sft["eval_pairs"] * _answer(parameters)
    return (
        sft["epochs"] * trained / rates.train_tokens_per_second
        + tested / rates.forward_tokens_per_second
        + _answered(parameters, _held_out(parameters), 1, rates)
    )


def _reward_model(parameters: Parameters, rates: RateParameters) -> float:
    """Training on pairs, the held-out pairs twice (accuracy, card), the normaliser's answers, the scores asked for."""
    settings, held_out = parameters["reward_model"], _held_out(parameters)
    pairs = parameters["preferences"]["sample_size"] - held_out
    trained = settings["epochs"] * 2 * pairs * _answer(parameters)
    asked = min(2 * settings["genrm_pairs"], 2 * held_out)
    tested = 2 * 2 * held_out * _answer(parameters) + asked * longest(parameters)
    batches = -(-asked // parameters["rollout"]["batch_size"])
    return (
        trained / rates.train_tokens_per_second
        + tested / rates.forward_tokens_per_second
        + batches * GENRM_STEPS / rates.decode_steps_per_second
        + _answered(parameters, settings["normalizer_prompts"], 1, rates)
    )


def _answered(
    parameters: Parameters, responses: float, group_size: int, rates: RateParameters, scored: int = 1
) -> float:
    """Seconds of sampling responses and passing each through the model ``scored`` times."""
    rollout = parameters["rollout"]
    at_a_time = max(1, rollout["batch_size"] // group_size) * group_size
    steps = -(-responses // at_a_time) * rollout["max_new_tokens"]
    tokens = responses * (parameters["preferences"]["max_prompt_tokens"] + rollout["max_new_tokens"])
    return float(steps / rates.decode_steps_per_second + scored * tokens / rates.forward_tokens_per_second)


def iteration_seconds(parameters: Parameters, method: str, rates: RateParameters) -> float:
    """Seconds of one iteration of a method."""
    shared, work = parameters["policy_optimization"], work_of(parameters, method)
    responses, trained = shared["responses_per_iteration"], 2 if has_critic(method) else 1
    updated = parameters[method]["update_epochs"] * trained * responses * (work.prompt + work.response)
    return (
        _answered(parameters, responses, work.group_size, rates, scored=2 + trained)  # reward, reference, what trains
        + updated / rates.train_tokens_per_second
    )


def _arm(parameters: Parameters, method: str, rates: RateParameters) -> float:
    """Seconds of one run: its iterations, its evaluations on held-out prompts, and its final answers."""
    shared, iteration = parameters["policy_optimization"], iteration_seconds(parameters, method, rates)
    evaluations = 1 + -(-shared["num_iterations"] // shared["eval_every"])
    count = min(shared["eval_prompts"], _held_out(parameters))
    perplexity = count * _answer(parameters) / rates.forward_tokens_per_second
    evaluation = _answered(parameters, count, 1, rates, scored=3) + perplexity
    answers = _answered(parameters, _held_out(parameters), 1, rates)
    return float(shared["num_iterations"] * iteration + evaluations * evaluation + answers)
