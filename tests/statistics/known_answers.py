"""Known answers, from ``stat_vectors.json``: scipy 1.17.1, statsmodels 0.15.0, pingouin 0.7.0 and rliable 1.2.0.

Here the numbers that single tests ask for have names; ``test_stat_vectors.py`` walks the whole file.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

STORED: dict[str, Any] = json.loads(Path(__file__).with_name("stat_vectors.json").read_text("utf-8"))


class Vector(NamedTuple):
    """Two groups of runs and everything that is known of their difference."""

    x: list[float]
    y: list[float]
    df: int
    d: tuple[float, float, float]
    g: tuple[float, float, float]
    student: tuple[float, float]
    welch: tuple[float, float, float]
    welch_interval: tuple[float, float]
    permutation: tuple[float, float]
    improvement: float
    d_z: tuple[float, float, float]
    g_z: float
    paired: tuple[float, float]
    paired_interval: tuple[float, float]
    sign_flip: float


def _vector(block: dict[str, Any]) -> Vector:
    student, welch, paired = block["student"], block["welch"], block["paired"]
    return Vector(
        x=block["x"],
        y=block["y"],
        df=block["df"],
        d=(block["d"], *block["d_ci95_nct"]),
        g=(block["g_exact"], *block["g_ci95_nct"]),
        student=(student["t"], student["p"]),
        welch=(welch["t"], welch["df"], welch["p"]),
        welch_interval=tuple(welch["ci"]),
        permutation=(block["perm_two_sided"], block["perm_one_sided"]),
        improvement=block["prob_improvement"],
        d_z=(paired["d_z"], *paired["d_z_ci95_nct"]),
        g_z=paired["g_z"],
        paired=(paired["t"], paired["p"]),
        paired_interval=tuple(paired["ci"]),
        sign_flip=paired["signflip_p_two_sided"],
    )


def _counts(key: str) -> tuple[int, ...]:
    return tuple(int(part) for part in key.split("/"))


def _powers(block: dict[str, dict[str, float | None]]) -> dict[int, dict[float, float]]:
    return {
        int(n): {float(key.partition("=")[2]): value for key, value in row.items() if value is not None}
        for n, row in block.items()
    }


VECTORS = {key[:2]: _vector(block) for key, block in STORED.items() if key[0] == "V"}
HEDGES = {int(df): j for df, j in STORED["J"].items()}
WILSON = {_counts(key): tuple(row["wilson"]) for key, row in STORED["wilson"].items()}
TIES = {
    _counts(key): (
        (row["win_rate_half"], row["sem_ddof1"], *row["tie_aware_score_ci"]),
        tuple(row["wilson_on_half_counts"]),
        (row["decisive_win_rate"], *row["decisive_wilson"], row["sign_test_p"]),
    )
    for key, row in STORED["ties"].items()
    if row["decisive_wilson"] is not None
}
"""wins, ties, losses -> rate, standard error, interval; Wilson on half counts; what was decided."""
CROSSED = STORED["more_clustered"]["S"]
CROSSED_TWO_WAY_BEFORE_FLOOR = STORED["more_clustered"]["se_twoway_CGM"]
CROSSED_ERRORS = {
    "iid": STORED["more_clustered"]["se_iid"],
    "prompt": STORED["more_clustered"]["se_prompt"],
    "seed": STORED["more_clustered"]["se_seed"],
    "two_way": max(CROSSED_TWO_WAY_BEFORE_FLOOR, STORED["more_clustered"]["se_prompt"]),
}
CROSSED_SEED_T = tuple(STORED["more_clustered"]["seed_t_ci"])
UNPAIRED_POWER = _powers(STORED["power_unpaired_two_sided"])
PAIRED_POWER = _powers(STORED["power_paired_two_sided"])
LEAST_EFFECT = {int(n): d for n, d in STORED["min_detectable_d_80"].items()}
SEEDS_NEEDED = {float(key.partition("=")[2]): n for key, n in STORED["n_needed_80"].items()}
PROMPTS_NEEDED = {float(rate): row["n_for_80pct_power_vs_0.5"] for rate, row in STORED["wr_prompts_needed"].items()}
FLOORS = {int(n): (row["two_sided"], row["signflip_two_sided"]) for n, row in STORED["min_perm_p"].items()}
RUNS_A, RUNS_B = STORED["rliable"]["A"], STORED["rliable"]["B"]
