"""What every figure is made of.

A figure is a Plotly specification: a plain mapping of ``data`` and ``layout``. Text, grid and
background take the colours of the page, in light, dark and print; only data has a colour here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

COLORS = ("#2f84c9", "#dd6b20", "#2f9e77", "#b065b0", "#b8941f", "#7a7f87")
GREY = "#8b929b"
PALE = "#c6cbd1"


@dataclass(frozen=True)
class Figure:
    """One figure of the page."""

    id: str
    title: str
    caption: str
    spec: Spec
    height: int = 320


def colors_of(families: Sequence[str]) -> dict[str, str]:
    """One colour a family, by its place."""
    return {family: COLORS[i % len(COLORS)] for i, family in enumerate(families)}


def faint(color: str, alpha: float) -> str:
    """A colour ``#rrggbb`` seen through."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def short(value: float) -> float:
    """Five significant digits: enough for a pixel."""
    return float(f"{value:.5g}")
