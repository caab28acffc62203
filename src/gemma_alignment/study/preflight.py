"""What the real study will need, and what of it is not there: said before anything is loaded.

Everything is an upper estimate from shapes, counts and the rates of ``study.rates``: longest prompts and answers.
"""

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
from gemma_alignment.modeling.memory import Shape
from gemma_alignment.parameters.judge import JudgeParameters
from gemma_alignment.parameters.rates import RateParameters
from gemma_alignment.storage.address import is_bucket
from gemma_alignment.storage.bucket import Bucket
from gemma_alignment.study.hours import hours, hours_of_runs, iteration_seconds
from gemma_alignment.study.memory_needs import SHAPES, Peak, disk, peaks, plain_model, work_of
from gemma_alignment.study.plan import Plan
from gemma_alignment.study.wall_time import said

GB = 1e9
GPU = "GPU"
"""What a line about the GPU of this machine is called."""
CONTEXT = 0.6e9
"""Bytes of a GPU that CUDA itself takes, at most about."""
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    said: str
    is_missing: bool = False
    """Whether the study cannot finish without it: a dry run fails."""
    is_fatal: bool = False
    """Whether training cannot even begin without it: a study does not start."""


def preflight(plan: Plan, parameters: Parameters, data_root: Path, processes: int = 1) -> list[Line]:
    """What a study on a hub model needs and whether it is there; of one that pretrains its own what a paid judge needs.

    ``processes`` train each policy.
    """
    judge = _judge(plan, parameters)
    if parameters["modeling"]["base_model"] == "pretrain":
        return [*_key(parameters), judge] if parameters["judge"]["kind"] == "openai" else []
    model = _model(parameters)
    shape = _shape(parameters, model.is_missing)
    lines = [_token(model.is_missing), *_key(parameters), model]
    if shape is None:
        known = ", ".join(SHAPES)
        lines.append(Line("size", f"not estimated: its configuration cannot be read (that of {known} is known)"))
        lines.append(_gpu(parameters, None))
    else:
        found = list(peaks(plan, parameters, shape, processes))
        most = max(peak.bytes for peak in found if peak.stage != "export")
        lines += [_gpu(parameters, most), *map(_memory, found), *_disk(plan, parameters, shape, data_root)]
    return [*lines, *_hours(plan, parameters), judge]


def storage(data_root: str) -> Iterator[Line]:
    """Whether a bucket can be listed; nothing of a folder. The other rights are tried when a study starts."""
    if not is_bucket(data_root):
        return
    try:
        Bucket(data_root).listing()
    except UserError as error:
        yield Line("bucket", str(error), is_missing=True)
    else:
        yield Line("bucket", f"{data_root} can be listed")


def _token(model_is_missing: bool) -> Line:
    """Whether the hub's is set; never what it is. A model within reach needs none."""
    if os.environ.get("HF_TOKEN"):
        return Line("HF_TOKEN", "set")
    said = "NOT SET: a gated model is fetched with it; export HF_TOKEN=..."
    return Line("HF_TOKEN", said if model_is_missing else "not set, and not needed", model_is_missing)


def _key(parameters: Parameters) -> Iterator[Line]:
    """Whether that of the judge's service is set, where it asks for one; never what it is."""
    if parameters["judge"]["kind"] == "openai" and parameters["judge"]["base_url"] is None:
        is_set = bool(os.environ.get("OPENAI_API_KEY"))
        said = "set" if is_set else "NOT SET: the judge is asked with it; export OPENAI_API_KEY=..."
        yield Line("OPENAI_API_KEY", said, not is_set)


def _model(parameters: Parameters) -> Line:
    name, revision = parameters["modeling"]["base_model"], parameters["modeling"]["revision"]
    try:
        check_access(name, revision)
    except UserError as error:
        return Line("model", str(error), is_missing=True, is_fatal=True)
    return Line("model", f"{name} at {revision[:12]}: within reach")


