"""Errors that a user can mend, in one message: the project's own, and those of the libraries beneath."""

import errno
import json
import re
import traceback
from pathlib import Path

from gemma_alignment.config import nearest
from gemma_alignment.errors import UserError, brief, chain
from gemma_alignment.stages import EXPORT, STAGES

PACKAGE = __name__.partition(".")[0]
FULL = ("No space left on device", "database or disk is full")
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
UNKNOWN_PIPELINE = re.compile(r"Failed to find the pipeline named '([^']*)'")
"""Kedro's words, which go on about how a developer would register one."""
NO_MEMORY = ("can't allocate memory", "CUDA out of memory", "Cannot allocate memory")


def explained(error: Exception) -> str | None:
    """What is wrong, where, and what to do; None for an error that only a developer can read."""
    errors = list(chain(error))
    if (own := next((one for one in errors if isinstance(one, UserError)), None)) is not None:
        return str(own)
    if any(_is_full(one) for one in errors):
        return _full(errors)
    if (refused := next((one for one in errors if getattr(one, "errno", None) in READ_ONLY), None)) is not None:
        return _read_only(refused, errors)
    damaged = next((one for one in errors if isinstance(one, json.JSONDecodeError)), None)
    if damaged is not None and (place := _place(errors)) is not None:
        return (
            f"{place} is not JSON ({damaged}): it was changed, or damaged by the disk. Put it back, or make it anew by "
            "the pipeline that wrote it, with --params overwrite=true."
        )
    if any(_is_out_of_memory(one) for one in errors):
        return (
            f"Out of memory: {brief(next(one for one in errors if _is_out_of_memory(one)))}\n"
            "Lower the microbatch_size of the stage or rollout.batch_size (what is computed stays the same), run fewer "
            "processes at a time (--workers), or free memory. Then go on with --params resume=true."
        )
    text = str(error)
    if isinstance(error, ValueError) and (name := UNKNOWN_PIPELINE.match(text)):
        return _pipeline(name[1])
    if type(error).__name__ == "MissingConfigException" and (path := re.search(r"directory: (\S+)", text)):
        return _environment(Path(path[1]))
    if type(error).__module__.startswith(("mlflow.", "sqlalchemy.")):
        return (
            f"The MLflow store cannot be used: {brief(error)}\n"
            "Check MLFLOW_TRACKING_URI, or unset it for the store at the project's root."
        )
    return None


def where(error: BaseException) -> str:
    """File, line and function of this package's innermost frame, else of the innermost frame at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if PACKAGE in one.filename]
    frame = (own or frames or [traceback.FrameSummary("the command line", 0, "")])[-1]
    return f"{frame.filename}:{frame.lineno} {frame.name}".strip()


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in FULL)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def _read_only(refused: BaseException, errors: list[BaseException]) -> str:
    place = getattr(refused, "filename", None) or _place(errors)
    return (
        f"Cannot write{f' to {place}' if place else ''} ({getattr(refused, 'strerror', None)}). Allow it, or choose "
        "another folder with --params data_root=FOLDER. What was finished before is whole."
    )


def _place(errors: list[BaseException]) -> str | None:
    named = (re.search(r"filepath=(?:\w+\()?'([^']+)'", str(one)) for one in errors)
    return next((found[1] for found in named if found), None)


def _full(errors: list[BaseException]) -> str:
    place = _place(errors)
    return (
        f"No space left on the disk{f' for {place}' if place else ''}. Free some, or choose a folder on another "
        "disk with --params data_root=FOLDER. What was finished before is whole."
    )


def _pipeline(name: str) -> str:
    near = nearest(name, (*STAGES, EXPORT))
    hint = f"did you mean {near}?" if near else f"there are {', '.join((*STAGES, EXPORT))}"
    return f"unknown pipeline {name}; {hint}"


def _environment(path: Path) -> str:
    known = sorted(one.name for one in path.parent.iterdir() if one.is_dir()) if path.parent.is_dir() else []
    near = nearest(path.name, known)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
    return f"unknown environment {path.name}: there is no folder {path}; {hint}"
