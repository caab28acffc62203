"""The way to decode on a GPU, but for the graph itself: fixed buffers, few sizes, and a loop that waits for no step."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from gemma_alignment.modeling import decoding, transfers
from gemma_alignment.modeling.decoding import ModulesCached, cached
from gemma_alignment.modeling.static import WORTH, StaticCached, is_static, sizes
from gemma_alignment.modeling.transfers import LAG, Known
from gemma_alignment.rollout import sampling

SHAPE = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 2,
}  # fmt: skip
PROMPTS = [[2, 10, 11, 12, 13], [2, 20], [2, 30, 31]]
STEPS = 20


def tiny(kind: str = "Gemma", **more: Any) -> Any:
    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **more)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def sampled(
    model: Any, way: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, lag: int = 0, temperature: float = 1.0,
    steps: int = STEPS,
) -> sampling.Rollout:  # fmt: skip
    monkeypatch.setattr(sampling, "cached", way)
    monkeypatch.setattr(sampling.Known, "on", classmethod(lambda cls, device: cls(lag)))
    return sampling.sample(
        model, PROMPTS, 4, max_new_tokens=steps, temperature=temperature, stop_ids=(1, 5, 6, 7), pad_id=0,
        generator=torch.Generator().manual_seed(1), batch_size=12,
    )  # fmt: skip


class Captures:
    """Stands for the capture of a graph: the step is run anew into the memory of its first result."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        number, kept = len(self.sizes), []
        self.sizes.append(0)

        def replay() -> torch.Tensor:
            logits = step()
            if not kept:
                kept.append(logits.clone())
            self.sizes[number] = len(logits)
            return kept[0].copy_(logits)

        return replay


@pytest.mark.parametrize("lag", [0, LAG])
@pytest.mark.parametrize(("kind", "temperature"), [("Gemma", 1.0), ("Gemma", 0.0), ("Llama", 1.0), ("Qwen2", 0.7)])
def test_it_gives_what_the_portable_way_gives(kind: str, temperature: float, lag: int, monkeypatch) -> None:
    model = tiny(kind)
    plain = sampled(model, ModulesCached, monkeypatch, temperature=temperature)
    captures = Captures()
    found = sampled(model, lambda one: StaticCached(one, captures), monkeypatch, lag, temperature)
    lengths = plain.sequences.response_mask.sum(1)
    assert temperature == 0 or len(set(lengths.tolist())) > 2, "rows end apart: the batch is rebuilt on the way"
    assert torch.equal(found.sequences.response_tokens, plain.sequences.response_tokens)
    assert torch.equal(found.ended, plain.ended)
    torch.testing.assert_close(found.logprobs, plain.logprobs, atol=1e-5, rtol=0)
    assert captures.sizes == [size for size in sizes(12) if size in captures.sizes] != []
    if lag:
        assert plain.decoded_tokens <= found.decoded_tokens <= plain.decoded_tokens + 12 * (STEPS - 1)


def test_there_are_few_sizes() -> None:
    assert sizes(96) == [96, 48, 24, 12, 6, 3, 2, 1]
    assert sizes(24) == [24, 12, 6, 3, 2, 1]
    assert sizes(1) == [1]


def test_fewer_rows_take_no_memory_and_a_step_reads_what_stands_there() -> None:
    model = tiny()
    way = StaticCached(model, Captures())
    prompt = torch.tensor([[0, 2, 10], [2, 20, 21]])
    with torch.inference_mode():
        way.prefill(prompt, (prompt > 0).long(), 2, 6)
        start = way._keys[0].data_ptr()
        way.step(torch.tensor([3, 4, 8, 9]))
        way.keep(torch.tensor([1, 2]))
        found = way.step(torch.tensor([11, 12]))
        assert [one.data_ptr() for one in (way._keys[0], way._cache_of(2).layers[0].keys)] == [start, start]
    for row, ids in enumerate(([2, 10, 4, 11], [2, 20, 21, 8, 12])):
        torch.testing.assert_close(found[row], model(torch.tensor([ids])).logits[0, -1], atol=1e-5, rtol=0)


