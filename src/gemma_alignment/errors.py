"""The one error that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 1.
    """


class NothingToDo(UserError):
    """What was asked for is there: the command line says so and exits with status 0."""


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
