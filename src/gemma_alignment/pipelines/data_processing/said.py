"""What is said of the rows of a source: counts, reasons, warnings."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.pipelines.data_processing.rows import OTHER_PROMPT, pair_key, text_of
from gemma_alignment.pipelines.data_processing.seen import Seen

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
NUMBER = re.compile(r"(?<![-\w])[0-9]+(\.[0-9]+)?")
"""What tells reasons of one kind apart; the 8 of UTF-8 is none."""
MANY = 0.2
"""Share of rejected rows from which on a warning says what sets the limits."""


def counts_of(good: Rows, bad: Rows) -> dict[str, int]:
    """What is logged of the rows, by metric, in one pass over each."""
    found = Counter(
        dict.fromkeys(("other_prompt", "equal_scores", "reversed_scores", "contrary_pairs", "doubled_prompts"), 0)
    )
    pairs: Seen[int] = Seen()
    names: Seen[str] = Seen()
    doubled: Seen[int] = Seen()
    for row in good:
        found["equal_scores"] += row["score_chosen"] == row["score_rejected"]
        found["reversed_scores"] += row["score_chosen"] < row["score_rejected"]
        found["contrary_pairs"] += pairs.get(pair_key(row, "rejected", "chosen")) is not None  # in both orders
        pairs.first(pair_key(row), 1)
        if names.first(text_of(row), row["prompt_id"]) != row["prompt_id"]:
            doubled.first(text_of(row), 1)
    found["other_prompt"] = sum(item["reason"].endswith(OTHER_PROMPT) for item in bad)
    found["doubled_prompts"] = len(doubled)
    return {
        "data/rows_kept": len(good), "data/rows_rejected": len(bad),
        **{f"data/{name}": count for name, count in found.items()},
    }  # fmt: skip


def reasons_of(bad: Rows) -> list[str]:
    """How many rows were rejected for which reason and where the first of them is, the commonest reason first."""
    first: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for item in bad:
        kind = NUMBER.sub("N", item["reason"])
        first.setdefault(kind, item["line"])
        counts[kind] += 1
    return [f"  {count:6d}  {kind} (line {first[kind]})" for kind, count in counts.most_common()]


def too_few(good: Rows, bad: Rows, origin: str, least: int) -> str:
    """Why a run stops when fewer than ``least`` rows of ``origin`` can be used, and what may be done."""
    return "\n".join(
        [
            f"Only {len(good)} preference rows of {origin} are usable, but preferences.min_rows is {least}.",
            f"Rejected: {len(bad)}", *reasons_of(bad),
            "Mend the source, raise preferences.max_prompt_tokens or max_response_tokens, or lower min_rows.",
        ]
    )  # fmt: skip


def log_counts(counts: Mapping[str, int], bad: Rows) -> None:
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
