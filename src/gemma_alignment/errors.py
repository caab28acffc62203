"""The one error that a user is meant to read, and the one that asks a run to stop."""

import signal


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 1.
    """


class NothingToDo(UserError):
    """What was asked for is there: the command line says so and exits with status 0."""


class RunInterrupted(Exception):
    """The run was asked to stop; ``code`` is the exit status that a shell expects for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.name = signal.Signals(number).name
        self.code = 128 + number


def let_through(error: BaseException) -> None:
    """Raise anew what asks the run to stop, for a handler that goes on after any other error.

    The signal may have come while a library was at work, which then has wrapped it in an error of its own.

    Raises:
        RunInterrupted: where one has led to ``error``.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RunInterrupted):
            raise cause
        cause = cause.__cause__ or cause.__context__


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
