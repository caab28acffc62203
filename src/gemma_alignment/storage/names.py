"""The names of a study's files: which belong together, who needs them, in which order they may arrive."""

from collections.abc import Callable

from gemma_alignment.storage.lease import LEASE

RECORD = "run.json"
"""The record in a run's folder: what it was made from, and how it ended."""
CHECKPOINTS = "checkpoints"
"""Name of their folder in a run's folder."""
SUMS = "SHA256SUMS"
"""``sha256sum --check SHA256SUMS`` verifies a checkpoint by hand."""
LOG = ".log"
LINES = (".jsonl", LOG)
"""Files that grow while a run runs."""
PAID = "07_model_output/judge_cache"
"""How the files begin that hold what was paid for."""

Wanted = Callable[[str], bool]


def group_of(name: str) -> str:
    """What a file belongs to: the folder of a run and seed, else the first two parts of its name."""
    parts = name.split("/")
    return "/".join(parts[: 3 if len(parts) > 2 and parts[2].startswith("seed=") else 2])


def place_of(name: str) -> str:
    """The folder of a file."""
    return name.rpartition("/")[0]


def is_data(name: str) -> bool:
    """Whether a name is a file of a study: not a lease, a lock, or what is being written."""
    parts = name.split("/")
    is_hidden = any(part.startswith(".") for part in parts)
    return len(parts) > 1 and not is_hidden and parts[-1] != LEASE and not parts[-1].endswith(".claims")


def everything(name: str) -> bool:
    """Every file."""
    return True


def but_checkpoints(name: str) -> bool:
    """All but the contents of checkpoints, of which it is only known that they are there."""
    return f"/{CHECKPOINTS}/" not in name or name.endswith(f"/{SUMS}")


def small(name: str) -> bool:
    """Records, lines, logs and tables: what says how far a study is."""
    return name.startswith("07_model_output/") and but_checkpoints(name)


def rank(name: str) -> tuple[int, str]:
    """When a file may arrive: what others count on comes before them."""
    if name.endswith(f"/{RECORD}"):
        return 3, name
    if f"/{CHECKPOINTS}/" in name:
        return (2 if name.endswith(f"/{SUMS}") else 1), name
    return 0, name
