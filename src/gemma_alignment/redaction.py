"""Secrets of the environment, taken out of whatever is written: an error of a library may carry one."""

import logging
import os
import re
from urllib.parse import urlsplit

NAMES = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)$")
SHORTEST = 8
"""Shorter values are words that stand in many places."""
HIDDEN = "***"


def secrets() -> list[str]:
    """The values of variables whose names end like a secret's, and the passwords in addresses; the longest first."""
    found = {value for name, value in os.environ.items() if NAMES.search(name.upper())}
    for value in os.environ.values():
        if "://" in value and "@" in value:
            try:
                found.add(urlsplit(value).password or "")
            except ValueError:
                continue
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def scrubbed(text: str) -> str:
    """The text with every secret of the environment replaced by stars."""
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return text


def scrub_error(error: BaseException) -> None:
    """Take secrets out of an error and of what led to it, for whoever writes it down after us."""
    cause: BaseException | None = error
    while cause is not None:
        cause.args = tuple(scrubbed(part) if isinstance(part, str) else part for part in cause.args)
        cause = cause.__cause__ or cause.__context__


class Scrubber(logging.Filter):
    """Takes secrets out of log records, their tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record where it holds one; it is always logged."""
        message = record.getMessage()
        if (clean := scrubbed(message)) != message:
            record.msg, record.args = clean, ()
        if record.exc_info is not None:
            text = logging.Formatter().formatException(record.exc_info)
            if (clean := scrubbed(text)) != text:
                record.exc_info, record.exc_text = None, None
                record.msg, record.args = f"{record.getMessage()}\n{clean}", ()
        return True


def watch_logs() -> None:
    """Let every handler that is set up by now scrub what it writes."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, Scrubber) for one in handler.filters):
            handler.addFilter(Scrubber())
