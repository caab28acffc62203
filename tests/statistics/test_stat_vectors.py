"""Every entry of ``stat_vectors.json``, recomputed here: 1e-8, no entry left out, none made up."""

import math
import os
from dataclasses import dataclass
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import agresti_coull, benjamini_yekutieli, bonferroni, clopper_pearson, wald, wilson_with_continuity
from known_answers import STORED
from scipy import optimize, stats

from gemma_alignment.statistics import power
from gemma_alignment.statistics._noncentral_t import noncentrality_interval
from gemma_alignment.statistics.aggregate import iqm, probability_of_improvement
from gemma_alignment.statistics.agreement import kappa, mcnemar
from gemma_alignment.statistics.effect_size import cohens_d, hedges_correction, paired_effect
from gemma_alignment.statistics.intervals import (
    bootstrap_mean,
    normal_quantile,
    paired_difference,
    t_quantile,
    welch_difference,
    wilson,
)
from gemma_alignment.statistics.multiplicity import benjamini_hochberg, holm
from gemma_alignment.statistics.stability import pooled_sd, spread
from gemma_alignment.statistics.tests import paired_student, permutation, sign_flip, student, welch
from gemma_alignment.statistics.win_rate import crossed, crossed_mean, prompt_bootstrap, summarize

EXACT = 1e-8
KNOWN_NUMBERS, DRAWN_NUMBERS = 778, 112
"""In the file: known answers, and results of simulations."""
SHARED = Path(os.environ.get("GEMMA_ALIGNMENT_SHARED", Path(__file__).parents[3] / "shared"))
Z = normal_quantile(0.95)
SIMULATED = {
    "coverage_n3": None,
    "more_tie_ci_coverage_and_width": None,
    "more_crossed_coverage": None,
    "simulated": ("perm_3v3_full_separation_prob", "d_ci_coverage_n3", "bias_n3_delta1"),
}
"""What is no known answer but came of random draws (None: all of the entry): ``test_coverage.py`` draws again."""
KNOWN: dict[str, Any] = {
    key: block if key not in SIMULATED else {k: v for k, v in block.items() if k not in (SIMULATED[key] or block)}
    for key, block in STORED.items()
}


@dataclass(frozen=True)
class Within:
    """A number that the file has with fewer digits than the others."""

    value: float
    tolerance: float


def four_digits(value: float) -> Within:
    """The file gives it rounded to four decimals."""
    return Within(value, 5.001e-5)


def groups(block: Any) -> Any:
    x, y = block["x"], block["y"]
    n, m = len(x), len(y)
    effect, one, two = cohens_d(x, y), student(x, y), welch(x, y)
    interval, exact = welch_difference(x, y), permutation(x, y)
    approximate = 1.0 - 3.0 / (4.0 * effect.df - 1.0)
    normal_error = math.sqrt((n + m) / (n * m) + effect.d**2 / (2.0 * (n + m)))
    improvement = probability_of_improvement([[v] for v in x], [[v] for v in y])
    return {
        "x": x,
        "y": y,
        "mean_x": float(np.mean(x)),
        "mean_y": float(np.mean(y)),
        "sd_x": spread(x).sd,
        "sd_y": spread(y).sd,
        "sp": pooled_sd([x, y]),
        "d": effect.d,
        "df": effect.df,
        "J_exact": hedges_correction(effect.df),
        "J_approx": approximate,
        "g_exact": effect.g,
        "g_approx": approximate * effect.d,
        "pingouin_cohen": effect.d,
        "pingouin_hedges": approximate * effect.d,
        "student": {"t": one.statistic, "p": one.p},
        "welch": {"t": two.statistic, "p": two.p, "df": two.df, "ci": [interval.low, interval.high]},
        "d_ci95_nct": [effect.d_low, effect.d_high],
        "g_ci95_nct": [effect.g_low, effect.g_high],
        "ncp": list(noncentrality_interval(one.statistic, effect.df, 0.95)),
        "d_ci95_normal": [effect.d - Z * normal_error, effect.d + Z * normal_error],
        "perm_two_sided": exact.p,
        "perm_one_sided": exact.p_one_sided,
        "perm_n": comb(n + m, n),
        "scipy_perm_two_sided": exact.p,
        "mannwhitney": {"U": improvement * n * m, "p": stats.mannwhitneyu(x, y).pvalue},
        "prob_improvement": improvement,
        "cliffs_delta": 2.0 * improvement - 1.0,
        "pingouin_CLES": improvement,
        "paired": pairs(x, y),
    }


