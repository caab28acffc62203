"""How nodes open the shared base: the only place that turns parameters into a model with roles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gemma_alignment.config import build


def prepare(runtime: Mapping[str, Any]) -> Any:
    """Fix threads, choose the device, and keep the bars of transformers off the screen.

    Raises:
        UserError: when the device asked for is not there.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from gemma_alignment.modeling.loading import choose_device
    from gemma_alignment.parameters.training import RuntimeParameters

    disable_progress_bar()
    settings = build(RuntimeParameters, runtime, "runtime")
    torch.set_num_threads(settings.threads)
    return choose_device(settings.device)


@dataclass(frozen=True)
class Start:
    """Directories of what policy optimisation can start from."""

    sft_merged_model: str
    base_model: str
    sft_adapter: str

    def base(self, modeling: Mapping[str, Any]) -> str:
        """The directory of the frozen base under ``modeling.rl_base``."""
        return self.sft_merged_model if modeling["rl_base"] == "sft_merged" else self.base_model


def held_by(run: Mapping[str, Any]) -> dict[str, Any]:
    """How a run held its base, by its record; all of it, since one process reads it here."""
    return {**run["parameters"]["modeling"], "sharding": "none"}


def open_base(
    directory: str, modeling: Mapping[str, Any], device: Any, seed: int, is_shared_out: bool = False
) -> tuple[Any, Any]:
    """The shared base of a directory and its chat: (SharedBase, Chat).

    ``is_shared_out``: whether several processes hold a share each; a whole base passes through this one's memory.

    Raises:
        UserError: when either cannot be read, they do not fit each other, or the base is of an unknown kind.
    """
    import torch

    from gemma_alignment.modeling.embedding import shrink_embedding
    from gemma_alignment.modeling.loading import check_head, check_tokenizer, load_base, load_chat
    from gemma_alignment.modeling.roles import SharedBase
    from gemma_alignment.modeling.sharding import share_out
    from gemma_alignment.parameters.training import ModelingParameters

    settings = build(ModelingParameters, modeling, "modeling")
    place = torch.device("cpu") if is_shared_out else device
    base, chat = load_base(directory, settings.quantization, settings.dtype, place), load_chat(directory)
    check_tokenizer(chat, base, directory)
    if settings.embedding == "int8":
        shrink_embedding(base)
    if is_shared_out:
        share_out(base, device)
    model = SharedBase(base, settings.lora, seed, settings.gradient_checkpointing, settings.optimizer)
    check_head(model)
    return model, chat


def open_start(
    start: Start, modeling: Mapping[str, Any], device: Any, seed: int, is_shared_out: bool = False
) -> tuple[Any, Any]:
    """What policy optimisation starts from, as its reference, and its chat: (model with roles, Chat).

    Raises:
        UserError: as :func:`open_base`, and for an SFT adapter of another base.
    """
    from gemma_alignment.modeling.copies import SeparateCopies
    from gemma_alignment.modeling.loading import load_chat
    from gemma_alignment.modeling.provenance import check_adapter

    directory, chained = start.base(modeling), modeling["rl_base"] == "sft_adapter"
    if chained:
        check_adapter(start.sft_adapter, "policy", start.base_model)

    def make() -> Any:
        model, _ = open_base(directory, modeling, device, seed, is_shared_out)
        if chained:
            model.chain(start.sft_adapter)
        return model

    if modeling["sharing"] == "separate_copies":
        return SeparateCopies(make), load_chat(directory)
    return make(), load_chat(directory)


def load_role(model: Any, role: Any, directory: str, base: str, method: str | None = None) -> None:
    """Load an adapter for a role once it is known to be one, on this base and, if one is named, of this method.

    Raises:
        UserError: says what the adapter is and what was asked for.
    """
    from gemma_alignment.modeling.provenance import check_adapter

    check_adapter(directory, role, base, method)
    model.load(role, directory)


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
