"""The single seeds below a mean: each of a few, the ends of many."""

from collections.abc import Iterable, Mapping

from gemma_alignment.report.formatting import number
from gemma_alignment.report.html import Html, h

FEW = 6
"""So many seeds stand side by side; of more, the least and the largest do."""


def below(per_seed: Mapping[str, float], decimals: int) -> Html:
    """The seeds in order, or how far they reach; each by its name where the pointer rests on them."""
    values = list(per_seed.values())
    if len(values) > FEW:
        shown = f"{number(min(values), decimals)} to {number(max(values), decimals)}"
    else:
        shown = " · ".join(number(value, decimals) for value in values)
    title = ", ".join(f"seed {seed}: {number(value, decimals)}" for seed, value in per_seed.items())
    return h("small", shown, title=title)


def order(seeds: Iterable[object]) -> str:
    """What stands below a mean, for a note: ``1 · 2 · 3``, or ``20 seeds, the least and the largest``."""
    names = list(map(str, seeds))
    return " · ".join(names) if len(names) <= FEW else f"{len(names)} seeds, the least and the largest"


def ranges(seeds: Iterable[int]) -> str:
    """Seeds as ``--seeds`` takes them: ``1-20, 42``."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][-1] + 1:
            spans[-1][1:] = [seed]
        else:
            spans.append([seed])
    return ", ".join("-".join(map(str, span)) for span in spans)
