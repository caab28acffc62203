"""How far two raters agree beyond chance (Cohen 1960; McNemar 1947)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from gemma_alignment.statistics.tests import Significance, sign_test


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa beside the plain share of agreement."""

    kappa: float | None = None
    agreement: float | None = None
    n: int = 0
    reason: str | None = None
    """Why a number is None."""


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """kappa = (p_o - p_e) / (1 - p_e) of two raters over the same items.

    p_o is the share of equal labels, p_e = sum of the products of the labels' shares. Undefined
    when both raters give one and the same label throughout. ValueError when the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"two raters of the same items: got {len(first)} and {len(second)} labels")
    n = len(first)
    if n == 0:
        return Agreement(reason="no item was rated twice")
    equal = sum(a == b for a, b in zip(first, second, strict=True))
    left, right = Counter(first), Counter(second)
    # Whole numbers until the last division: no rounding, so 0/0 is seen as such.
    chance = sum(left[label] * right[label] for label in left)
    if chance == n * n:
        return Agreement(agreement=equal / n, n=n, reason="both raters gave one and the same label")
    return Agreement((n * equal - chance) / (n * n - chance), equal / n, n)


def mcnemar(only_first: int, only_second: int) -> Significance:
    """McNemar's exact test: the two kinds of disagreement against each other at 1/2."""
    result = sign_test(only_first, only_second)
    if result.reason:
        return Significance(reason="the two never disagree")
    return Significance(float(min(only_first, only_second)), result.p, result.floor)
