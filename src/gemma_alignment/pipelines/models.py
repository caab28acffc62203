"""How nodes open the shared base: the only place that turns parameters into a model with roles."""

from collections.abc import Callable, Mapping
from typing import Any

from gemma_alignment.config import build


def prepare(runtime: Mapping[str, Any]) -> Any:
    """Fix threads and choose the device.

    Raises:
        UserError: when the device asked for is not there.
    """
    import torch

    from gemma_alignment.modeling.loading import choose_device
    from gemma_alignment.parameters.training import RuntimeParameters

    settings = build(RuntimeParameters, runtime, "runtime")
    torch.set_num_threads(settings.threads)
    return choose_device(settings.device)


def open_base(directory: str, modeling: Mapping[str, Any], device: Any, seed: int) -> tuple[Any, Any]:
    """The shared base of a directory and its chat: (SharedBase, Chat)."""
    from gemma_alignment.modeling.loading import load_base, load_chat
    from gemma_alignment.modeling.roles import SharedBase
    from gemma_alignment.parameters.training import ModelingParameters

    settings = build(ModelingParameters, modeling, "modeling")
    base = load_base(directory, settings.quantization, settings.dtype, device)
    return SharedBase(base, settings.lora, seed, settings.gradient_checkpointing), load_chat(directory)


def gold_of(preferences: Mapping[str, Any]) -> Callable[[str, str], float] | None:
    """The exact quality of an answer, which only the embedded world knows."""
    if preferences["source"] != "embedded":
        return None
    from gemma_alignment.world.gold import gold_score

    return gold_score


def peak_memory_mb(device: Any) -> float:
    """Peak memory in MB: allocated on the GPU, resident on the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
