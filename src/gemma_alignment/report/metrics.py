"""The metrics that a study compares: what each is called, where it stands, which way is better."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gemma_alignment.report.runs import Run, finite

Source = Literal["history", "responses", "timing", "judge"]


@dataclass(frozen=True)
class Metric:
    """One number a run."""

    name: str
    label: str
    unit: str
    source: Source
    higher_is_better: bool | None
    """None where neither direction is better by itself."""
    decimals: int = 3
    field: str = ""
    """The field of an answer, for ``responses``."""
    scale: float = 1.0
    """What the stored number is divided by to get the unit."""
    over_run: Callable[[Sequence[float]], float] | None = None
    """How the values of a run become one; None: the last one counts."""

    def value(self, run: Run) -> float | None:
        """The number of one run; None where the run does not have it."""
        if self.source == "judge":
            return None
        if self.over_run is not None:
            values = [v for row in (*run.history, *run.timing) if (v := finite(row.get(self.name))) is not None]
            raw = self.over_run(values) if values else None
        else:
            raw = run.mean_response(self.field) if self.source == "responses" else run.final(self.name)
        return None if raw is None else raw / self.scale


SD = "sd of the SFT model's scores"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("win_rate", "Head-to-head win rate", "share", "judge", True),
        Metric("win_rate_against_sft", "Win rate against SFT", "share", "judge", True),
        Metric("eval/score_mean", "Reward-model score", SD, "history", True),
        Metric("eval/gold_mean", "True quality (gold score)", "points", "history", True),
        Metric("eval/kl_to_reference", "KL to the SFT model", "nats per response", "history", None),
        Metric("eval/response_length", "Response length", "tokens", "history", None, 1),
        Metric("eval/perplexity", "Perplexity of held-out chosen responses", "", "history", False),
        Metric(
            "responses/score_mean",
            "Score of the final answers",
            SD,
            "responses",
            True,
            field="reward_model_score",
        ),
        Metric(
            "responses/gold_mean",
            "True quality of the final answers",
            "points",
            "responses",
            True,
            field="gold_score",
        ),
        Metric(
            "responses/num_tokens",
            "Length of the final answers",
            "tokens",
            "responses",
            None,
            1,
            "num_tokens",
        ),
        Metric(
            "responses/ended",
            "Final answers that end by themselves",
            "share",
            "responses",
            None,
            field="ended",
        ),
    )
}
COSTS = {
    metric.name: metric
    for metric in (
        Metric("budget/responses", "Responses sampled", "", "history", None, 0),
        Metric("budget/tokens_generated", "Tokens generated", "million", "history", None, 3, scale=1e6),
        Metric("budget/flops", "Floating-point operations", "10¹² (estimate)", "history", None, 3, scale=1e12),
        Metric("budget/seconds", "Wall-clock time", "minutes", "timing", False, 1, scale=60.0),
        Metric("memory/peak_mb", "Peak memory", "MB", "timing", False, 0, over_run=max),
        Metric(
            "rollout/tokens_per_second",
            "Sampling speed (median)",
            "tokens/s",
            "timing",
            True,
            0,
            over_run=statistics.median,
        ),
    )
}
