"""What a study consists of: plain descriptions of its runs, for whatever starts them."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_alignment.errors import UserError
from gemma_alignment.parameters.run import SEEDS
from gemma_alignment.stages import ARMS, CLOSING, PREPARATION, Stage, unknown_method

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")
MOST_SEEDS = 10_000
"""More are a slip of the finger, and a list that fills the memory before anything is refused."""


@dataclass(frozen=True)
class Run:
    """One process of a study: ``kedro run`` with these pipelines and parameters."""

    pipelines: tuple[str, ...]
    params: Mapping[str, Any]
    """Dotted names and values, as after ``--params``."""
    env: str | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages it runs, as far as their names and folders go."""
        parameters = {"seed": 0, "prepare_seed": 0, "variant": "", **self.params}
        return tuple(Stage.of(name, parameters) for name in self.pipelines)

    @property
    def label(self) -> str:
        """``grpo-seed42``, or the names of its stages."""
        return ", ".join(stage.run_name for stage in self.stages)

    def arguments(self) -> list[str]:
        """What follows ``kedro``."""
        words = ["run", f"--pipelines={','.join(self.pipelines)}"]
        if self.env:
            words.append(f"--env={self.env}")
        if self.params:
            words += ["--params", ",".join(f"{key}={_value(key, v)}" for key, v in self.params.items())]
        return words

    def command(self) -> str:
        """The command that does the same by hand."""
        return shlex.join(["kedro", *self.arguments()])


@dataclass(frozen=True)
class Variant:
    """One parameter of one method set to another value than the configured one."""

    method: str
    parameter: str
    """Dotted, of the method's own section or of one that all methods share."""
    value: bool | int | float | str | None
    kind: str = ""
    """What it was asked for as: ``ablation``, ``sweep`` or ``ablation+sweep``."""

    @property
    def name(self) -> str:
        """``group_size-2``: its runs live in ``{method}@group_size-2/``."""
        return f"{self.parameter.rpartition('.')[2]}-{_value(self.parameter, self.value)}"

    @property
    def params(self) -> dict[str, Any]:
        """What its runs get beyond the parameters of the study."""
        asked = {"variant_kind": self.kind} if self.kind else {}
        return {"variant": self.name, **asked, self.parameter: self.value}


@dataclass(frozen=True)
class Plan:
    """A study: preparation once, every method and variant with every seed, then evaluation and report."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    params: Mapping[str, Any]
    """Dotted parameters that every run gets."""
    env: str | None = None
    variants: tuple[Variant, ...] = ()
    """What ablations and sweeps run beside the methods as they are configured, their baseline."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError(f"--methods names no method: there are {', '.join(ARMS)}")
        for name in self.methods:
            if name not in ARMS:
                raise UserError(unknown_method(name) or f"{name} is a variant: name {name.partition('@')[0]}")
        if "seed" in self.params:
            raise UserError("a study sets the seed of each run: use --seeds instead of --params seed=…")
        if "resume" in self.params:
            raise UserError("a study knows which of its runs can go on: use --resume instead of --params resume=…")
        if self.variants and self.params.get("variant"):
            raise UserError("--ablate and --sweep name the variants themselves: leave out --params variant=…")

    @property
    def preparation(self) -> Run:
        """Data, SFT and reward model."""
        return Run(PREPARATION, self.params, self.env)

    @property
    def arms(self) -> tuple[Run, ...]:
        """One run a method and seed, then one a variant and seed.

        The methods of a seed stand side by side, so that pairs are complete early.
        """
        baseline: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in self.methods]
        variants = [(variant.method, variant.params) for variant in self.variants]
        return tuple(
            Run((method,), {"seed": seed, **self.params, **own}, self.env)
            for arms in (baseline, variants)
            for seed in self.seeds
            for method, own in arms
        )

    @property
    def closing(self) -> Run:
        """Evaluation and report."""
        return Run(CLOSING, self.params, self.env)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of them, in order."""
        return (self.preparation, *self.arms, self.closing)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``42,123,777`` and ranges such as ``1-20,42``, each seed once, in the order given.

    Raises:
        UserError: for anything else.
    """
    seeds: list[int] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = _SEEDS.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last >= SEEDS:
            raise UserError(f"--seeds {text}: a seed must be from 0 to {SEEDS - 1}, got {last}")
        if last < first:
            raise UserError(f"--seeds {text}: expected numbers and ranges such as 1-20,42, got {part!r}")
        if last - first >= MOST_SEEDS:
            raise UserError(f"--seeds {text}: {part} are {last - first + 1} seeds, and a range takes {MOST_SEEDS}")
        seeds += range(first, last + 1)
    if not seeds:
        raise UserError("--seeds names no seed: give numbers and ranges such as 1-20,42")
    return tuple(dict.fromkeys(seeds))


def parse_names(text: str) -> tuple[str, ...]:
    """``ppo,grpo``, each name once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _value(key: str, value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise UserError(f"{key}: --params cannot carry a list; write it into conf/<env>/parameters.yml")
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if "," in text:
        raise UserError(f"{key}: --params cannot carry a comma, got {text!r}")
    return text
