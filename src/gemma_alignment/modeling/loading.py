"""Bases and tokenizers from a directory or from a pinned revision of the hub."""

import json
from pathlib import Path
from typing import Any

import torch

from gemma_alignment.errors import UserError, brief
from gemma_alignment.modeling.chat import Chat
from gemma_alignment.modeling.hub import check_access, refused
from gemma_alignment.modeling.provenance import POINTER

LOGIT_GAP = 0.01
"""Largest difference of a logit from that of the model's head, relative to the largest one: the same operations."""


def choose_device(device: str) -> torch.device:
    """``auto`` is the GPU when there is one.

    Raises:
        UserError: for ``cuda`` on a machine without a usable GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device is 'cuda', but no CUDA GPU is usable here. Install a CUDA build of torch and a "
            "driver, or run with --params runtime.device=cpu."
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def locate(directory: str) -> tuple[str, str | None]:
    """Where a saved model really is: the directory itself, or the hub revision that it points to."""
    pointer = Path(directory) / POINTER
    if pointer.exists():
        reference = json.loads(pointer.read_text())
        return reference["repo_id"], reference["revision"]
    return directory, None


def _reachable(directory: str) -> tuple[str, str | None]:
    """The same, after a look at the hub where that is where it is.

    Raises:
        UserError: when the hub does not hand the model out.
    """
    name, revision = locate(directory)
    if revision is not None:
        check_access(name, revision)
    return name, revision


def _explain(directory: str, error: Exception) -> UserError:
    name, revision = locate(directory)
    if revision is not None:
        return refused(name, revision, error)
    return UserError(
        f"Cannot load a model from {directory}: {brief(error)}\n"
        "A damaged directory is made anew by the pipeline that wrote it."
    )


def load_chat(directory: str) -> Chat:
    """The tokenizer beside a model, with every stop token that its generation config names.

    Raises:
        UserError: when the files are missing or damaged.
    """
    from transformers import AutoTokenizer, GenerationConfig

    name, revision = _reachable(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise _explain(directory, error) from error
    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        stops = GenerationConfig.from_pretrained(name, **pinned).eos_token_id
    except OSError:
        stops = None
    listed = stops if isinstance(stops, list) else [stops] if stops is not None else []
    return Chat(tokenizer, tuple(listed))


def load_base(directory: str, quantization: str, dtype: str, device: Any) -> Any:
    """A frozen causal language model, in 4 bits (NF4, double quantisation) under ``nf4``.

    Raises:
        UserError: when the files are missing, damaged or not reachable.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch_dtype = getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantization == "nf4":
        check_four_bits(device)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch_dtype,
        )
        options["device_map"] = {"": device}
    name, revision = _reachable(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, output_loading_info=True, **options
        )
        model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
        if missing:  # transformers would draw them at random, with a warning
            raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _explain(directory, error) from error
    if quantization == "none":
        model = model.to(device)
    modules: list[Any] = list(model.modules())
    _without_dropout(model.config.get_text_config(), modules)
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would lay the weights out anew at the first forward without a gradient, rounding them,
            # and later backward passes would leave these layers out: wrong gradients without an error
            module.support_avx512bf16_for_cpu = False
    return model.eval().requires_grad_(False)


def _without_dropout(config: Any, modules: list[Any]) -> None:
    """Every dropout is 0, that of attention too, which is no module: a noisy log-probability moves the first ratio."""
    for owner in (config, *modules):
        if isinstance(owner, torch.nn.Dropout):
            owner.p = 0.0
        for name, value in list(vars(owner).items()):
            if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
                setattr(owner, name, 0.0)


def check_tokenizer(chat: Chat, base: Any, directory: str) -> None:
    """Refuse a tokenizer that has ids which the embedding has no row for.

    Raises:
        UserError: with the two numbers and the first such token.
    """
    rows = base.get_input_embeddings().weight.shape[0]
    entries = chat.tokenizer.get_vocab()
    token, largest = max(entries.items(), key=lambda item: int(item[1]))
    if largest >= rows:
        raise UserError(
            f"The tokenizer in {directory} has {len(entries)} entries up to id {largest} ({token!r}), but the model's "
            f"embedding has {rows} rows: they are not of one model. Put back the tokenizer files that came with it."
        )


def check_head(model: Any) -> None:
    """Refuse a causal language model that does something to its logits that the loops would leave out.

    ``model`` is a base with its roles, whose head is compared with the logits of the whole base.

    Raises:
        UserError: with how far apart they are.
    """
    base = model.model
    ids = torch.arange(4, device=base.device)[None]
    with torch.no_grad():
        found = model.head(base.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        expected = base(input_ids=ids, use_cache=False).logits
    gap = float((found - expected).abs().max() / expected.abs().max())
    if not gap <= LOGIT_GAP:
        raise UserError(
            f"{type(base).__name__} does something to its logits that is not known here: they differ from those of its "
            f"head by {gap:.0%} of the largest. Take another base_model, or add what it does to modeling/heads.py."
        )


def check_four_bits(device: Any) -> None:
    """Refuse 4 bits where bitsandbytes cannot compute in them; a small matrix is tried.

    Raises:
        UserError: with what bitsandbytes said.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        dequantize_4bit(*quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4", compress_statistics=True))
    except Exception as error:  # whatever a missing or unfit library raises
        raise UserError(
            f"modeling.quantization is 'nf4', but 4 bits cannot be computed on {device} here: {brief(error)}\n"
            "Install a bitsandbytes build for this machine, or run with --params modeling.quantization=none."
        ) from error
