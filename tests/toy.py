"""A tiny Gemma with random weights, its tokenizer, and a shared base with every role."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from gemma_alignment.modeling.chat import Chat
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.tiny import tiny_gemma, train_bpe

SHAPE = SimpleNamespace(hidden_size=32, layers=2, heads=2, intermediate_size=64, max_positions=256)
LORA = SimpleNamespace(rank=4, alpha=8, targets="all-linear")
PROMPTS = ["Name two fruits.", "Please list three animals for a song.", "What are two birds?", "Name five tools now."]


@cache
def chat() -> Chat:
    """The tokenizer of a few sentences, in its chat."""
    return Chat(train_bpe([*PROMPTS, "Here are two fruits: apple and pear."], 420), (1, 107))


def shared(roles: tuple[str, ...] = ("policy", "reward", "critic"), seed: int = 0) -> SharedBase:
    """A shared base whose adapters are fresh."""
    base = tiny_gemma(SHAPE, len(chat().tokenizer), seed).eval().requires_grad_(False)
    model = SharedBase(base, LORA, seed)
    for role in roles:
        model.add(role)
    return model


def disturb(model: SharedBase, role: str, scale: float = 0.3) -> None:
    """Move an adapter away from zero."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters_of(role):
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def settings(**changes: Any) -> SimpleNamespace:
    """Rollout parameters."""
    defaults = {"max_new_tokens": 6, "temperature": 1.0, "batch_size": 64, "weights": "merged"}
    return SimpleNamespace(**{**defaults, **changes})
