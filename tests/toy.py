"""A tiny Gemma with random weights, its tokenizer, and a shared base with every role."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gemma_alignment.modeling.chat import Chat
from gemma_alignment.modeling.loading import load_base
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.saving import SavedModel
from gemma_alignment.modeling.tiny import tiny_gemma, train_bpe

SHAPE = SimpleNamespace(hidden_size=32, layers=2, heads=2, intermediate_size=64, max_positions=256)
LORA = SimpleNamespace(rank=4, alpha=8, targets="all-linear")
PROMPTS = ["Name two fruits.", "Please list three animals for a song.", "What are two birds?", "Name five tools now."]


@cache
def chat() -> Chat:
    """The tokenizer of a few sentences, in its chat."""
    return Chat(train_bpe([*PROMPTS, "Here are two fruits: apple and pear."], 420), (1, 107))


def shared(roles: tuple[str, ...] = ("policy", "reward", "critic"), seed: int = 0, base: Any = None) -> SharedBase:
    """A shared base whose adapters are fresh, in fp32 unless ``base`` is given."""
    plain = tiny_gemma(SHAPE, len(chat().tokenizer), seed) if base is None else base
    model = SharedBase(plain.eval().requires_grad_(False), LORA, seed)
    for role in roles:
        model.add(role)
    return model


def rounded(kind: str, folder: Path) -> Any:
    """The same base in bf16, or one wide enough for 4 bits as ``load_base`` makes it, by way of ``folder``."""
    if kind == "bfloat16":
        return tiny_gemma(SHAPE, len(chat().tokenizer), 0).bfloat16()
    pytest.importorskip("bitsandbytes")
    wide = SimpleNamespace(**{**vars(SHAPE), "hidden_size": 64, "intermediate_size": 128})
    SavedModel(tiny_gemma(wide, len(chat().tokenizer), 0), chat().tokenizer).save_pretrained(str(folder))
    return load_base(str(folder), kind, "bfloat16", torch.device("cpu"))


def disturb(model: SharedBase, role: str, scale: float = 0.3) -> None:
    """Move an adapter away from zero."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters_of(role):
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def settings(**changes: Any) -> SimpleNamespace:
    """Rollout parameters."""
    defaults = {
        "max_new_tokens": 6, "temperature": 1.0, "batch_size": 64, "engine": "transformers", "weights": "merged",
        "precision": "as_held",
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **changes})