def test_a_graph_is_captured_once_a_size_after_a_step_and_only_where_steps_are_left(monkeypatch) -> None:
    model, captures = tiny(), Captures()
    sampled(model, lambda one: StaticCached(one, captures), monkeypatch, steps=WORTH)
    assert captures.sizes == [], "the first step of a size is a plain one, and then too few are left"
    way = StaticCached(model, captures)
    with torch.inference_mode():
        way.prefill(torch.tensor([[2, 10]]), torch.ones((1, 2), dtype=torch.long), 1, 40)
        for _ in range(20):
            way.step(torch.tensor([9]))
    assert captures.sizes == [1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("not permitted when stream is capturing\nand more", "RuntimeError: not permitted when stream is capturing"),
        ("", "RuntimeError"),
    ],
)
def test_where_no_graph_can_be_captured_it_is_said_once_and_the_tokens_are_the_same(
    words: str, said: str, monkeypatch, caplog
) -> None:
    model = tiny()
    refused = []

    def fail(step: Any) -> Any:
        refused.append(step)
        raise RuntimeError(words)

    plain = sampled(model, ModulesCached, monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = sampled(model, lambda one: StaticCached(one, fail), monkeypatch)
    assert torch.equal(found.sequences.response_tokens, plain.sequences.response_tokens)
    assert len(refused) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"Decoding goes without a captured graph: {said}"
    ]


def test_a_gpu_decodes_so_and_windows_do_not(monkeypatch) -> None:
    model = tiny()
    windowed = tiny("Mistral", sliding_window=4)
    assert is_static(model) and not is_static(windowed)
    assert type(cached(model)) is ModulesCached, "a CPU has no graphs"
    on_gpu = property(lambda self: torch.device("cuda"))
    monkeypatch.setattr(transformers.PreTrainedModel, "device", on_gpu)
    assert type(cached(model)) is StaticCached
    assert type(cached(windowed)) is decoding.ModulesCached


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for a GPU: numbers and shapes that are read from tensors."""

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().partition(".")[0] in self.READS
        return func(*args, **(kwargs or {}))


def waits(model: Any, way: Any, lag: int, monkeypatch: pytest.MonkeyPatch, steps: int) -> int:
    """How often a rollout of so many steps waits, none of whose rows end."""
    lists = []
    plain = torch.Tensor.tolist
    with monkeypatch.context() as patched, Waits() as counted:
        patched.setattr(torch.Tensor, "tolist", lambda self: lists.append(1) or plain(self))
        patched.setattr(transfers, "to_host", lambda mask: lambda: plain(mask))  # read late, it is there
        if not lag:
            patched.setattr(sampling.Known, "tell", lambda self, mask: mask.tolist())
        patched.setattr(sampling, "draw", lambda logits, *_: (logits.argmax(-1) * 0 + 9, logits[:, 0]))
        sampled(model, way, patched, lag, steps=steps)
    return counted.count + len(lists)


def test_the_token_loop_waits_for_no_step(monkeypatch) -> None:
    model = tiny()
    static = lambda one: StaticCached(one, Captures())  # noqa: E731
    few, many = (waits(model, static, LAG, monkeypatch, steps) for steps in (8, 18))
    assert few == many, "each step that waits would count"
    assert waits(model, static, 0, monkeypatch, 18) - waits(model, static, 0, monkeypatch, 8) == 10
    assert waits(model, ModulesCached, LAG, monkeypatch, 18) > waits(model, ModulesCached, LAG, monkeypatch, 8)


def test_what_the_host_knows_is_old_by_so_many_steps() -> None:
    known = Known(2)
    masks = [torch.tensor([step >= 1, step >= 3]) for step in range(5)]
    assert [known.tell(mask) for mask in masks] == [None, None, [False, False], [True, False], [True, False]]
    known.forget()
    assert known.tell(masks[4]) is None
    assert Known(0).tell(masks[1]) == [True, False]
    assert [Known.on(torch.device(kind))._lag for kind in ("cpu", "cuda")] == [0, LAG]
    mask = torch.tensor([False])
    read = transfers.to_host(mask)
    mask.fill_(True)
    assert read() == [False], "a copy, whatever happens to the mask meanwhile"
