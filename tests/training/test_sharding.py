"""A base in shares: the numbers, gradients and history of a whole one, and nobody waits for ever."""

import gc
import json
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import torch
import torch.distributed.fsdp  # once, and not in every process that is forked
from modeling.test_packing import BASES, batch
from processes import leave, metrics, read
from test_ranks import assert_like, with_held_out
from torch.distributed.tensor import DTensor
from toy import LORA, PROMPTS, SHAPE, chat, disturb, settings, shared

from gemma_alignment.errors import UserError
from gemma_alignment.modeling import ranks, states
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.sequences import Sequences, pad
from gemma_alignment.modeling.sharding import share_out
from gemma_alignment.modeling.tiny import tiny_gemma
from gemma_alignment.rollout.sampling import sample

CPU = torch.device("cpu")
together = partial(processes.together, patience=120.0)
ROLES = {"grpo": ("policy", "reward"), "ppo": ("policy", "reward", "critic")}


def plain(**changes: Any) -> Any:
    """The toy base."""
    shape = SimpleNamespace(**{**vars(SHAPE), **changes})
    return tiny_gemma(shape, len(chat().tokenizer), 0).eval().requires_grad_(False)


def shares_of(base: Any, count: int) -> Any:
    """The same in so many shares."""
    if count > 1:
        share_out(base, CPU)
    return base


def train(rank: int, count: int, folder: Path, method: str, start: dict[str, Any] | None = None) -> None:
    """The toy run of the tests of data parallelism, on a base in shares."""
    model = shared(ROLES[method], base=shares_of(plain(), count))
    disturb(model, "reward")
    toy = replace(with_held_out(method), model=model, rollout=settings(weights="adapter"))
    own = {f"{role}.{name}": p for role in ROLES[method] for name, p in model.named_parameters_of(role).items()}
    leave(rank, folder, toy, lambda: {name: p.detach() for name, p in own.items()}, start)


@cache
def trained(method: str, count: int) -> Path:
    return together(count, train, method)


@pytest.mark.parametrize(("method", "count"), [("grpo", 2), ("ppo", 2), ("grpo", 3)])
def test_gradients_history_and_weights_are_those_of_a_whole_base(method: str, count: int) -> None:
    """Three processes share sixteen responses and four prompts: each does another number of passes."""
    one, several = trained(method, 1), trained(method, count)
    wanted, found = read(one, "gradients.pt"), read(several, "gradients.pt")
    assert found.keys() == wanted.keys()
    assert sum(float(gradient.abs().sum()) for gradient in wanted.values()) > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)
    assert_like(metrics(several), metrics(one))
    first, *others = (read(several, f"weights-{rank}.pt") for rank in range(count))
    for other in others:
        for name, tensor in first.items():
            assert torch.equal(other[name], tensor), name


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_knows_no_shares(before: int, after: int) -> None:
    state = read(trained("grpo", before), "states.pt")[1]
    went_on = metrics(together(after, train, "grpo", state))
    assert_like(went_on, metrics(trained("grpo", 1))[2:])


def pass_and_decode(rank: int, count: int, folder: Path) -> None:
    """Log-probabilities and gradients of the same rows in every process, in as many passes as its number says."""
    states.is_plain = lambda model: False  # type: ignore[assignment]  # a whole one too goes through its modules
    model = shared(base=shares_of(plain(), count))
    disturb(model, "policy")
    texts = [PROMPTS[i % 4] for i in range(6)]
    answers = [chat().encode_response("apple and pear")[: 2 + i % 3] for i in range(6)]
    rows = Sequences(
        *pad([chat().encode_prompt(text) for text in texts], 0, left=True), *pad(answers, 0, left=False)
    )
    passes = 1 + rank
    with model.role("policy"):
        logprobs = [model.logprobs(rows, 1.0)[0] for _ in range(passes)][-1]
    ranks.whole(torch.zeros(1))
    with model.role("policy", train=True):
        for _ in range(passes):
            (model.logprobs(rows, 1.0)[0].sum() / passes / count).backward()
    assert model.packing.agrees  # in few rows, as a whole base
    ranks.add_gradients(model.parameters_of("policy"))
    with model.decoder("policy", "adapter") as decoder:
        found = sample(
            decoder, [chat().encode_prompt(text) for text in PROMPTS], 2, max_new_tokens=9,
            temperature=1.0, stop_ids=chat().stop_ids, pad_id=0, generator=torch.Generator().manual_seed(3),
            batch_size=2,
        )  # fmt: skip
    gradients = {name: p.grad for name, p in model.named_parameters_of("policy").items()}
    torch.save(
        {"logprobs": logprobs, "sampled": found.logprobs, "tokens": found.sequences.response_tokens, **gradients},
        folder / f"{rank}.pt",
    )


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_do_unequal_work_get_what_one_gets(count: int) -> None:
    """In passes, batches of prompts and steps of decoding; who has come to the sum lends its shares to the others."""
    wanted = read(together(1, pass_and_decode), "0.pt")
    folder = together(count, pass_and_decode)
    for rank in range(count):
        found = read(folder, f"{rank}.pt")
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            largest = float(tensor.abs().max()) if tensor.is_floating_point() else 0.0
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6 * max(1.0, largest), msg=name)


