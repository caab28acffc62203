"""What every way to decode begins with: the cache of the prompts."""

from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling.heads import prompts_at_a_time


def prefilled(model: Any, tokens: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
    """The cache of prompts (N, P) and the logits (N, V) after each; a few prompts in a pass where the MLP is wide."""
    from transformers import DynamicCache

    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    size = prompts_at_a_time(tokens.shape[1], wide)
    caches: list[Any] = []
    logits = []
    for ids, real in zip(tokens.split(size), mask.split(size), strict=True):
        caches.append(DynamicCache(config=model.config))
        out = model(
            input_ids=ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0),
            past_key_values=caches[-1], use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits.append(out.logits[:, -1])
    whole, *others = caches
    if others:
        for number, layer in enumerate(whole.layers):
            layer.keys = torch.cat([one.layers[number].keys for one in caches])
            layer.values = torch.cat([one.layers[number].values for one in caches])
    return whole, torch.cat(logits)
