"""What the tests of the objectives share: functions as production runs them, without the shape checks."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turn the run-time shape checks of the tests off: what is refused now is refused in a run too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
