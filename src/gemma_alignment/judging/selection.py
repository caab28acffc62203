"""Which systems meet: from the folders of finished runs to pairs of the same seed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from gemma_alignment.errors import UserError
from gemma_alignment.stages import ARMS

SFT = "sft"
_RUN = re.compile(r"(?P<method>\w+(?:@[^/]+)?)/seed=(?P<seed>\d+)")


@dataclass(frozen=True)
class System:
    """A model whose answers are judged: a run of a method, or the SFT model."""

    method: str
    """With its variant, as in ``grpo@k4``."""
    seed: int | None
    """None for the SFT model, which every seed shares."""

    @property
    def name(self) -> str:
        """The run's folder: ``ppo/seed=42``, or ``sft``."""
        return self.method if self.seed is None else f"{self.method}/seed={self.seed}"

    @classmethod
    def of(cls, partition: str) -> "System | None":
        """The system of a partition id such as ``ppo/seed=42/``; None for anything else."""
        folder = partition.removesuffix("responses.jsonl").removesuffix("run.json").strip("/")
        if folder == SFT:
            return cls(SFT, None)
        run = _RUN.fullmatch(folder)
        return cls(run["method"], int(run["seed"])) if run else None


def select_systems(
    partitions: Sequence[str], methods: Sequence[str] | None, seeds: Sequence[int] | None
) -> dict[System, str]:
    """The systems asked for, each with its partition id; the SFT model always.

    None asks for every seed, and for every method as it is configured: a variant is judged only by name. So
    ablations neither change nor bill the comparison that they stand beside.
    """
    found = {system: partition for partition in partitions if (system := System.of(partition))}
    return {
        system: partition
        for system, partition in found.items()
        if system.seed is None
        or (_is_asked(system.method, methods) and (seeds is None or system.seed in seeds))
    }


def _is_asked(method: str, methods: Sequence[str] | None) -> bool:
    return "@" not in method if methods is None else method in methods


def pair_systems(systems: Sequence[System], against_sft: bool) -> list[tuple[System, System]]:
    """Every two methods of the same seed, and each method with the SFT model.

    PPO stands first in its pairs, the SFT model last.

    Raises:
        UserError: nothing meets anything.
    """
    runs = sorted((s for s in systems if s.seed is not None), key=_rank)
    pairs = [(a, b) for a, b in combinations(runs, 2) if a.seed == b.seed]
    sft = [s for s in systems if s.seed is None]
    if against_sft:
        pairs += [(run, sft[0]) for run in runs if sft]
    if not pairs:
        found = ", ".join(sorted(s.name for s in systems)) or "nothing"
        raise UserError(
            f"there are no two systems to compare; responses were found of: {found}. A pair needs two "
            "methods of one seed, or a method and the SFT model: for example `kedro run --pipeline=ppo "
            "--params seed=42` and `kedro run --pipeline=grpo --params seed=42`. Settings "
            "evaluation.methods and evaluation.seeds may leave runs out."
        )
    return pairs


def check_shared_models(cards: Mapping[System, Mapping[str, str]]) -> None:
    """Refuse runs that do not rest on the same SFT model and the same reward model.

    Args:
        cards: for each system, the fingerprints of its run.

    Raises:
        UserError: names the runs on either side and the ways out.
    """
    for part in ("sft", "reward_model"):
        groups: dict[str, list[str]] = {}
        for system, fingerprints in cards.items():
            if fingerprints.get(part):
                groups.setdefault(str(fingerprints[part]), []).append(system.name)
        if len(groups) > 1:
            sides = "; ".join(f"{key[:12]} in {', '.join(sorted(names))}" for key, names in sorted(groups.items()))
            raise UserError(
                f"the runs to be compared do not share one {part.replace('_', ' ')} (fingerprints: {sides}). "
                "Train the older ones again, each by its own command with --params overwrite=true, or name those that "
                "belong together in evaluation.methods and evaluation.seeds."
            )


def _rank(system: System) -> tuple[int, int, str]:
    base = system.method.split("@")[0]
    place = ARMS.index(base) if base in ARMS else len(ARMS)
    return (system.seed or 0, place, system.method)
