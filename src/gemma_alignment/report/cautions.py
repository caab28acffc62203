"""What takes the ground from under a comparison, said beside its verdict."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import name_of, number, percent, percent_bounds
from gemma_alignment.report.outdated import sentence

Block = Mapping[str, Any]
QUALITY = "eval/gold_mean"


def cautions(comparison: Block) -> list[str]:
    """One sentence for each: verdicts on other answers, a reward model at chance, an SFT that did not learn, a fall."""
    outdated = sentence(comparison["judge"]["outdated"])
    return [
        *([f"{outdated}."] if outdated else []),
        *_reward_model(comparison["reward_model"]),
        *_sft(comparison["sft"]),
        *_quality(comparison),
    ]


def _reward_model(found: Block) -> list[str]:
    low, high = found.get("reward_model/accuracy_low"), found.get("reward_model/accuracy_high")
    if low is None or low > 0.5:
        return []
    share = f"{percent(found['reward_model/accuracy'])} of held-out pairs, {percent_bounds(low, high)}"
    return [
        f"The reward model is not shown to beat chance ({share}): what both methods were trained for says "
        "little about what the preferences mean."
    ]


def _sft(found: Block) -> list[str]:
    before, after = found.get("sft/perplexity_before"), found.get("sft/perplexity_after")
    if before is None or after is None or after < before:
        return []
    return [
        f"Supervised fine-tuning raised the perplexity of held-out chosen responses, from {number(before)} to "
        f"{number(after)}: the model that both methods start from did not learn to answer."
    ]


def _quality(comparison: Block) -> list[str]:
    start, block = comparison["baseline"].get(QUALITY), comparison["metrics"].get(QUALITY)
    if start is None or block is None:
        return []
    fell = {name: mean for name, mean in block["mean"].items() if mean is not None and mean < start}
    return [
        f"Under {name_of(name)} the true quality fell, from {number(start)} to {number(mean)} of 10 on average: "
        "the reward model was followed, not what it stands for."
        for name, mean in fell.items()
    ]
