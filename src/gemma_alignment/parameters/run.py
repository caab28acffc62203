"""The parameters that belong to a run as a whole."""

import re
from dataclasses import dataclass
from typing import Literal

from gemma_alignment.parameters.places import check_inside
from gemma_alignment.stages import ARMS, unknown_method
from gemma_alignment.storage.address import check_address

VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")

SEEDS = 2**32
"""How many seeds there are: what every generator takes."""


@dataclass(frozen=True)
class RunParameters:
    """What stands at the top level of ``parameters.yml``."""

    seed: int
    """Drives the policy-optimisation arms alone."""
    prepare_seed: int
    """Drives data, SFT and reward model."""
    data_root: str
    """The folder of every dataset; or a bucket, which is worked on in a folder of each machine."""
    variant: str
    """Name of a deviating configuration, whose arms live in ``{method}@{variant}/``; else empty."""
    variant_kind: Literal["", "ablation", "sweep", "ablation+sweep"]
    """Which section of the report a variant was asked for; empty: what its values suggest. A study sets it."""
    method: str
    """Whose policy the export pipeline writes; nothing else reads it."""
    overwrite: bool
    """Whether finished outputs of another configuration, and interrupted runs, may be replaced."""
    resume: bool
    """Whether an interrupted training goes on from its last checkpoint."""

    def __post_init__(self) -> None:
        for name in ("seed", "prepare_seed"):
            if not 0 <= getattr(self, name) < SEEDS:
                raise ValueError(f"{name} must be from 0 to {SEEDS - 1}, got {getattr(self, name)}")
        if self.resume and self.overwrite:
            raise ValueError("resume=true goes on with a run and overwrite=true begins anew: give one of them")
        if self.method not in ARMS:
            raise ValueError(unknown_method(self.method) or f"method {self.method}: give the variant as variant=NAME")
        if not self.data_root:
            raise ValueError("data_root must name a folder")
        check_address(self.data_root)
        check_inside(data_root=self.data_root)
        if self.variant_kind and not self.variant:
            raise ValueError(f"variant_kind is {self.variant_kind!r}, but there is no variant: give variant=NAME too")
        if self.variant and not VARIANT.fullmatch(self.variant):
            raise ValueError(
                "variant becomes part of a folder's name: letters, digits and . _ - + = only, "
                f"got {self.variant!r}"
            )
