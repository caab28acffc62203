"""The words of the report: each comes from an interval and a margin, none from an author."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gemma_alignment.statistics.power import least_effect

Word = Literal["better", "worse", "equivalent", "not resolved", "not estimable"]

CLAIMS: frozenset[Word] = frozenset({"better", "worse"})
"""The words that put one method above the other."""
COHEN_WORDS = ((0.2, "negligible"), (0.5, "small"), (0.8, "medium"))
"""Cohen's conventional bounds of |d|; above the last one it is large."""


@dataclass(frozen=True)
class Verdict:
    """What may be said of method A against method B."""

    word: Word
    phrase: str
    """The word with what it does not say."""


def judge_difference(
    low: float | None, high: float | None, margin: float, higher_is_better: bool | None = True
) -> Verdict:
    """The word for a difference A - B with the interval [low, high]; ``margin`` is the least that matters.

    Beyond the margin on one side: better (worse). Beyond 0 only: better, with how little it may be.
    Wholly within the margin: equivalent. Anything else is not resolved, whatever the estimate.
    With ``higher_is_better`` None the words are "higher" and "lower" in the phrase.
    """
    if low is None or high is None:
        return Verdict("not estimable", "not estimable")
    if margin < 0.0:
        raise ValueError(f"a margin cannot be negative, got {margin}")
    if low > 0.0:
        return _direction(low > margin, high <= margin, higher_is_better is not False, higher_is_better)
    if high < 0.0:
        return _direction(high < -margin, low >= -margin, higher_is_better is False, higher_is_better)
    if -margin <= low and high <= margin and margin > 0.0:
        return Verdict("equivalent", "equivalent within the margin")
    return Verdict("not resolved", "not resolved at this n")


def _direction(beyond: bool, within: bool, good: bool, higher_is_better: bool | None) -> Verdict:
    word: Word = "better" if good else "worse"
    shown: str = word
    if higher_is_better is None:
        shown = "higher" if good else "lower"
    if beyond:
        return Verdict(word, f"{shown} by more than the margin")
    if within:
        return Verdict(word, f"{shown}, but by less than the margin")
    return Verdict(word, f"{shown}, perhaps by less than the margin")


def magnitude(d: float) -> str:
    """Cohen's word for the size of a standardised difference: negligible, small, medium or large."""
    return next((word for bound, word in COHEN_WORDS if abs(d) < bound), "large")


def magnitude_phrase(low: float | None, high: float | None, a: str, b: str) -> str | None:
    """Cohen's words at both ends of an interval of d, with the side they lie on; None without an interval."""
    if low is None or high is None:
        return None
    ends = [f"{magnitude(end)} and {a if end > 0 else b} higher" for end in (low, high)]
    return f"from {ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"{ends[0]} at both ends"


def what_seeds_show(n: int, alpha: float, power: float, floors: Sequence[float | None]) -> list[str]:
    """What ``n`` seeds a method can and cannot show, in sentences with their numbers.

    ``floors`` are the least two-sided p of the permutation and of the sign-flip test.
    """
    if n < 2:
        return [
            f"{n or 'No'} seed a method shows no spread between seeds: effect sizes, intervals over seeds "
            "and tests are not estimable. What is shown of the prompts holds for these trained models alone."
        ]
    tests = {"permutation": floors[0], "sign-flip": floors[1]}
    out_of_reach = [name for name, floor in tests.items() if floor is not None and floor > alpha]
    reach = f": p < {alpha:.2g} is out of reach of the {' and the '.join(out_of_reach)} test" if out_of_reach else ""
    stated = " and ".join(f"{floor:.3g} for the {name} test" for name, floor in tests.items() if floor is not None)
    return [
        f"With {n} seeds a method, a difference is found with {power:.0%} power from "
        f"d = {least_effect(n, power, alpha):.2f} on: one much larger than the spread between seeds. A "
        "smaller one is mostly missed, so “not resolved” does not mean “equal”.",
        f"The least two-sided p at this n is {stated}{reach}.",
        "Intervals over seeds use Student's t, those of d the noncentral t: at so few seeds a bootstrap over "
        "seeds covers far less than it says.",
        "Intervals over prompts speak of new prompts for these trained models; intervals over seeds speak of "
        "new training runs on these prompts. Neither says anything of other models, data or reward models.",
    ]
