"""How often the intervals hold what they say they hold: seeded simulations, printed as the table of the docs.

``python tests/statistics/simulations.py docs/coverage.md`` writes the document anew.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gemma_alignment.statistics.aggregate import iqm, stratified_bootstrap
from gemma_alignment.statistics.effect_size import cohens_d, paired_effect
from gemma_alignment.statistics.intervals import (
    bootstrap_mean,
    normal_quantile,
    paired_difference,
    student_difference,
    t_interval,
    welch_difference,
    wilson,
)
from gemma_alignment.statistics.length_control import length_controlled
from gemma_alignment.statistics.stability import spread
from gemma_alignment.statistics.win_rate import crossed, prompt_bootstrap, summarize, tie_aware_interval

NOMINAL = 0.95
CLOSE = (NOMINAL - 0.015, NOMINAL + 0.015)
WELCH = (0.94, 0.98)
CAREFUL = (NOMINAL - 0.015, 1.0)
"""Of the verdict's interval, which may be too wide and not too narrow."""
JOINT = "rate, both errors added, Satterthwaite’s df"
VERDICT = "verdict’s interval, the widest ends"
SEED = 20261126
RATES = (0.2, 0.35, 0.5, 0.65, 0.8)
SEED_SDS = (0.0, 0.03, 0.08)
SEEDS, PROMPTS, PROMPT_SD = 3, 200, 0.25


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    interval: str
    setting: str
    coverage: float
    width: float
    n: int | None
    """Simulated repeats; None where every outcome was enumerated."""
    required: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What no other row is called."""
        return f"{self.interval}, {self.setting}"

    def holds(self) -> bool:
        """Whether the coverage lies where it must."""
        return self.required is None or self.required[0] <= self.coverage <= self.required[1]


class Tally:
    """Counts intervals that hold the truth, and their widths."""

    def __init__(self) -> None:
        self.held = self.made = 0
        self.width = 0.0

    def add(self, low: float | None, high: float | None, truth: float) -> None:
        """An interval that does not exist counts as one that does not hold."""
        self.made += 1
        if low is not None and high is not None:
            self.held += low <= truth <= high
            self.width += high - low

    def cell(self, interval: str, setting: str, required: tuple[float, float] | None = None) -> Cell:
        """The row."""
        return Cell(interval, setting, self.held / self.made, self.width / self.made, self.made, required)


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for each simulation, so that one can change without the others."""
    return np.random.default_rng([SEED, *"|".join(map(str, key)).encode()])


def effect_sizes(n: int, repeats: int = 10_000) -> Iterator[Cell]:
    """d and d_z: noncentral t, at the true sizes 0, 1 and 2."""
    for true in (0.0, 1.0, 2.0):
        rng, one, paired = generator("d", n, true), Tally(), Tally()
        for _ in range(repeats):
            x, y = rng.normal(true, 1.0, n), rng.normal(0.0, 1.0, n)
            d = cohens_d(x, y)
            one.add(d.d_low, d.d_high, true)
            pair = paired_effect(rng.normal(true, 1.0, n), np.zeros(n))
            paired.add(pair.d_z_low, pair.d_z_high, true)
        yield one.cell("Cohen’s d, noncentral t", f"{n} v {n}, d = {true:g}", CLOSE)
        yield paired.cell("d_z, noncentral t", f"n = {n}, d_z = {true:g}", CLOSE)


def bootstrapped_d(repeats: int = 4_000) -> Iterator[Cell]:
    """d with a percentile bootstrap over three seeds a method, all 27 × 27 resamples."""
    picks = np.array(list(itertools.product(range(3), repeat=3)))
    for true in (0.0, 1.0, 2.0):
        rng, tally = generator("d bootstrap", true), Tally()
        for _ in range(repeats):
            x, y = rng.normal(true, 1.0, 3)[picks], rng.normal(0.0, 1.0, 3)[picks]
            pooled = np.sqrt((x.var(axis=1, ddof=1)[:, None] + y.var(axis=1, ddof=1)[None, :]) / 2.0)
            gap = x.mean(axis=1)[:, None] - y.mean(axis=1)[None, :]
            d = (gap[pooled > 1e-9] / pooled[pooled > 1e-9]).ravel()
            tally.add(*np.percentile(d, [2.5, 97.5]).tolist(), true)
        yield tally.cell("Cohen’s d, bootstrap over seeds", f"3 v 3, d = {true:g}")