def pairs(x: list[float], y: list[float]) -> Any:
    effect, test, interval = paired_effect(x, y), paired_student(x, y), paired_difference(x, y)
    differences = np.subtract(x, y)
    average = interval.estimate / math.sqrt((np.var(x, ddof=1) + np.var(y, ddof=1)) / 2.0)
    return {
        "diff": differences.tolist(),
        "mean": interval.estimate,
        "sd": spread(differences).sd,
        "d_z": effect.d_z,
        "g_z": effect.g_z,
        "J": hedges_correction(effect.df),
        "t": test.statistic,
        "p": test.p,
        "ci": [interval.low, interval.high],
        "r": float(np.corrcoef(x, y)[0, 1]),
        "d_av": average,
        "pingouin_paired_cohen": average,
        "signflip_p_two_sided": sign_flip(x, y).p,
        "d_z_ci95_nct": [effect.d_z_low, effect.d_z_high],
    }


def proportions(block: Any) -> Any:
    def row(s: int, n: int) -> Any:
        p = s / n
        return {
            "wilson": list(wilson(s, n)),
            "scipy_wilson": list(wilson(s, n)),
            "beta": list(clopper_pearson(s, n)),
            "agresti_coull": list(agresti_coull(s, n)),
            "normal": list(wald(p, math.sqrt(p * (1 - p) / n), Z)),
            "wilson_cc": list(wilson_with_continuity(s, n)),
        }

    return {key: row(*map(int, key.split("/"))) for key in block}


def tied(block: Any) -> Any:
    def row(wins: int, ties: int, losses: int) -> Any:
        found, n = summarize(wins, ties, losses), wins + ties + losses
        return {
            "n": n,
            "win_rate_half": found.rate,
            "sem_ddof1": found.sem,
            "normal_ci": list(wald(found.rate, found.sem, Z)),
            "t_ci": list(wald(found.rate, found.sem, t_quantile(0.95, n - 1))),
            "wilson_on_half_counts": [found.half_count_low, found.half_count_high],
            "decisive_win_rate": found.decisive_rate,
            "decisive_wilson": None if found.decisive_rate is None else [found.decisive_low, found.decisive_high],
            "sign_test_p": found.sign_test_p,
            "net_win_rate": 2.0 * found.rate - 1.0,
            "tie_aware_score_ci": [found.low, found.high],
        }

    return {key: row(*map(int, key.split("/"))) for key in block}


def adjusted(block: Any) -> Any:
    methods = {"bonferroni": bonferroni, "holm": holm, "fdr_bh": benjamini_hochberg, "fdr_by": benjamini_yekutieli}
    return {name: methods[name](block["p"]) if name in methods else block[name] for name in block if name != "p"} | {
        "p": block["p"]
    }


def powers(block: Any) -> Any:
    found = {"d": power.unpaired_power, "dz": power.paired_power}

    def one(n: str, key: str) -> Within:
        name, _, d = key.partition("=")
        return four_digits(found[name](float(d), int(n)))

    return {n: {key: one(n, key) for key in row} for n, row in block.items()}


def least_effects(block: Any) -> Any:
    """The file's roots were found to about 1e-6; ours agrees to 1e-8 with one found by scipy to 1e-12."""

    def reference(n: int) -> float:
        def lacking(d: float) -> float:
            ncp, df = d * math.sqrt(n / 2.0), 2 * n - 2
            critical = stats.t.ppf(0.975, df)
            return float(stats.nct.sf(critical, df, ncp) + stats.nct.cdf(-critical, df, ncp)) - 0.8

        return float(optimize.brentq(lacking, 0.5, 3.5, xtol=1e-12))

    for n in map(int, block):
        assert power.least_effect(n) == pytest.approx(reference(n), abs=EXACT)
    return {n: Within(power.least_effect(int(n)), 2e-6) for n in block}


