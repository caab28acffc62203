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
    """The adapter of a directory under a name; the PEFT model that holds it."""
    from peft import PeftModel

    if peft is None:
        return PeftModel.from_pretrained(model, directory, adapter_name=name)
    peft.load_adapter(directory, adapter_name=name)
    return peft


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