def means(n: int, repeats: int = 20_000) -> Iterator[Cell]:
    """Student's intervals on normal values, and what must not be used instead."""
    rng, close = generator("means", n), {name: Tally() for name in ("one", "two", "paired", "sd", "z", "bootstrap")}
    for i in range(repeats):
        x, y = rng.normal(0.0, 1.0, n), rng.normal(0.0, 1.0, n)
        one, two, pair, sd = t_interval(x), student_difference(x, y), paired_difference(x, y), spread(x)
        close["one"].add(one.low, one.high, 0.0)
        close["two"].add(two.low, two.high, 0.0)
        close["paired"].add(pair.low, pair.high, 0.0)
        close["sd"].add(sd.sd_low, sd.sd_high, 1.0)
        half = normal_quantile(NOMINAL) * float(np.std(x, ddof=1)) / math.sqrt(n)
        close["z"].add(float(np.mean(x)) - half, float(np.mean(x)) + half, 0.0)
        if i < 4_000 and n == 3:
            drawn = bootstrap_mean(x, rng)
            close["bootstrap"].add(drawn.low, drawn.high, 0.0)
    yield close["one"].cell("mean over seeds, Student t", f"n = {n}", CLOSE)
    yield close["two"].cell("difference, Student t", f"{n} v {n}", CLOSE)
    yield close["paired"].cell("paired difference, Student t", f"n = {n}", CLOSE)
    yield close["sd"].cell("sd over seeds, chi-square", f"n = {n}", CLOSE)
    yield close["z"].cell("mean over seeds, normal z", f"n = {n}")
    if close["bootstrap"].made:
        yield close["bootstrap"].cell("mean over seeds, bootstrap over seeds", f"n = {n}")


def welch_intervals(n: int, repeats: int = 20_000) -> Iterator[Cell]:
    """Welch's interval where the two methods' seeds spread alike and unlike."""
    for ratio in (1.0, 2.0, 4.0):
        rng, tally = generator("welch", n, ratio), Tally()
        for _ in range(repeats):
            found = welch_difference(rng.normal(0.0, 1.0, n), rng.normal(0.0, ratio, n))
            tally.add(found.low, found.high, 0.0)
        yield tally.cell("difference, Welch", f"{n} v {n}, sd 1 : {ratio:g}", WELCH if n == 3 else None)


def proportions(n: int) -> Iterator[Cell]:
    """Wilson's interval, every count enumerated."""
    intervals = [wilson(s, n) for s in range(n + 1)]
    for rate in RATES:
        weights = stats.binom.pmf(range(n + 1), n, rate)
        held = sum(w for w, (low, high) in zip(weights, intervals, strict=True) if low <= rate <= high)
        width = sum(w * (high - low) for w, (low, high) in zip(weights, intervals, strict=True))
        required = CLOSE if n >= 200 else None
        yield Cell("proportion, Wilson", f"n = {n}, rate {rate:g}", float(held), float(width), None, required)


MIXES: tuple[tuple[float, float], ...] = ((0.4, 0.2), (0.1, 0.8), (0.55, 0.3), (0.93, 0.05), (0.02, 0.95))
"""Shares of wins and ties whose coverage others have simulated."""


def win_rates(n: int) -> Iterator[Cell]:
    """The tie-aware interval, Wilson on half counts and Wald: every triple of counts enumerated."""
    counts = np.array([(w, t, n - w - t) for w in range(n + 1) for t in range(n + 1 - w)])
    found = [summarize(*map(int, row)) for row in counts]
    tie_aware = np.array([tie_aware_interval(*map(int, row)) for row in counts])
    halves = np.array([(one.half_count_low, one.half_count_high) for one in found])
    z = normal_quantile(NOMINAL)
    simple = np.array([(one.rate - z * one.sem, one.rate + z * one.sem) for one in found])
    grid = [(round(rate - ties / 2, 6), ties) for ties in (0.1, 0.2, 0.35) for rate in RATES]
    for wins, ties in dict.fromkeys([*MIXES, *grid]):
        rate, setting = wins + ties / 2, f"n = {n}, {wins:.3g}/{ties:.3g}/{1 - wins - ties:.3g}"
        weights = np.exp(stats.multinomial.logpmf(counts, n, [wins, ties, 1.0 - wins - ties]))
        rows = [("win rate, tie-aware", tie_aware)]
        if (wins, ties) in MIXES:
            rows += [("win rate, Wilson on half counts", halves), ("win rate, Wald", simple)]
        for name, ends in rows:
            held = float(weights @ ((ends[:, 0] - 1e-12 <= rate) & (rate <= ends[:, 1] + 1e-12)))
            must = CLOSE if name.endswith("tie-aware") and n >= 200 and 0.2 <= round(rate, 12) <= 0.8 else None
            yield Cell(name, setting, held, float(weights @ (ends[:, 1] - ends[:, 0])), None, must)


