"""The memory and the disk that each stage of a study on a hub model takes, from shapes: longest prompts and answers."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_alignment.modeling.hub import in_cache
from gemma_alignment.modeling.memory import (
    FP32,
    GEMMA_2B,
    MOMENTS,
    WIDTHS,
    Holding,
    Shape,
    Work,
    answering,
    comparing,
    merging,
    phases,
    standing,
    training,
)
from gemma_alignment.parameters import section_class
from gemma_alignment.study.plan import Plan

SHAPES: dict[str, Shape] = {"google/gemma-2b-it": GEMMA_2B, "google/gemma-2b": GEMMA_2B}
"""Shapes of hub models that are known without asking."""
GENRM = 64
"""Tokens that a GenRM record has beside its prompt and answer, the score that is asked for among them."""
ULTRAFEEDBACK = 0.64e9 + 1.14e9
"""Bytes of the preference data in the cache: all splits as they are fetched, and as tables (a copy's card says so)."""
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Peak:
    """The most that a stage holds of the GPU."""

    stage: str
    bytes: float
    when: str
    parts: Mapping[str, float] = field(default_factory=dict)
    """Bytes of what an arm holds all the time, role by role."""


def peaks(plan: Plan, parameters: Parameters, shape: Shape, processes: int = 1) -> Iterator[Peak]:
    """Every stage that opens a model; the last one, the export, is no part of a study.

    ``processes`` train each policy, and may share its base; preparation and export are one process's with a whole one.
    """
    hold = Holding.of(parameters["modeling"], parameters["rollout"])
    yield _sft(parameters, shape, hold)
    yield _merge(parameters, shape, hold)
    yield _reward_model(parameters, shape, hold)
    for method in plan.methods:
        work = work_of(parameters, method)
        share = dataclasses.replace(hold, shares=processes if parameters["modeling"]["sharding"] == "base" else 1)
        found = phases(shape, share, work, has_critic(method))
        alone = dataclasses.replace(work, group_size=1)  # held-out prompts are answered once each
        found["evaluation"] = phases(shape, share, alone, has_critic(method))["rollout"]
        when, peak = max(found.items(), key=lambda item: item[1])
        yield Peak(method, peak, when, standing(shape, share, has_critic(method)))
    yield Peak("export", merging(shape, hold, 0, again=False), "the merged copy beside the base")


def _sft(parameters: Parameters, shape: Shape, hold: Holding) -> Peak:
    rows, answer = parameters["sft"]["microbatch_size"], parameters["preferences"]["max_response_tokens"]
    peak = training(shape, hold, rows * longest(parameters), rows * answer)
    if hold.embedding == "as_saved":
        return Peak("sft", peak, "backward")
    beside = comparing(shape, hold, rows * longest(parameters))
    return Peak("sft", *max((peak, "backward"), (beside, "the base with its embedding as saved beside it")))


def _merge(parameters: Parameters, shape: Shape, hold: Holding) -> Peak:
    preferences = parameters["preferences"]
    positions = preferences["max_prompt_tokens"] + preferences["max_response_tokens"]
    peak = merging(shape, hold, positions, again=hold.quantization != "none")
    return Peak("merge", peak, "the merged copy beside the base")


def _reward_model(parameters: Parameters, shape: Shape, hold: Holding) -> Peak:
    """Both answers of a pair are passed at once; afterwards the SFT model is asked for scores, a prompt each."""
    preferences, decoded = parameters["preferences"], parameters["rollout"]["batch_size"]
    answer = preferences["max_prompt_tokens"] + preferences["max_response_tokens"]
    trained = training(shape, hold, 2 * parameters["reward_model"]["microbatch_size"] * answer, 0)
    asked = answering(shape, hold, Work(1, decoded, 1, longest(parameters), 0))
    return Peak("reward_model", *max((trained, "backward"), (asked, "asking the SFT model for scores")))


def longest(parameters: Parameters) -> int:
    """Positions of the longest row of SFT: a prompt and its answer, asked about as a GenRM record."""
    preferences = parameters["preferences"]
    return int(preferences["max_prompt_tokens"] + preferences["max_response_tokens"] + GENRM)


def work_of(parameters: Parameters, method: str) -> Work:
    """What an arm has in memory at a time."""
    rollout, preferences = parameters["rollout"], parameters["preferences"]
    return Work(
        parameters["policy_optimization"]["microbatch_size"], rollout["batch_size"], parameters[method]["group_size"],
        preferences["max_prompt_tokens"], rollout["max_new_tokens"],
    )  # fmt: skip


def has_critic(method: str) -> bool:
    """Whether a method trains one."""
    fields = {field.name for field in dataclasses.fields(section_class(method))}
    return "gae_lambda" in fields


def disk(plan: Plan, parameters: Parameters, shape: Shape, data_root: Path) -> dict[Path, float]:
    """Bytes that a study writes, by place: the hub's cache, the data's folder, and that of temporary files."""
    from huggingface_hub import constants

    modeling = parameters["modeling"]
    model = plain_model(modeling, shape)
    lora = shape.lora_weights(modeling["lora"]["rank"])
    state = (FP32 + MOMENTS[modeling["optimizer"]]) * lora
    kept = {name: 1 + parameters[name]["checkpoints_kept"] for name in ("sft", "reward_model", "policy_optimization")}
    prepared = model + 2 * FP32 * lora + (kept["sft"] + kept["reward_model"]) * state
    methods = [*plan.methods, *(variant.method for variant in plan.variants)]
    arms = (FP32 * lora + kept["policy_optimization"] * state * (2 if has_critic(method) else 1) for method in methods)
    return {
        Path(constants.HF_HUB_CACHE): max(0.0, model - fetched(modeling)) + ULTRAFEEDBACK,
        data_root: prepared + len(plan.seeds) * sum(arms),
        Path(tempfile.gettempdir()): 0.0 if modeling["quantization"] == "none" else model,
    }


def plain_model(modeling: Parameters, shape: Shape) -> float:
    """Bytes of the model as it is fetched, merged and exported."""
    return float((shape.linear_weights + shape.table_weights) * WIDTHS[modeling["dtype"]])


def fetched(modeling: Parameters) -> float:
    """Bytes of the model's weights that were fetched before."""
    folder = in_cache(modeling["base_model"], modeling["revision"])
    files = folder.glob("*.safetensors") if folder else ()
    return float(sum(one.stat().st_size for one in files if one.exists()))
