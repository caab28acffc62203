"""Studies of one arm against itself: whatever the report claims of them is false.

``python tests/report/false_claims.py docs/coverage.md`` writes the document's last section anew.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from fake_study import PROTOCOL, SEEDS
from scipy import stats

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.comparison import Study, compare_study
from gemma_alignment.report.formatting import name_of
from gemma_alignment.report.runs import SFT, Run, RunKey
from gemma_alignment.report.verdict import CLAIMS
from gemma_alignment.report.wording import effect_sentence, reading

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
SEED_SDS = (0.0, 0.03, 0.08)
REPEATS = 2_000
HEADING = "## One arm against itself\n"
PARTS = ("headline", "sentence about d", "any reading of the secondary family")
"""What the report of a judged study may claim."""
UNION = "any claim of a judged study"
NOT_JUDGED = "any claim of a study that is not judged"
"""There the headline takes its word from the score's row of the family."""
KINDS = (*PARTS, UNION, NOT_JUDGED)
"""Each is held to the level: a whole report, and with it its parts."""


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
        claims = _claims(judged, len(PROTOCOL["secondary_metrics"]))
        not_judged = compare_study(Study(runs, {}, protocol, 20, rng), {"kind": "none"}, {})
        found.update({
            **claims,
            UNION: any(claims.values()),
            NOT_JUDGED: any(_claims(not_judged, len(QUANTITIES)).values()),
        })
    return found


def _claims(comparison, family):
    """By part of the report, whether it claims anything; ``family`` is how many metrics the secondary one must have."""
    secondary = [block for block in comparison["metrics"].values() if block["role"] == "secondary"]
    assert len(secondary) == family
    said = [reading(block, comparison["protocol"]) for block in secondary]
    claimed = (
        comparison["verdict"]["word"] in CLAIMS,
        claims_a_side(effect_sentence(comparison)),
        any(not one.startswith("not ") for one in said),
    )
    return dict(zip(PARTS, claimed, strict=True))


def claims_a_side(sentence: str) -> bool:
    """Whether the sentence about d puts one method, and that one alone, above the other."""
    return sum(f"{name_of(method)} higher" in sentence for method in METHODS) == 1


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


def exact_interval(claims: int, repeats: int) -> tuple[float, float]:
    """The exact 95% interval of the rate of claims."""
    found = stats.binomtest(claims, repeats).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def section(counts: dict[float, Counter[str]]) -> str:
    """The last section of the document, from the counts by seed sd."""
    text = f"""{HEADING}
{REPEATS:,} simulated studies each of two methods that are one: 3 seeds, {PROMPTS} prompts, a fifth of the comparisons
ties, prompts that differ with a standard deviation of {PROMPT_SD} and seeds with the one named. Every study is
compared as a whole; a claim is a headline of "better", a sentence about d that puts one side above the other at both
ends of its interval, or a reading of the secondary family that puts one side above the other. The level of 5% is kept
for the whole report, whose headline, sentence and table would be three chances if the family were read out whatever the
primary outcome: for each row the lower end of the exact 95% interval must not lie above 0.05. Held by
`pytest -m slow tests/report/test_false_claims.py`, written by `python tests/report/false_claims.py docs/coverage.md`.

| seed sd | false claim | studies | rate | exact 95% interval |
|---|---|---|---|---|
"""
    for seed_sd, found in counts.items():
        for kind in KINDS:
            low, high = exact_interval(found[kind], REPEATS)
            rate = found[kind] / REPEATS
            text += f"| {seed_sd:g} | {kind} | {found[kind]} of {REPEATS:,} | {rate:.4f} | {low:.4f} to {high:.4f} |\n"
    return text


if __name__ == "__main__":
    document = Path(sys.argv[1])
    start = document.read_text("utf-8").partition(HEADING)[0].rstrip("\n")
    made = section({seed_sd: false_claims(REPEATS, seed_sd) for seed_sd in SEED_SDS})
    document.write_text(f"{start}\n\n{made}", encoding="utf-8")