def _shape(parameters: Parameters, is_out_of_reach: bool) -> Shape | None:
    """The shape of the model, known or read from its configuration."""
    name, revision = parameters["modeling"]["base_model"], parameters["modeling"]["revision"]
    if name in SHAPES or is_out_of_reach:
        return SHAPES.get(name)
    from transformers import AutoConfig

    try:
        return Shape.of(AutoConfig.from_pretrained(name, revision=revision).get_text_config())
    except (OSError, ValueError, AttributeError):
        return None


def _gpu(parameters: Parameters, most: float | None) -> Line:
    """The GPU that is here, against the largest stage; a dry run may be made without one."""
    import torch

    if parameters["runtime"]["device"] == "cpu":
        return Line(GPU, "not asked for: runtime.device is cpu")
    total = (most or 0) + CONTEXT
    need = "" if most is None else f"; about {total / GB:.1f} GB are needed, {CONTEXT / GB:.1f} of them by CUDA itself"
    if not torch.cuda.is_available():
        return Line(GPU, f"none is usable here{need}", is_fatal=parameters["runtime"]["device"] == "cuda")
    found = torch.cuda.get_device_properties(0)
    is_small = total > found.total_memory
    said = f"{found.name}, {found.total_memory / GB:.1f} GB{need}{': NOT ENOUGH' if is_small else ''}"
    if parameters["modeling"]["dtype"] == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        said += "; it has no bfloat16 and emulates it slowly"
    return Line(GPU, said, is_small)


def _memory(peak: Peak) -> Line:
    beside = "; no part of the study" if peak.stage == "export" else ""
    parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in peak.parts.items())
    said = f"about {peak.bytes / GB:.1f} GB of the GPU at its peak ({peak.when}), from shapes alone{beside}"
    return Line(f"memory {peak.stage}", f"{said}; all the time: {parts}" if parts else said)


def _disk(plan: Plan, parameters: Parameters, shape: Shape, data_root: Path) -> Iterator[Line]:
    """One line a file system: the places that share one are added up."""
    needs = disk(plan, parameters, shape, data_root)
    places: dict[int, list[Path]] = {}
    for place in needs:
        places.setdefault(_existing(place).stat().st_dev, []).append(place)
    for number, shared in enumerate(places.values(), 1):
        need, free = sum(needs[place] for place in shared), shutil.disk_usage(_existing(shared[0])).free
        said = f"about {need / GB:.1f} GB needed in {', '.join(map(str, shared))}; {free / GB:.1f} GB free"
        if data_root in shared:
            said += f"; an export takes {plain_model(parameters['modeling'], shape) / GB:.1f} GB more"
        what = "disk" if len(places) == 1 else f"disk {number}"
        yield Line(what, said if need < free else f"{said}: NOT ENOUGH", need >= free)


def _existing(place: Path) -> Path:
    return next(one for one in (place, *place.parents) if one.exists())


def _hours(plan: Plan, parameters: Parameters) -> Iterator[Line]:
    rates = build(RateParameters, parameters["rates"], "rates")
    found = hours(plan, parameters, rates)
    assumed = "at ASSUMED rates, not measured (python benchmarks/gemma2b.py --rates measures them)"
    source = f"at rates measured on {rates.measured_on}" if rates.measured_on else assumed
    parts = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
    yield Line("GPU hours", f"about {sum(found.values()):.0f} {source} ({parts}); longest prompts and answers")
    seconds = ", ".join(f"{method} {iteration_seconds(parameters, method, rates):.0f}" for method in plan.methods)
    yield Line("iteration", f"about {seconds} seconds on one GPU, at the same rates")
    preparation, runs = hours_of_runs(plan, parameters, rates)
    shared = parameters["policy_optimization"]
    groups = min(shared["responses_per_iteration"] // work_of(parameters, one).group_size for one in plan.methods)
    most = min(groups, shared["minibatch_size"], shared["eval_prompts"])
    yield Line("wall time", f"about, {said(preparation, runs, rates.parallel_efficiency, most)}")


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