def floors(block: Any) -> Any:
    def row(n: int) -> Any:
        x, y = [10.0 + i for i in range(n)], [0.1 * i for i in range(n)]
        exact = permutation(x, y)
        return {
            "combos": comb(2 * n, n),
            "two_sided": exact.floor,
            "one_sided": exact.p_one_sided,
            "signflip_two_sided": sign_flip(x, y).floor,
        }

    return {n: row(int(n)) for n in block}


def robust(block: Any) -> Any:
    a, b = np.array(block["A"]), np.array(block["B"])
    exact = block["exact_boot_n3"]
    resamples = [float(np.mean(r)) for r in product(exact["x"], repeat=3)]
    interval = bootstrap_mean(exact["x"], np.random.default_rng(0))
    three = [1.0, 2.0, 9.0]
    return {
        "A": block["A"],
        "B": block["B"],
        "mean": [float(m.mean()) for m in (a, b)],
        "median": [float(np.median(m.mean(axis=0))) for m in (a, b)],
        "iqm": [iqm(a), iqm(b)],
        "og": [float(1.0 - np.minimum(m, 1.0).mean()) for m in (a, b)],
        "poi": probability_of_improvement(a, b),
        "poi_ties": probability_of_improvement([[1], [2], [3]], [[2], [2], [4]]),
        "iqm_n3_single_task": [iqm(three), f"plain mean is {np.mean(three)}"],
        "iqm_n4": iqm([1, 2, 3, 94]),
        "exact_boot_n3": {
            "x": exact["x"],
            "distinct": len({round(mean, 12) for mean in resamples}),
            "pct": [interval.low, interval.high],
            "min": min(resamples),
            "max": max(resamples),
            "p_allsame": sum(len(set(r)) == 1 for r in product(range(3), repeat=3)) / 27,
        },
    }


def clustered(block: Any) -> Any:
    scores = np.array(block["S"])
    found, free = crossed(scores), crossed_mean(scores)
    bootstrap = prompt_bootstrap(scores, np.random.default_rng(0))
    return {
        "S": block["S"],
        "mean": found.rate,
        "se_iid": found.se_iid,
        "se_prompt": found.se_prompt,
        "se_seed": found.se_seed,
        "se_prompt_statsmodels": found.se_prompt,
        "se_seed_statsmodels": found.se_seed,
        "se_twoway_CGM": math.sqrt(found.se_prompt**2 + found.se_seed**2 - found.se_iid**2),
        "per_seed": list(found.per_seed),
        "seed_t_ci": [free.seed_low, free.seed_high],
        "per_prompt": scores.mean(axis=0).tolist(),
        "exact_prompt_boot_pct": [bootstrap.low, bootstrap.high],
    }


def rated(block: Any) -> Any:
    found = kappa(block["y1"], block["y2"])
    return {"y1": block["y1"], "y2": block["y2"], "kappa": found.kappa, "agreement": found.agreement}


def changed(block: Any) -> Any:
    (_, first), (second, _) = block["table"]
    found = mcnemar(first, second)
    return {"table": block["table"], "stat": found.statistic, "p": found.p}


def prompts(block: Any) -> Any:
    half = 1.96 * math.sqrt(0.25 / 200)  # the file took z as 1.96
    return {
        rate: {"halfwidth_n200": half, "n_for_80pct_power_vs_0.5": power.prompts_needed(float(rate))} for rate in block
    }


def break_even(block: Any) -> Any:
    """From which correlation of the seeds on pairing three of them pays: the d_z of the unpaired power, and its r."""

    def row(d: float) -> Any:
        unpaired = power.unpaired_power(d, 3)
        d_z = optimize.brentq(lambda at: power.paired_power(at, 3) - unpaired, 0.1, 10.0, xtol=1e-13)
        return {"unpaired_power": unpaired, "dz_needed": d_z, "break_even_r": 1.0 - d**2 / (2.0 * d_z**2)}

    return {"break_even_r": {d: row(float(d)) for d in block["break_even_r"]}}


