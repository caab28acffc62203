"""What is said of the rows of a source: counts, reasons, warnings."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gemma_alignment.pipelines.data_processing.rows import OTHER_PROMPT, pair_key, text_of

logger = logging.getLogger(__name__)

Row = dict[str, Any]
NUMBER = re.compile(r"(?<![-\w])[0-9]+(\.[0-9]+)?")
"""What tells reasons of one kind apart; the 8 of UTF-8 is none."""
MANY = 0.2
"""Share of rejected rows from which on a warning says what sets the limits."""


def counts_of(good: list[Row], bad: list[Row]) -> dict[str, int]:
    """What is logged of the rows, by metric."""
    return {
        "data/rows_kept": len(good),
        "data/rows_rejected": len(bad),
        "data/other_prompt": sum(item["reason"].endswith(OTHER_PROMPT) for item in bad),
        "data/equal_scores": sum(row["score_chosen"] == row["score_rejected"] for row in good),
        "data/reversed_scores": sum(row["score_chosen"] < row["score_rejected"] for row in good),
        "data/contrary_pairs": _contrary_pairs(good),
        "data/doubled_prompts": _doubled_prompts(good),
    }


def _contrary_pairs(good: list[Row]) -> int:
    """How many pairs of answers stand there in both orders."""
    keys = {pair_key(row) for row in good}
    return sum(pair_key(row, "rejected", "chosen") in keys for row in good) // 2


def _doubled_prompts(good: list[Row]) -> int:
    """How many prompts stand there under more than one prompt_id."""
    names = {row["prompt_id"]: text_of(row) for row in good}
    return sum(count > 1 for count in Counter(names.values()).values())


def reasons_of(bad: list[Row]) -> list[str]:
    """How many rows were rejected for which reason and where the first of them is, the commonest reason first."""
    first: dict[str, int] = {}
    kinds = [NUMBER.sub("N", item["reason"]) for item in bad]
    for kind, item in zip(kinds, bad, strict=True):
        first.setdefault(kind, item["line"])
    return [f"  {count:6d}  {kind} (line {first[kind]})" for kind, count in Counter(kinds).most_common()]


def too_few(good: list[Row], bad: list[Row], origin: str, least: int) -> str:
    """Why a run stops when fewer than ``least`` rows of ``origin`` can be used, and what may be done."""
    return "\n".join(
        [
            f"Only {len(good)} preference rows of {origin} are usable, but preferences.min_rows is {least}.",
            f"Rejected: {len(bad)}", *reasons_of(bad),
            "Mend the source, raise preferences.max_prompt_tokens or max_response_tokens, or lower min_rows.",
        ]
    )  # fmt: skip


def log_counts(counts: Mapping[str, int], bad: list[Row]) -> None:
    """Say how many rows are kept and why the others are not; warn of many, and of scores that contradict the label."""
    kept, rejected = counts["data/rows_kept"], counts["data/rows_rejected"]
    equal, turned, contrary = (counts[f"data/{kind}"] for kind in ("equal_scores", "reversed_scores", "contrary_pairs"))
    logger.info(
        "%s", "\n".join([f"{kept} rows kept ({equal} with equal scores), {rejected} rejected", *reasons_of(bad)])
    )
    if turned:
        logger.warning(
            "%d kept rows give the rejected answer the higher score. They stay: `chosen` is the label that the reward "
            "model learns. Where the scores are right, leave these rows out of the source",
            turned,
        )
    if contrary:
        logger.warning(
            "Pairs of answers that the source gives in both orders: %d. Both rows stay and contradict each other. "
            "Where you know which is right, leave the other out of the source",
            contrary,
        )
    if rejected > MANY * (kept + rejected):
        logger.warning(
            "More than %.0f%% of the rows are rejected. Where they are too long: preferences.max_prompt_tokens, "
            "preferences.max_response_tokens, tokenizer.vocabulary_size (a larger one makes shorter texts) and "
            "tiny_model.max_positions set the limits", 100 * MANY,
        )  # fmt: skip
