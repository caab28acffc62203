"""What nodes return when they made a model: objects with ``save_pretrained(directory)``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gemma_alignment.errors import UserError, brief
from gemma_alignment.modeling.protocols import Role
from gemma_alignment.modeling.provenance import POINTER, Provenance, model_digest


@dataclass(frozen=True)
class SavedModel:
    """A whole model with its tokenizer."""

    model: Any
    tokenizer: Any
    card: str | None = None

    def save_pretrained(self, directory: str) -> None:
        """Write safetensors, configuration, tokenizer and chat template, and the card as ``README.md``."""
        self.model.save_pretrained(directory, safe_serialization=True)
        self.tokenizer.save_pretrained(directory)
        if self.card is not None:
            Path(directory, "README.md").write_text(self.card, encoding="utf-8")
        _readable_as(Path(directory, "config.json"))


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in PEFT's standard layout, with a head and a few numbers beside it where it has them."""

    config: Any
    tensors: dict[str, Tensor]
    base: str
    provenance: Provenance
    head: dict[str, Tensor] | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    def save_pretrained(self, directory: str) -> None:
        """Write ``adapter_model.safetensors``, ``adapter_config.json``, ``provenance.json``, ``head.safetensors``."""
        from safetensors.torch import save_file

        Path(directory).mkdir(parents=True, exist_ok=True)
        settings = {**self.config.to_dict(), "base_model_name_or_path": self.base, "inference_mode": True}
        settings = {key: sorted(v) if isinstance(v, set) else v for key, v in settings.items()}
        Path(directory, "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        save_file(self.tensors, Path(directory) / "adapter_model.safetensors", metadata={"format": "pt"})
        self.provenance.write(directory)
        if self.head is not None:
            save_file(self.head, Path(directory) / "head.safetensors", metadata={"format": "pt"})
        if self.numbers:
            Path(directory, "normalizer.json").write_text(json.dumps(self.numbers, indent=2, sort_keys=True) + "\n")
        _readable_as(Path(directory, "adapter_config.json"))


def _readable_as(written: Path) -> None:
    """Give the weights beside a file its mode: safetensors lets their owner alone read them, whatever the umask."""
    for weights in written.parent.glob("*.safetensors"):
        weights.chmod(written.stat().st_mode)


def saved_adapter(
    model: Any, role: Role, base: str, numbers: dict[str, float] | None = None, *, method: str | None = None,
    seed: int | None = None,
) -> SavedAdapter:  # fmt: skip
    """Copy a role's adapter (and head) out of its base; ``base`` is the directory that this was read from."""
    from peft import get_peft_model_state_dict

    holder = model.holder(role)
    state = get_peft_model_state_dict(holder.peft, adapter_name=role)
    head = holder.heads.get(role)
    return SavedAdapter(
        provenance=Provenance(role, model_digest(base), method, seed),
        config=holder.peft.peft_config[role],
        tensors={key: value.detach().cpu().contiguous().clone() for key, value in state.items()},
        base=base,
        head={key: value.detach().cpu().clone() for key, value in head.state_dict().items()} if head else None,
        numbers=numbers or {},
    )


def read_normalizer(directory: str) -> tuple[float, float]:
    """Mean and sd that put a reward model's output on its own scale.

    Raises:
        UserError: when the file is missing or damaged.
    """
    path = Path(directory, "normalizer.json")
    try:
        numbers = json.loads(path.read_text())
        return float(numbers["mean"]), float(numbers["sd"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Cannot read {path}: {brief(error)}\nMake it anew with kedro run --pipeline=reward_model."
        ) from error


@dataclass(frozen=True)
class HubReference:
    """A pinned model of the hub, saved as a pointer: its weights stay in the hub's own cache."""

    repo_id: str
    revision: str

    def save_pretrained(self, directory: str) -> None:
        """Write ``base_reference.json``."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"repo_id": self.repo_id, "revision": self.revision}, indent=2)
        Path(directory, POINTER).write_text(text + "\n")