def alive() -> int:
    """Bytes of all tensors that there are."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and not isinstance(one, DTensor)]
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())


def settled() -> int:
    """The least of some looks: gloo's threads may hold what they gathered for a moment longer than a pass."""

    def later() -> int:
        time.sleep(0.2)
        return alive()

    return min(later() for _ in range(10))


def measure(rank: int, count: int, folder: Path) -> None:
    """Bytes of a base, of this process's share after a pass, and how many layers are whole while one computes."""
    nothing = alive()
    base = plain(layers=6)
    entire = alive() - nothing
    share_out(base, CPU)
    own = [layer.mlp.down_proj for layer in base.model.layers]
    seen: list[int] = []
    for one in own:
        one.register_forward_hook(lambda *_: seen.append(sum(not isinstance(each.weight, DTensor) for each in own)))
    with torch.no_grad():
        base(input_ids=torch.tensor([[5, 6, 7]]))
    assert seen == [1] * 6
    assert isinstance(base.get_input_embeddings().weight, DTensor)
    (folder / f"{rank}.json").write_text(json.dumps([entire, settled() - nothing]))


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_holds_its_part_of_the_base_and_one_layer_at_a_time(count: int) -> None:
    """All but the last norm and what FSDP2 fills a matrix up with that does not divide."""
    folder = together(count, measure)
    for rank in range(count):
        entire, own = json.loads((folder / f"{rank}.json").read_text())
        assert 1 / count <= own / entire < 1.15 / count


def numbers(model: SharedBase) -> dict[str, torch.Tensor]:
    """What a policy and a critic give for the same rows, with their gradients."""
    found = {}
    with model.role("policy", train=True):
        logprobs, entropies = model.logprobs(batch(), 0.7)
        (logprobs.sum() + logprobs.square().sum()).backward()
    found["logprobs"], found["entropies"] = logprobs.detach(), entropies
    with model.role("critic", train=True):
        values = model.values(batch())
        values.square().sum().backward()
    found["values"] = values.detach()
    for role in ("policy", "critic"):
        found |= {f"{role}.{name}": p.grad for name, p in model.named_parameters_of(role).items()}
    with model.role("reference"):
        found["reference"] = model.logprobs(batch(), 0.7)[0]
    return found


def compare(rank: int, count: int, folder: Path) -> None:
    """Every kind of model in shares with the same one whole, both through their own modules."""
    states.is_plain = lambda model: False  # type: ignore[assignment]
    kinds = [(name, torch.float32, False) for name in BASES]
    kinds += [("llama", torch.float32, True), ("gemma", torch.float32, True), ("gemma", torch.bfloat16, False)]
    for name, dtype, checkpointing in kinds:
        with ranks.together():
            models = []
            for is_in_shares in (False, True):
                torch.manual_seed(3)
                base = BASES[name]().eval().requires_grad_(False).to(dtype)
                if is_in_shares:
                    share_out(base, CPU)
                models.append(SharedBase(base, LORA, 0, checkpointing))
                for role in ("policy", "critic"):
                    models[-1].add(role)
                    disturb(models[-1], role, 0.1)
            wanted, found = numbers(models[0]), numbers(models[1])
            ranks.whole(torch.zeros(1))
        assert models[0].forward_flops() == models[1].forward_flops()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6, msg=f"{name} {dtype} {key}")
    (folder / f"{rank}").write_text(" ".join(name for name, *_ in kinds))


def test_every_kind_of_model_gives_the_same_in_shares() -> None:
    """Tied heads and others, windows, caps on logits, checkpointing, bf16."""
    folder = together(2, compare)
    assert [len((folder / str(rank)).read_text().split()) for rank in range(2)] == [len(BASES) + 3] * 2


def test_a_base_in_shares_takes_several_processes_and_layers_that_are_told() -> None:
    with pytest.raises(UserError, match=r"modeling\.sharding is 'base', but one process trains the policy"):
        share_out(plain(), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "count", lambda: 2)
        patch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *_: None)
        base = plain()
        base._no_split_modules = None
        with pytest.raises(UserError, match="GemmaForCausalLM does not say which of its modules are layers"):
            share_out(base, CPU)
