"""Whether enough mutants were caught: ``make mutate`` ends with it, and fails below 90%."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

LEAST = 0.9
COUNTS = Path("mutants/mutmut-cicd-stats.json")
"""What ``mutmut export-cicd-stats`` writes."""
CAUGHT = ("killed", "timeout")
"""A mutant that loops for ever is caught by the clock."""
LEFT = ("survived", "no_tests", "suspicious", "segfault")


def score(counts: Mapping[str, int]) -> tuple[str, bool]:
    """A sentence on the mutants that were tried, and whether the tests caught enough of them."""
    caught, left = (sum(counts[name] for name in names) for names in (CAUGHT, LEFT))
    tried = caught + left
    if not tried:
        return "no mutant was tried", False
    text = f"{caught:,} of {tried:,} mutants caught ({caught / tried:.1%}, {LEAST:.0%} are asked for)"
    untried = counts["total"] - tried
    return text + f"; {untried:,} not tried" * bool(untried), caught >= LEAST * tried


if __name__ == "__main__":
    sentence, enough = score(json.loads(COUNTS.read_text("utf-8")))
    sys.stdout.write(sentence + "\n")
    sys.exit(0 if enough else 1)