def more_seeds(k: int, repeats: int = 4_000) -> Iterator[Cell]:
    """The verdict's interval and its parts over more seeds, held against the rate of all prompts and seeds."""
    for sd in SEED_SDS:
        rng, tallies = generator("crossed", k, sd), {}
        for _ in range(repeats):
            chance = 0.5 + rng.normal(0.0, PROMPT_SD, PROMPTS) + rng.normal(0.0, 1.0, (k, 1)) * sd
            r = crossed((rng.random((k, PROMPTS)) < np.clip(chance, 0.0, 1.0)).astype(float))
            rows = {
                "rate, clustered by prompt": (r.prompt_low, r.prompt_high),
                "rate, t over seeds": (r.seed_low, r.seed_high),
                JOINT: (r.joint_low, r.joint_high),
                VERDICT: widest(r),
            }
            for interval, ends in rows.items():
                tallies.setdefault(interval, Tally()).add(*ends, 0.5)
        for interval, tally in tallies.items():
            setting = f"{k} seeds of sd {sd:g}, for new prompts and seeds"
            yield tally.cell(interval, setting, CAREFUL if interval == VERDICT else None)


def crossed_rates(repeats: int = 15_000) -> Iterator[Cell]:
    """Three seeds × 200 prompts: rate 1/2, prompts differ by sd 0.25, seeds by 0, 0.03 and 0.08.

    Each interval is held against what it generalises to (``own``: the rate of these prompts over all
    seeds, or of these models over all prompts) and against the rate of all prompts and seeds.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()

    def probability(prompt: np.ndarray, seed: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + prompt + seed, 0.0, 1.0)

    for sd in SEED_SDS:
        rng, tallies = generator("crossed", sd), {}
        for i in range(repeats):
            prompts, seeds = rng.normal(0.0, PROMPT_SD, PROMPTS), rng.normal(0.0, 1.0, SEEDS) * sd
            scores = (rng.random((SEEDS, PROMPTS)) < probability(prompts[None, :], seeds[:, None])).astype(float)
            r = crossed(scores)
            these_prompts = float((weights[:, None] * probability(prompts[None, :], sd * nodes[:, None])).sum(0).mean())
            these_models = float((weights @ probability(PROMPT_SD * nodes[:, None], seeds[None, :])).mean())
            z = normal_quantile(NOMINAL) * float(r.se_two_way or 0.0)
            rows: dict[tuple[str, str], tuple[float | None, float | None, float]] = {
                ("rate, clustered by prompt", "new prompts, these models"): (r.prompt_low, r.prompt_high, these_models),
                ("rate, t over seeds", "new seeds, these prompts"): (r.seed_low, r.seed_high, these_prompts),
                ("rate, clustered by prompt", "new prompts and seeds"): (r.prompt_low, r.prompt_high, 0.5),
                ("rate, t over seeds", "new prompts and seeds"): (r.seed_low, r.seed_high, 0.5),
                ("rate, two-way t", "new prompts and seeds"): (r.two_way_low, r.two_way_high, 0.5),
                ("rate, two-way z", "new prompts and seeds"): (float(r.rate) - z, float(r.rate) + z, 0.5),
                ("rate, pooled Wilson", "new prompts and seeds"): (*wilson(scores.sum(), scores.size), 0.5),
                (JOINT, "new prompts and seeds"): (r.joint_low, r.joint_high, 0.5),
                (VERDICT, "new prompts and seeds"): (*widest(r), 0.5),
            }
            if i < 500:
                drawn = prompt_bootstrap(scores, rng, 500)
                rows["rate, bootstrap over prompts", "new prompts, these models"] = drawn.low, drawn.high, these_models
            for key, row in rows.items():
                tallies.setdefault(key, Tally()).add(*row)
        for (interval, target), tally in tallies.items():
            must = CLOSE if (interval, target) in _own(sd) else CAREFUL if interval == VERDICT else None
            yield tally.cell(interval, f"seed sd {sd:g}, for {target}", must)


def _own(sd: float) -> set[tuple[str, str]]:
    own = {("rate, t over seeds", "new seeds, these prompts")}
    targets = ("new prompts, these models", "new prompts and seeds")[: 2 if sd == 0.0 else 1]
    return own | {("rate, clustered by prompt", target) for target in targets}


def widest(r: Any) -> tuple[float | None, float | None]:
    """The widest ends of the intervals over prompts, over seeds and over both, as the verdict takes them."""
    three = ((r.prompt_low, r.prompt_high), (r.seed_low, r.seed_high), (r.joint_low, r.joint_high))
    ends = [(low, high) for low, high in three if low is not None]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (None, None)


def equal_length(repeats: int = 1_000) -> Iterator[Cell]:
    """The length-controlled rate where longer answers win more often: 3 seeds × 200 prompts, true rate 0.6."""
    rng, tally, raw = generator("length"), Tally(), Tally()
    theta, phi = math.log(0.6 / 0.4), 0.8
    clusters = [p for _ in range(SEEDS) for p in range(PROMPTS)]
    for _ in range(repeats):
        gaps = rng.normal(20.0, 60.0, SEEDS * PROMPTS)
        chance = 1.0 / (1.0 + np.exp(-(theta + phi * np.tanh(gaps / float(np.std(gaps))))))
        won = (rng.random(gaps.size) < chance).astype(float)
        found = length_controlled(won, gaps, clusters)
        tally.add(found.low, found.high, 0.6)
        raw.add(*wilson(won.sum(), won.size), 0.6)
    yield tally.cell("rate at equal length", "true rate 0.6, longer wins more", CLOSE)
    yield raw.cell("rate, lengths left in", "true rate 0.6, longer wins more")


def robust(n: int, repeats: int = 400) -> Iterator[Cell]:
    """The interquartile mean's stratified bootstrap over runs: from ten runs on it is shown."""
    rng, tally = generator("iqm", n), Tally()
    for _ in range(repeats):
        found = stratified_bootstrap(iqm, [rng.normal(0.0, 1.0, (n, 1))], rng, 400)
        tally.add(found.low, found.high, 0.0)
    yield tally.cell("interquartile mean, bootstrap over runs", f"n = {n}")