HANDLERS = {
    "versions": lambda block: {name: block[name] for name in ("numpy", "scipy", "pingouin")},
    **{key: groups for key in ("V1_reward", "V2_identical_means", "V3_overlap", "V4_n5")},
    "wilson": proportions,
    "ties": tied,
    "multiplicity": adjusted,
    "multiplicity2": adjusted,
    "power_unpaired_two_sided": powers,
    "power_paired_two_sided": powers,
    "n_needed_80": lambda block: {key: power.seeds_needed(float(key[2:])) for key in block},
    "min_detectable_d_80": least_effects,
    "min_perm_p": floors,
    "wr_prompts_needed": prompts,
    "J": lambda block: {df: hedges_correction(int(df)) for df in block},
    "rliable": robust,
    "more_clustered": clustered,
    "more_kappa": rated,
    "more_mcnemar_exact": changed,
    "simulated": break_even,
    # d_z = d / sqrt(2 (1 - r)) of a d of one
    "more_dz_from_d": lambda block: {key: 1.0 / math.sqrt(2.0 * (1.0 - float(key[4:]))) for key in block},
}


def compare(found: Any, stored: Any, path: str) -> int:
    """Hold ``found`` against the file's entry, down to every number; the count of those."""
    if isinstance(stored, dict):
        assert isinstance(found, dict), path
        assert set(found) == set(stored), f"{path}: unhandled or made up: {set(found) ^ set(stored)}"
        return sum(compare(found[key], stored[key], f"{path}/{key}") for key in stored)
    if isinstance(stored, list):
        assert isinstance(found, list), path
        assert len(found) == len(stored), path
        return sum(compare(f, s, f"{path}[{i}]") for i, (f, s) in enumerate(zip(found, stored, strict=True)))
    if isinstance(stored, str):
        assert found == stored, path
        return 0
    if stored is None:  # the file has no number: scipy's far tail is NaN, or there is none to have
        assert found is None or (isinstance(found, Within) and 0.99 < found.value <= 1.0), path
        return 0
    if isinstance(found, Within):
        assert found.value == pytest.approx(stored, abs=found.tolerance), path
    else:
        # A p of 1e-60 is not met by 0, however near that is: eight digits count too.
        assert found == pytest.approx(stored, rel=EXACT, abs=0.0 if 0.0 < abs(stored) < EXACT else EXACT), path
    return 1


@pytest.mark.parametrize("key", [key for key in STORED if KNOWN[key]])
def test_every_entry_is_met(key: str) -> None:
    assert key in HANDLERS, f"stat_vectors.json has an entry that nothing holds the code against: {key}"
    compare(HANDLERS[key](KNOWN[key]), KNOWN[key], key)


def test_the_walk_sees_a_changed_number_and_an_unknown_entry() -> None:
    block = STORED["more_kappa"]
    with pytest.raises(AssertionError, match="more_kappa/kappa"):
        compare(rated(block), {**block, "kappa": block["kappa"] + 2e-8}, "more_kappa")
    with pytest.raises(AssertionError, match="unhandled"):
        compare(rated(block), {**block, "new": 1.0}, "more_kappa")
    with pytest.raises(AssertionError, match="sign_test_p"):
        compare({"sign_test_p": 0.0}, {"sign_test_p": 1.2446030555722283e-60}, "ties")


def test_the_walk_meets_as_many_numbers_as_the_file_has() -> None:
    assert set(HANDLERS) == {key for key in STORED if KNOWN[key]}
    known = sum(_numbers(entry) for entry in KNOWN.values())
    drawn = _numbers(STORED) - known
    assert (known, drawn) == (KNOWN_NUMBERS, DRAWN_NUMBERS)
    assert sum(compare(HANDLERS[key](KNOWN[key]), KNOWN[key], key) for key in HANDLERS) == known


def _numbers(entry: Any) -> int:
    if isinstance(entry, dict):
        return sum(map(_numbers, entry.values()))
    if isinstance(entry, list):
        return sum(map(_numbers, entry))
    return int(isinstance(entry, int | float))


def test_the_copy_here_is_the_shared_file() -> None:
    original = SHARED / "notes" / "stat_vectors.json"
    if not original.is_file():
        pytest.skip(f"no shared vectors at {original}")
    assert original.read_bytes() == Path(__file__).with_name("stat_vectors.json").read_bytes()
