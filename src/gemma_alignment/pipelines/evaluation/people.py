"""Files of what people said: labelled pairs for the judge, and stored verdicts of other judges on such pairs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_alignment.errors import UserError
from gemma_alignment.judging.card import judge_card
from gemma_alignment.judging.labelled import against_labels, label_counts
from gemma_alignment.judging.references import stored_judgements, yardstick
from gemma_alignment.pipelines.data_processing.rows import check_rows

Row = Mapping[str, Any]
MOST_BYTES = 1_000_000
"""Of a line of labelled pairs."""


def labelled_rows(path: str) -> list[Row]:
    """The usable preference pairs of a file.

    Raises:
        UserError: there is no such file, or it holds none.
    """
    if not Path(path).is_file():
        raise UserError(f"no file of labelled pairs at {path}: set judge.labelled_path to one that exists, or to null.")
    with Path(path).open("rb") as lines:
        kept, rejected = check_rows(enumerate(lines, start=1), MOST_BYTES, -math.inf, math.inf)
    if not kept:
        why = f" (line {rejected[0]['line']}: {rejected[0]['reason']})" if rejected else ""
        raise UserError(f"{path} holds no preference pair that can be used{why}: judge.labelled_path needs some.")
    return [item["row"] for item in kept]


def references(path: str | None) -> dict[str, dict[str, object]]:
    """The yardstick of every judge whose verdicts are stored there; none without a path.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    from gemma_alignment.statistics.agreement import kappa

    if path is None:
        return {}
    if not Path(path).is_file():
        raise UserError(f"no stored verdicts at {path}: set judge.reference_path to a file that exists, or to null.")
    try:
        with Path(path).open(encoding="utf-8") as lines:
            stored = stored_judgements(json.loads(line) for line in lines if line.strip())
    except ValueError as error:
        raise UserError(f"{path} holds no stored verdicts ({error}): judge.reference_path needs some.") from None
    found = {}
    for judge, rows in stored.items():
        labels, results = against_labels(rows)
        found[judge] = yardstick(judge_card(rows), label_counts(labels, results), asdict(kappa(labels, results)))
    return found
