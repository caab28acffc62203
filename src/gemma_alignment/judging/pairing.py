"""From two verdicts by slot to one result for a pair."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from gemma_alignment.schemas import Verdict

Row = Mapping[str, object]
Result = Literal["win", "loss", "tie"]

UNPARSED = "unparsed"
"""What stands in a row of judgements where a reply is no verdict."""

_FIRST_SHOWN: dict[str, Result] = {"first": "win", "second": "loss", "tie": "tie"}
_SECOND_SHOWN: dict[str, Result] = {"first": "loss", "second": "win", "tie": "tie"}


def resolve(verdict_ab: "Verdict | None", verdict_ba: "Verdict | None") -> Result | None:
    """The result for system A, whose answer stood first in order AB and second in order BA.

    Orders that name the same system decide; orders that disagree are a tie, tie against
    win included; a missing verdict leaves the pair without a result (None), never a tie.

    ========  ========  ========  ======  ======
    AB \\ BA   first     second    tie     None
    ========  ========  ========  ======  ======
    first     tie       win       tie     None
    second    loss      tie       tie     None
    tie       tie       tie       tie     None
    None      None      None      None    None
    ========  ========  ========  ======  ======

    Raises:
        ValueError: a verdict is none of "first", "second", "tie" and None.

    Source: Zheng et al. (2023), "Judging LLM-as-a-Judge", section 3.4 (arXiv:2306.05685).
    """
    for verdict in (verdict_ab, verdict_ba):
        if verdict is not None and verdict not in _FIRST_SHOWN:
            raise ValueError(f'a verdict is "first", "second", "tie" or None, got {verdict!r}')
    if verdict_ab is None or verdict_ba is None:
        return None
    in_ab, in_ba = _FIRST_SHOWN[verdict_ab], _SECOND_SHOWN[verdict_ba]
    return in_ab if in_ab == in_ba else "tie"


def verdicts_by_pair(
    judgements: Sequence[Row],
) -> "dict[tuple[str, str, str], tuple[Verdict | None, Verdict | None]]":
    """(system_a, system_b, prompt_id) -> the verdicts of orders AB and BA.

    None stands where a verdict is unparsed or absent.
    """
    found: dict[tuple[str, str, str], dict[str, Verdict | None]] = {}
    for row in judgements:
        key = (str(row["system_a"]), str(row["system_b"]), str(row["prompt_id"]))
        verdict = None if row["verdict"] == UNPARSED else cast("Verdict", row["verdict"])
        found.setdefault(key, {})[str(row["order"])] = verdict
    return {key: (orders.get("ab"), orders.get("ba")) for key, orders in found.items()}
