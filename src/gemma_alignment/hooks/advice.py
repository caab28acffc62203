"""Kedro's advice after an error: other words for the same command, which push the cause off the screen."""

import logging

RUNNER = "kedro.runner.sequential_runner"
ADVICE = ("No nodes ran.", "--from-nodes")
"""What its sentences hold. ``--params resume=true`` goes on better: with the checkpoints."""


def is_needed(record: logging.LogRecord) -> bool:
    """Whether a message of the runner is another one."""
    return not any(words in record.getMessage() for words in ADVICE)


def leave_out_advice() -> None:
    """Say nothing of it from now on."""
    logging.getLogger(RUNNER).addFilter(is_needed)
