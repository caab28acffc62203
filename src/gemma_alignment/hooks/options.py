"""What a command that an error names needs to mean the same files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

PLACES = ("data_root", "seed", "prepare_seed", "variant")
"""Parameters that say where files stand."""


@dataclass(frozen=True)
class Options:
    """The environment and the parameters of a command that say where its files stand."""

    env: str | None = None
    places: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, env: str | None, given: Mapping[str, Any]) -> Self:
        """Those of a command with ``--env=env`` and the parameters ``given``."""
        return cls(None if env in ("local", "base") else env, {name: given[name] for name in PLACES if name in given})

    def typed(self, *more: str) -> str:
        """As they stand behind a command, with the parameters ``more``, such as ``overwrite=true``, before them."""
        values = [*more, *(f"{name}={value}" for name, value in self.places.items())]
        return (f" --env={self.env}" if self.env else "") + (f" --params {','.join(values)}" if values else "")


NONE = Options()
"""Of a command that was given none."""
