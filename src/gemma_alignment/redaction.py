"""Secrets, taken out of whatever is written: an error of a library may carry one."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from gemma_alignment.errors import chain

NAMES = re.compile(r"(KEY(_ID)?|TOKEN|PASSWORD|PASSWD|SECRET|CONNECTION_STRING)S?$")
SHORTEST = 8
"""Shorter values are words that stand in many places."""
IN_ADDRESS = re.compile(r"""(://[^\s/?#@:"'<>]*:)[^\s/?#"'<>]+@""")
"""A password in an address, of whatever length: where it stands tells what it is."""
HIDDEN = "***"

_configured: set[str] = set()
"""Credentials of ``conf/local`` and the like, told by ``keep_secret``."""


def keep_secret(credentials: Any) -> None:
    """From now on treat every text in ``credentials``, at whatever depth, as a secret."""
    _configured.update(_texts(credentials))


def secrets() -> list[str]:
    """All that is to be hidden, the longest first.

    The values of variables whose names end like a secret's, passwords (or the names that stand for them) in addresses,
    as written and decoded, and credentials of the configuration.
    """
    found = {value for name, value in os.environ.items() if NAMES.search(name.upper())} | _configured
    for value in (*os.environ.values(), *_configured):
        if "://" in value and "@" in value:
            with suppress(ValueError):
                address = urlsplit(value)
                word = address.password or (address.username if address.scheme.startswith("http") else None) or ""
                found |= {word, unquote(word)}
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def scrubbed(text: str) -> str:
    """The text with every secret replaced by stars."""
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return IN_ADDRESS.sub(rf"\g<1>{HIDDEN}@", text)


def scrub_error(error: BaseException) -> None:
    """Take secrets out of an error and of what led to it, for whoever writes it down after us."""
    for cause in chain(error):
        cause.args = tuple(map(_clean, cause.args))
        for name, value in list(vars(cause).items()):
            if isinstance(value, str | dict | list):
                with suppress(AttributeError):
                    setattr(cause, name, _clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    return list(map(_clean, value)) if isinstance(value, list) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


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
    """Let every handler that is set up by now scrub what it writes; MLflow and others have some of their own."""
    others = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    for handler in (handler for one in (logging.root, *others) for handler in one.handlers):
        if not any(isinstance(one, Scrubber) for one in handler.filters):
            handler.addFilter(Scrubber())
