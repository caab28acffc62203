"""Which base, role, method and seed an adapter was trained for: written beside it, checked before it is used.

PEFT loads any adapter whose shapes fit, and the shapes of a study's adapters all fit each other.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gemma_alignment.errors import UserError, brief

FILE = "provenance.json"
POINTER = "base_reference.json"
BLOCK = 1 << 22


@dataclass(frozen=True)
class Provenance:
    """What an adapter belongs to."""

    role: str
    base: str | None
    """Digest of the base's configuration and weights; None where there was no directory to read."""
    method: str | None = None
    seed: int | None = None

    def write(self, directory: str) -> None:
        """Write ``provenance.json``."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        Path(directory, FILE).write_text(text + "\n", encoding="utf-8")


def model_digest(directory: str) -> str | None:
    """SHA-256 over configuration and weights of a model's directory, or over its pointer to the hub.

    Where the directory lies does not count; None where it holds no model.
    """
    folder = Path(directory)
    files = [folder / POINTER] if (folder / POINTER).exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    total = hashlib.sha256()
    for file in [*files, *([folder / "config.json"] if (folder / "config.json").exists() else [])]:
        total.update(f"{file.name}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                total.update(block)
    return total.hexdigest()


def check_adapter(directory: str, role: str, base: str, method: str | None = None) -> None:
    """Refuse an adapter of another role, another method or another base. One without a record is not refused.

    Args:
        directory: the adapter's.
        role: what it is to play.
        base: directory of the model that it must have been trained on.
        method: the method that must have trained it, if one must.

    Raises:
        UserError: says what it is and what was asked for.
    """
    try:
        found = Provenance(**json.loads(Path(directory, FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Cannot read {Path(directory, FILE)}: {brief(error)}\n{_ANEW}") from error
    if found.role != role:
        raise UserError(f"The adapter in {directory} is that of a {found.role}, not of a {role}. {_ANEW}")
    if method is not None and found.method is not None and found.method != method:
        raise UserError(f"The adapter in {directory} was trained by {found.method}, not by {method}. {_ANEW}")
    asked = model_digest(base)
    if found.base is not None and found.base != asked:
        raise UserError(
            f"The adapter in {directory} was trained on another base (sha256 {found.base[:12]}) than {base} "
            f"({str(asked)[:12]}): its weights mean nothing there. {_ANEW}"
        )


_ANEW = "Make it anew with the pipeline that wrote it, or give the folder that it came from."
