"""The reward model's card: what its outputs on held-out pairs say of the teacher that every arm climbs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gemma_alignment.report.runs import finite
from gemma_alignment.statistics.aggregate import cluster_bootstrap
from gemma_alignment.statistics.agreement import kappa
from gemma_alignment.statistics.classifier import auroc, brier, expected_calibration_error, reliability
from gemma_alignment.statistics.correlation import pearson, ranks, spearman
from gemma_alignment.statistics.intervals import wilson
from gemma_alignment.statistics.win_rate import summarize

Block = dict[str, Any]
Row = Mapping[str, Any]

DRAWS = 2_000
EDGES = tuple(round(0.5 + 0.05 * i, 2) for i in range(11))
"""Of the reliability curve: a preference's probability is at least one half."""
HISTOGRAM_BINS = 30
QUARTERS = ("smallest quarter", "second quarter", "third quarter", "largest quarter")
BY_PROMPT = "percentile bootstrap over prompts"


class Pairs:
    """Held-out pairs as columns; ``gap`` is the chosen answer's value minus the rejected one's."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.prompts = [str(row["prompt_id"]) for row in rows]
        self.margin = self.gap("output")
        self.right = self.margin > 0

    def column(self, name: str) -> np.ndarray:
        """The values of a field; NaN where a row has none."""
        values = [finite(row.get(name)) for row in self.rows]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def gap(self, field: str) -> np.ndarray:
        """Chosen minus rejected."""
        return self.column(f"{field}_chosen") - self.column(f"{field}_rejected")

    def both(self, field: str) -> np.ndarray:
        """The values of all answers, chosen ones first."""
        return np.concatenate([self.column(f"{field}_chosen"), self.column(f"{field}_rejected")])


def reward_model_card(rows: Sequence[Row], confidence: float, generator: np.random.Generator) -> Block | None:
    """Everything that can be said of the reward model from ``eval_scores``; None without a row."""
    if not rows:
        return None
    pairs = Pairs(rows)
    return {
        "pairs": len(rows),
        "prompts": len(set(pairs.prompts)),
        "unit_of_resampling": "pair; prompt in the bootstraps",
        "accuracy": _accuracy(pairs, confidence, generator),
        "auroc": _auroc(pairs, confidence, generator),
        "calibration": _calibration(pairs, confidence),
        "margins": _histogram(pairs.margin),
        "by_length": _groups(pairs, *_length_labels(pairs), confidence),
        "by_written_margin": _groups(pairs, _quarter_labels(pairs), QUARTERS, confidence),
        "by_source": _groups(pairs, *_source_labels(pairs), confidence),
        "length": _length(pairs, confidence),
        "gold": _gold(pairs, confidence),
        "genrm": _genrm(pairs, confidence),
    }


def _accuracy(pairs: Pairs, confidence: float, generator: np.random.Generator) -> Block:
    over_prompts = cluster_bootstrap(
        lambda rows: float(pairs.right[rows].mean()), pairs.prompts, generator, DRAWS, confidence
    )
    return {
        **_share(pairs.right, confidence),
        "over_prompts": {**asdict(over_prompts), "method": BY_PROMPT},
    }


def _share(hits: np.ndarray, confidence: float) -> Block:
    n, count = int(hits.size), int(hits.sum())
    low, high = wilson(count, n, confidence)
    return {"rate": count / n if n else None, "low": low, "high": high, "count": count, "n": n, "method": "Wilson"}


def _auroc(pairs: Pairs, confidence: float, generator: np.random.Generator) -> Block:
    chosen, rejected = pairs.column("output_chosen"), pairs.column("output_rejected")
    found = cluster_bootstrap(
        lambda rows: auroc(chosen[rows], rejected[rows]), pairs.prompts, generator, DRAWS, confidence
    )
    return {**asdict(found), "method": BY_PROMPT}


def _calibration(pairs: Pairs, confidence: float) -> Block:
    """How sure the model is of the answer it prefers, sigma(|margin|), and how often it is right."""
    sure = 1.0 / (1.0 + np.exp(-np.abs(pairs.margin)))
    bins = reliability(sure, pairs.right.astype(float), EDGES, confidence)
    return {
        "brier": brier(sure, pairs.right.astype(float)),
        "ece": expected_calibration_error(bins),
        "mean_confidence": float(sure.mean()),
        "reliability": [asdict(one) for one in bins],
    }


def _histogram(margins: np.ndarray) -> Block:
    counts, edges = np.histogram(margins, HISTOGRAM_BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "mean": float(margins.mean())}


def _groups(pairs: Pairs, labels: Sequence[str | None], order: Sequence[str], confidence: float) -> list[Block]:
    """Accuracy in each group that has pairs; rows without a label are left out."""
    return [
        {"group": name, **_share(pairs.right[[label == name for label in labels]], confidence)}
        for name in order
        if name in labels
    ]


def _length_labels(pairs: Pairs) -> tuple[list[str | None], list[str]]:
    """Which answer is longer, and whether by more than the median difference of unequal lengths."""
    gaps = pairs.gap("tokens")
    unequal = np.abs(gaps[gaps != 0])
    middle = float(np.median(unequal)) if unequal.size else 0.0
    names = [f"{side} answer longer, {by} {middle:g} tokens" for side, by in _SIDES]
    order = [*names[:2], "same length", *names[2:]]
    places = np.where(gaps == 0, 2, np.where(gaps > 0, np.where(gaps > middle, 0, 1), np.where(gaps < -middle, 4, 3)))
    return [order[int(place)] for place in places], order


_SIDES = (("chosen", "by more than"), ("chosen", "by up to"), ("rejected", "by up to"), ("rejected", "by more than"))


def _quarter_labels(pairs: Pairs) -> list[str | None]:
    """Quarters of the difference of the written scores, ranked within a source: scales differ by source."""
    gaps = pairs.gap("written")
    labels: list[str | None] = [None] * len(pairs.rows)
    for source in {row.get("source") for row in pairs.rows}:
        places = [i for i, row in enumerate(pairs.rows) if row.get("source") == source]
        for place, rank in zip(places, ranks(gaps[places]), strict=True):
            labels[place] = QUARTERS[min(3, int(4 * (rank - 0.5) / len(places)))]
    return labels


def _source_labels(pairs: Pairs) -> tuple[list[str | None], list[str]]:
    labels = [None if row.get("source") is None else str(row["source"]) for row in pairs.rows]
    return labels, sorted({label for label in labels if label is not None})


def _length(pairs: Pairs, confidence: float) -> Block:
    gap = pairs.gap("tokens")
    told_apart = gap != 0
    prefers_longer = (np.sign(gap) == np.sign(pairs.margin))[told_apart]
    outputs, tokens = pairs.both("output"), pairs.both("tokens")
    return {
        "chosen_longer": _share((gap > 0)[told_apart], confidence),
        "prefers_longer": _share(prefers_longer, confidence),
        "pearson": asdict(pearson(outputs, tokens, confidence)),
        "spearman": asdict(spearman(outputs, tokens, confidence)),
        "of_differences": asdict(spearman(pairs.margin, gap, confidence)),
    }


def _gold(pairs: Pairs, confidence: float) -> Block | None:
    """Against the true quality, which only the embedded world knows."""
    gap = pairs.gap("gold")
    if np.isnan(gap).any():
        return None
    told_apart = gap != 0

    def agrees(other: np.ndarray) -> Block:
        return _share((np.sign(other) == np.sign(gap))[told_apart], confidence)

    return {
        "pairs": int(told_apart.sum()),
        "model": agrees(pairs.margin),
        "written": agrees(pairs.gap("written")),
        "spearman": asdict(spearman(pairs.both("output"), pairs.both("gold"), confidence)),
    }


def _genrm(pairs: Pairs, confidence: float) -> Block | None:
    """The SFT model, asked for a score of each answer, as a second judge of the same pairs."""
    asked = [i for i, row in enumerate(pairs.rows) if row.get("asked_genrm_chosen")]
    if not asked:
        return None
    gap = pairs.gap("genrm")[asked]
    read = ~np.isnan(gap)
    wins, losses = int((gap[read] > 0).sum()), int((gap[read] < 0).sum())
    decided = read & (gap != 0)
    theirs = ["chosen" if one > 0 else "rejected" for one in gap[decided]]
    ours = ["chosen" if one > 0 else "rejected" for one in pairs.margin[asked][decided]]
    written, said = pairs.column("written_chosen")[asked], pairs.column("genrm_chosen")[asked]
    there = ~np.isnan(said)
    replies = _share(~np.isnan(pairs.both("genrm")[[*asked, *(len(pairs.rows) + i for i in asked)]]), confidence)
    unread = f"{replies['count']} of {replies['n']} replies could be read"
    pairwise = f"{unread}, of no pair both" if replies["count"] else unread
    return {
        "pairs": len(asked),
        "read": replies,
        "prefers_chosen": _because(
            asdict(summarize(wins, int(read.sum()) - wins - losses, losses, confidence)), not read.any(), pairwise
        ),
        "with_reward_model": _because(
            asdict(kappa(theirs, ours)), not theirs, "every pair is a tie of its scores" if read.any() else pairwise
        ),
        "with_written": _because(asdict(spearman(said[there], written[there], confidence)), not there.any(), unread),
    }


def _because(block: Block, is_empty: bool, reason: str) -> Block:
    """The block, with the reason that lies behind its own where nothing was there to estimate from."""
    return {**block, "reason": reason} if is_empty else block
