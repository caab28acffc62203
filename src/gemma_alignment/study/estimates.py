"""What the real study will need, and what of it is not there: said before anything is loaded.

Everything is an upper estimate from shapes, counts and the rates of ``study.rates``: longest prompts and answers.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.judging.budget import BYTES_PER_TOKEN, EXPECTED_REPLY_TOKENS, batch_price, cost, price_of
from gemma_alignment.judging.canaries import REQUESTS
from gemma_alignment.judging.prompts import SYSTEM
from gemma_alignment.modeling.hub import check_access
from gemma_alignment.modeling.memory import FP32, GEMMA_2B, MOMENTS, WIDTHS, Holding, Shape, Work, phases
from gemma_alignment.parameters import section_class
from gemma_alignment.parameters.judge import JudgeParameters
from gemma_alignment.parameters.rates import RateParameters
from gemma_alignment.study.plan import Plan

SHAPES: dict[str, Shape] = {"google/gemma-2b-it": GEMMA_2B, "google/gemma-2b": GEMMA_2B}
"""Shapes of hub models that are known without asking."""
GB = 1e9
BACKWARD = 3
"""Passes of a training step: forward, the same again under checkpointing, and the backward through a frozen base."""
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    said: str
    is_missing: bool = False
    """Whether the study cannot finish without it."""


def preflight(plan: Plan, parameters: Parameters, data_root: Path) -> list[Line]:
    """Credentials, model, disk, memory, GPU hours and judge cost of a study on a hub model; none of an embedded one."""
    if parameters["modeling"]["base_model"] == "pretrain":
        return []
    shape = SHAPES.get(parameters["modeling"]["base_model"])
    lines = [*_credentials(parameters), _model(parameters)]
    if shape is None:
        known = ", ".join(SHAPES)
        lines.append(Line("size", f"not estimated: the shapes known without asking are those of {known}"))
    else:
        lines += [_disk(plan, parameters, shape, data_root), *_memory(plan, parameters, shape)]
    return [*lines, *_hours(plan, parameters), _judge(plan, parameters)]


def _credentials(parameters: Parameters) -> Iterator[Line]:
    """Whether they are set; never what they are."""
    wanted = {"HF_TOKEN": "a gated model is fetched with it"}
    if parameters["judge"]["kind"] == "openai" and parameters["judge"]["base_url"] is None:
        wanted["OPENAI_API_KEY"] = "the judge is asked with it"
    for name, use in wanted.items():
        is_set = bool(os.environ.get(name))
        yield Line(name, "set" if is_set else f"NOT SET: {use}; export {name}=...", not is_set)


def _model(parameters: Parameters) -> Line:
    name, revision = parameters["modeling"]["base_model"], parameters["modeling"]["revision"]
    try:
        check_access(name, revision)
    except UserError as error:
        return Line("model", str(error), True)
    return Line("model", f"{name} at {revision[:12]}: within reach")


def _disk(plan: Plan, parameters: Parameters, shape: Shape, data_root: Path) -> Line:
    """Base in the hub's cache, merged model, adapters, and the checkpoints of every arm."""
    modeling, kept = parameters["modeling"], parameters["policy_optimization"]["checkpoints_kept"]
    model = (shape.linear_weights + shape.table_weights) * WIDTHS[modeling["dtype"]]
    lora = shape.lora_weights(modeling["lora"]["rank"])
    state = (FP32 + MOMENTS[modeling["optimizer"]]) * lora
    per_run = {method: FP32 * lora + (kept + 1) * state * (2 if method == "ppo" else 1) for method in plan.methods}
    methods = [*plan.methods, *(variant.method for variant in plan.variants)]
    need = 2 * model + 2 * FP32 * lora + len(plan.seeds) * sum(per_run[method] for method in methods)
    folder = next(one for one in (data_root, *data_root.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    said = f"about {need / GB:.1f} GB needed, the hub's cache included; {free / GB:.1f} GB free at {folder}"
    return Line("disk", said if need < free else f"{said}: NOT ENOUGH", need >= free)


def _memory(plan: Plan, parameters: Parameters, shape: Shape) -> Iterator[Line]:
    hold = Holding.of(parameters["modeling"], parameters["rollout"]["weights"])
    for method in plan.methods:
        work = _work(parameters, method)
        found = phases(shape, hold, work, _has_critic(method))
        name, peak = max(found.items(), key=lambda item: item[1])
        yield Line(f"memory {method}", f"about {peak / GB:.1f} GB of the GPU at its peak ({name}), from shapes alone")


def _work(parameters: Parameters, method: str) -> Work:
    rollout, preferences = parameters["rollout"], parameters["preferences"]
    return Work(
        parameters["policy_optimization"]["microbatch_size"], rollout["batch_size"], parameters[method]["group_size"],
        preferences["max_prompt_tokens"], rollout["max_new_tokens"],
    )  # fmt: skip


def _has_critic(method: str) -> bool:
    fields = {field.name for field in dataclasses.fields(section_class(method))}
    return "gae_lambda" in fields


def _hours(plan: Plan, parameters: Parameters) -> Iterator[Line]:
    rates = build(RateParameters, parameters["rates"], "rates")
    hours = {"sft, reward model": _preparation(parameters, rates) / 3600}
    for method in plan.methods:
        runs = len(plan.seeds) * (1 + sum(variant.method == method for variant in plan.variants))
        hours[f"{method}, {runs} runs"] = runs * _arm(parameters, method, rates) / 3600
    source = f"at rates measured on {rates.measured_on}" if rates.measured_on else "at ASSUMED rates, not measured"
    parts = ", ".join(f"{name} {value:.1f}" for name, value in hours.items())
    yield Line("GPU hours", f"about {sum(hours.values()):.0f} {source} ({parts}); longest prompts and answers")


def _preparation(parameters: Parameters, rates: RateParameters) -> float:
    """Seconds of SFT and reward model."""
    preferences, sft = parameters["preferences"], parameters["sft"]
    rows = preferences["sample_size"] * (1 - preferences["eval_fraction"])
    length = preferences["max_prompt_tokens"] + preferences["max_response_tokens"]
    examples = rows * (sft["chosen_share"] + sft["genrm_share"]) * sft["epochs"]
    answers = 2 * rows * parameters["reward_model"]["epochs"]
    return BACKWARD * (examples + answers) * length / rates.forward_tokens_per_second


def _arm(parameters: Parameters, method: str, rates: RateParameters) -> float:
    """Seconds of one run: decoding, scores of every role that does not learn, and the updates."""
    shared, work = parameters["policy_optimization"], _work(parameters, method)
    responses = shared["responses_per_iteration"]
    trained = 2 if _has_critic(method) else 1
    scored = 2 + trained  # reward, reference, and the policy (and critic) before the update
    passes = scored + BACKWARD * trained * parameters[method]["update_epochs"]
    tokens = responses * (work.prompt + work.response)
    at_a_time = max(1, work.decoded // work.group_size) * work.group_size
    steps = -(-responses // at_a_time) * work.response
    seconds = (passes + 1) * tokens / rates.forward_tokens_per_second + steps / rates.decode_steps_per_second
    return float(shared["num_iterations"] * seconds)


def _judge(plan: Plan, parameters: Parameters) -> Line:
    """Every two methods of a seed and each against the SFT model, both orders; all questions to the judge besides."""
    if parameters["judge"]["kind"] != "openai":
        return Line("judge", f"{parameters['judge']['kind']}: costs nothing")
    judge = build(JudgeParameters, parameters["judge"], "judge")
    preferences, evaluation = parameters["preferences"], parameters["evaluation"]
    prompts = round(preferences["sample_size"] * preferences["eval_fraction"])
    prompts = min(prompts, evaluation["max_prompts"] or prompts)
    count = len(plan.methods)
    pairs = count * (count - 1) // 2 + (count if evaluation["against_sft"] else 0)
    labelled = judge.labelled_pairs if judge.labelled_path else 0
    requests = 2 * (pairs * len(plan.seeds) * prompts + judge.repeats + labelled) + REQUESTS * judge.canaries
    answers = 2 * parameters["rollout"]["max_new_tokens"]
    tokens_in = requests * (len(SYSTEM.encode()) // BYTES_PER_TOKEN + preferences["max_prompt_tokens"] + answers)
    price = price_of(judge)
    price = batch_price(price) if judge.mode == "batch" else price
    usd = cost(price, tokens_in, requests * EXPECTED_REPLY_TOKENS)
    cap = judge.remote.spend_cap_usd
    over = cap is not None and usd > cap
    limit = "" if cap is None else f"; judge.remote.spend_cap_usd is {cap:.2f}{': TOO LOW' if over else ''}"
    return Line("judge", f"about {requests:,} requests to {judge.model}, {usd:.2f} USD{limit}", over)