def simulate() -> list[Cell]:
    """Every row of the table."""
    parts: list[Callable[[], Iterator[Cell]]] = [
        *(lambda n=n: effect_sizes(n, 10_000 if n == 3 else 4_000) for n in (3, 5, 10)),
        bootstrapped_d,
        *(lambda n=n: means(n) for n in (3, 5, 10)),
        *(lambda n=n: welch_intervals(n) for n in (3, 5)),
        *(lambda n=n: proportions(n) for n in (50, 200, 500, 1000)),
        *(lambda n=n: win_rates(n) for n in (50, 200, 300)),
        crossed_rates,
        *(lambda k=k: more_seeds(k) for k in (6, 10)),
        equal_length,
        *(lambda n=n: robust(n) for n in (3, 10, 20)),
    ]
    return [cell for part in parts for cell in part()]


INTRODUCTION = """\
# What the intervals hold

Every interval of the report, and those it leaves alone, against a truth that is known: the share of seeded repeats in
which the interval holds it, at a nominal 95%. Where no number of repeats stands, every outcome was enumerated and the
coverage is exact. A bound in the last column is held by `pytest -m slow tests/statistics/test_coverage.py`, which also
holds this table against the code; the table is written by `python tests/statistics/simulations.py docs/coverage.md`.

Seeds × prompts: 3 seeds where no other number stands, 200 prompts, rate one half, prompts that differ with a standard
deviation of 0.25. Each interval is held against what it generalises to, and against what it does not.

"""


def table(cells: list[Cell]) -> str:
    """The rows in Markdown."""
    head = "| interval | setting | coverage | mean width | repeats | must lie in |\n|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {c.interval} | {c.setting} | {c.coverage:.4f} | {c.width:.4f} | {c.n or 'exact'} | "
        f"{'–' if c.required is None else f'{c.required[0]:.3f} to {c.required[1]:.3f}'} |\n"
        for c in cells
    )


if __name__ == "__main__":
    document = Path(sys.argv[1])
    _, heading, rest = (document.read_text("utf-8") if document.exists() else "").partition("\n## ")
    document.write_text(INTRODUCTION + table(simulate()) + heading + rest, encoding="utf-8")
