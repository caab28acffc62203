"""Adapters on a base: fresh ones, copies, those of a directory. Masters are fp32 whatever the base is."""

from pathlib import Path
from typing import Any

import torch

from gemma_alignment.errors import UserError, brief


def add_adapter(model: Any, peft: Any, name: str, config: Any, seed: int) -> Any:
    """A fresh adapter, B = 0, drawn from ``seed`` alone; the PEFT model that holds it."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if peft is None:
            return get_peft_model(model, config, adapter_name=name)
        peft.add_adapter(name, config)
    return peft


def lora_config(lora: Any) -> Any:
    """PEFT's configuration of the parameters, without dropout: a noisy log-probability moves the first ratio."""
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def read_adapter(model: Any, peft: Any, name: str, directory: str) -> Any:
    """The adapter of a directory under a name; the PEFT model that holds it.

    Raises:
        ValueError: when tensors are missing or left over: PEFT would leave those of the fresh adapter in place.
    """
    from peft import PeftModel

    if peft is None:
        peft = PeftModel.from_pretrained(model, directory, adapter_name=name)
    else:
        peft.load_adapter(directory, adapter_name=name)
    _check_complete(peft, name, Path(directory) / "adapter_model.safetensors")
    return peft


def _check_complete(peft: Any, name: str, path: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        saved = set(file.keys())
    expected = set(get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False))
    if wrong := sorted(expected ^ saved):
        lacks = len(expected - saved)
        raise ValueError(
            f"{path.name} lacks {lacks} of {len(expected)} tensors and has {len(saved - expected)} of no use here, "
            f"such as {wrong[0]}"
        )


def read_head(head: torch.nn.Module, directory: str) -> None:
    """Put the saved tensors into a head."""
    from safetensors.torch import load_file

    head.load_state_dict(load_file(Path(directory) / "head.safetensors"))


@torch.no_grad()
def copy_adapter(peft: Any, source: str, target: str) -> None:
    """Give ``target`` the tensors of ``source``."""
    tensors = dict(peft.named_parameters())
    for key, value in tensors.items():
        if f".{source}." in key:
            tensors[key.replace(f".{source}.", f".{target}.")].copy_(value)


def unusable(directory: str, role: str, error: Exception) -> UserError:
    """What to say of a directory that cannot be read as an adapter for a role."""
    return UserError(
        f"The adapter in {directory} cannot be used for the role {role!r}: {brief(error)}\n"
        "Make it anew with the pipeline that wrote it."
    )
