"""A tracking server is waited for where a run of a study needs its answer: while it opens, and before each node.

What is sent while a node trains is held back instead, see ``datasets/metric_writer.py``.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from kedro.framework.hooks import hook_impl

from gemma_alignment.hooks.store import PARENT

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
"""MLflow's own switch: how often it repeats a request, after 0, 4, 8, 16, … and at most 120 seconds."""
MANY = "10"
"""The most that MLflow allows: ten minutes in all."""


class Patience:
    """Around every hook of those moments, kedro-mlflow's among them, which log parameters one by one."""

    @hook_impl(wrapper=True)
    def after_context_created(self) -> Generator[None, Any, Any]:
        """The experiment is opened."""
        with patient():
            return (yield)

    @hook_impl(wrapper=True)
    def before_pipeline_run(self) -> Generator[None, Any, Any]:
        """The run is opened, and what it was started with is written down."""
        with patient():
            return (yield)

    @hook_impl(wrapper=True)
    def before_node_run(self) -> Generator[None, Any, Any]:
        """A node's parameters are written down."""
        with patient():
            return (yield)


@contextmanager
def patient() -> Iterator[None]:
    """Let a run of a study repeat requests for ten minutes: the server was there when the study began."""
    usual = os.environ.get(RETRIES)
    if PARENT not in os.environ or usual is None:
        yield
        return
    os.environ[RETRIES] = MANY
    try:
        yield
    finally:
        os.environ[RETRIES] = usual
