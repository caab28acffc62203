"""The runs of a study, read from their files."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]
Partitions = Mapping[str, Callable[[], Any]]

DATA = "data_processing"
SFT = "sft"
REWARD_MODEL = "reward_model"
_RUN = re.compile(r"(?P<family>(?P<method>\w+)(?:@(?P<variant>[^/]+))?)(?:/seed=(?P<seed>\d+))?(?:/.*)?")


@dataclass(frozen=True, order=True)
class RunKey:
    """Which run a folder holds."""

    family: str
    """Method and variant as the folder is named: ``grpo`` or ``grpo@k4``."""
    seed: int | None
    """None for what all seeds share: the SFT and the reward model."""

    @property
    def name(self) -> str:
        """The folder, as judgements name a system: ``ppo/seed=42`` or ``sft``."""
        return self.family if self.seed is None else f"{self.family}/seed={self.seed}"

    @property
    def method(self) -> str:
        """The family without its variant."""
        return self.family.partition("@")[0]

    @property
    def variant(self) -> str | None:
        """What follows the @, or None."""
        return self.family.partition("@")[2] or None


@lru_cache(maxsize=4096)  # a name stands in thousands of judgements
def parse_key(partition_id: str) -> RunKey | None:
    """The run of a partition id such as ``grpo@k4/seed=42/history.jsonl``, suffix or not; None for no run."""
    match = _RUN.fullmatch(partition_id.strip("/").removesuffix(".jsonl").removesuffix(".json"))
    if match is None:
        return None
    return RunKey(match["family"], int(match["seed"]) if match["seed"] else None)


@dataclass(frozen=True)
class Run:
    """Everything the report reads of one run."""

    key: RunKey
    history: Sequence[Row] = ()
    timing: Sequence[Row] = ()
    responses: Sequence[Row] = ()
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last_iteration(self) -> int | None:
        """The last iteration on record."""
        return int(self.history[-1]["iteration"]) if self.history else None

    @property
    def last_evaluation(self) -> int | None:
        """The last iteration with numbers on held-out prompts."""
        rows = [r for r in self.history if finite(r.get("eval/score_mean")) is not None]
        return int(rows[-1]["iteration"]) if rows else None

    def final(self, name: str) -> float | None:
        """The last value of a key of the history, else of the timing; None when it never appears."""
        for rows in (self.history, self.timing):
            for row in reversed(rows):
                if name in row:
                    return finite(row[name])
        return None

    def initial(self, name: str) -> float | None:
        """The first value of a key of the history."""
        return next((finite(row[name]) for row in self.history if name in row), None)

    def mean_response(self, name: str) -> float | None:
        """The mean of a field of the final answers; None when an answer lacks it."""
        values = [finite(row.get(name)) for row in self.responses]
        present = [v for v in values if v is not None]
        return math.fsum(present) / len(present) if present and len(present) == len(values) else None


def baseline_fingerprints(card: Mapping[str, Any]) -> dict[str, str]:
    """What the SFT model's own answers rest on, by the ``run.json`` of the stage that wrote them, the reward model's.

    It read the SFT model and made the reward model, so the one stands under its inputs and the other under its outputs.
    """
    found = {
        "sft": (card.get("fingerprints") or {}).get("sft"),
        "reward_model": (card.get("outputs") or {}).get("rm_model_bt"),
    }
    return {part: str(digest) for part, digest in found.items() if digest}


def finite(value: Any) -> float | None:
    """``value`` as a float; None for what is missing, no number or not finite."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def collect_runs(
    histories: Partitions, timings: Partitions, responses: Partitions, run_cards: Partitions
) -> dict[RunKey, Run]:
    """The runs found in any of the partitions, by family and seed.

    Each argument maps a partition id to a function that loads its rows (a mapping for ``run_cards``).
    """
    history, timing, answers = (_load(part) for part in (histories, timings, responses))
    cards = {key: load() for name, load in run_cards.items() if (key := parse_key(name))}
    keys = sorted(
        {key for part in (history, timing, answers, cards) for key in part},
        key=lambda k: (k.family, k.seed is not None, k.seed or 0),
    )
    return {
        key: Run(key, history.get(key, ()), timing.get(key, ()), answers.get(key, ()), cards.get(key) or {})
        for key in keys
    }


def family(runs: Mapping[RunKey, Run], name: str) -> dict[int, Run]:
    """The runs of one family by seed."""
    return {key.seed: run for key, run in runs.items() if key.family == name and key.seed is not None}


def _load(partitions: Partitions) -> dict[RunKey, Sequence[Row]]:
    found: dict[RunKey, Sequence[Row]] = {}
    for name, load in partitions.items():
        key = parse_key(name)
        if key is not None:
            rows: Iterable[Row] = load()
            found[key] = list(rows)
    return found
