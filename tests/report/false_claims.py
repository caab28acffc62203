"""Studies of one arm against itself: whatever the report claims of them is false."""

from collections import Counter

import numpy as np
from fake_study import PROTOCOL, SEEDS

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.comparison import Study, compare_study
from gemma_alignment.report.conclusions import verdict_block
from gemma_alignment.report.runs import SFT, Run, RunKey
from gemma_alignment.report.verdict import CLAIMS
from gemma_alignment.report.wording import reading

PROMPTS = 100
PROMPT_SD = 0.25
METHODS = ("ppo", "grpo")
QUANTITIES = {
    "eval/score_mean": (1.0, 0.15),
    "eval/gold_mean": (6.0, 0.2),
    "eval/kl_to_reference": (2.0, 0.3),
    "eval/response_length": (40.0, 4.0),
    "eval/perplexity": (2.1, 0.02),
}
"""Mean and sd over seeds, the same for both methods."""
KINDS = ("headline", "headline, not judged", "any reading of the secondary family")


def false_claims(repeats: int, seed_sd: float) -> Counter[str]:
    """How many of so many studies claim something, by kind of claim.

    Prompts differ by a standard deviation of 0.25 in how often the first answer wins, seeds by ``seed_sd``.
    """
    rng = np.random.default_rng([20261126, round(1000 * seed_sd)])
    found: Counter[str] = Counter()
    for _ in range(repeats):
        runs, outcomes = _study(rng, seed_sd)
        protocol = build(ProtocolParameters, PROTOCOL, "protocol")
        judged = compare_study(Study(runs, outcomes, protocol, 20, rng), {"kind": "rubric"}, {})
        not_judged = verdict_block({**judged, "win_rates": {}}, protocol)
        found["headline"] += judged["verdict"]["word"] in CLAIMS
        found["headline, not judged"] += not_judged["word"] in CLAIMS
        secondary = [block for block in judged["metrics"].values() if block["role"] == "secondary"]
        assert len(secondary) == len(PROTOCOL["secondary_metrics"])
        said = [reading(block, judged["protocol"]) for block in secondary]
        found["any reading of the secondary family"] += any(not one.startswith("not ") for one in said)
    return found


def _study(rng, seed_sd):
    runs = {
        RunKey(method, seed): Run(RunKey(method, seed), history=[_row(rng)], card={"status": "finished"})
        for method in METHODS
        for seed in SEEDS
    }
    runs[RunKey(SFT, None)] = Run(RunKey(SFT, None))
    prompts = [f"p{i}" for i in range(PROMPTS)]
    outcomes = {}
    meetings = [(METHODS[0], METHODS[1], 0.5), (METHODS[0], SFT, 0.7), (METHODS[1], SFT, 0.7)]
    effects = {SFT: rng.normal(0.0, PROMPT_SD, PROMPTS), METHODS[1]: rng.normal(0.0, PROMPT_SD, PROMPTS)}
    for a, b, rate in meetings:
        for seed in SEEDS:
            chance = np.clip(rate + effects[b] + rng.normal(0.0, 1.0) * seed_sd, 0.0, 1.0)
            drawn = rng.random(PROMPTS)
            first, second = RunKey(a, seed).name, SFT if b == SFT else RunKey(b, seed).name
            for prompt, p, u in zip(prompts, chance, drawn, strict=True):
                # a fifth of all comparisons are ties, whatever the chance
                outcomes[first, second, prompt] = "win" if u < 0.8 * p else "tie" if u < 0.8 * p + 0.2 else "loss"
    return runs, outcomes


def _row(rng):
    return {"iteration": 80, **{name: float(rng.normal(mean, sd)) for name, (mean, sd) in QUANTITIES.items()}}
