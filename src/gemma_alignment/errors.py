"""The one error that a user is meant to read, and the one that asks a run to stop."""

import signal
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 1.
    """


class NothingToDo(UserError):
    """What was asked for is there: the command line says so and exits with status 0."""


class RunInterrupted(Exception):
    """The run was asked to stop; ``code`` is the exit status that a shell expects for the signal.

    With ``why`` nobody sent one: the run itself has learnt that it must not go on, and fails.
    """

    def __init__(self, number: int, why: str | None = None) -> None:
        self.number = number
        self.why = why
        self.name = signal.Signals(number).name
        self.code = 128 + number if why is None else 1
        super().__init__(f"stopped by {self.name}" if why is None else f"stopped: {why}")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the newest first, each once: causes may go round in a circle."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def let_through(error: BaseException) -> None:
    """Raise anew what asks the run to stop, for a handler that goes on after any other error.

    The signal may have come while a library was at work, which then has wrapped it in an error of its own.

    Raises:
        RunInterrupted: where one has led to ``error``.
    """
    for cause in chain(error):
        if isinstance(cause, RunInterrupted):
            raise RunInterrupted(cause.number, cause.why) from error  # the old one would have led to itself


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
