"""Packed rows give the padded way's states, in value and gradient, for every form of mask that models take."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from toy import LORA, SHAPE, chat, disturb, shared

from gemma_alignment.modeling import gemma, packing, states
from gemma_alignment.modeling.copies import SeparateCopies
from gemma_alignment.modeling.gemma import gemma_states, is_plain
from gemma_alignment.modeling.packing import masks_for, pack
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.sequences import Sequences, sequences
from gemma_alignment.rollout.experience import role_logprobs, score

IDS = [[2, 10, 11], [2, 20], [2, 10, 11], [2, 30, 31, 32, 33], [2, 10, 11]]
ANSWERS = [[5, 6, 1], [7, 1], [8, 1], [9, 10, 11, 12, 1], [5, 1]]


def batch() -> Sequences:
    return sequences(IDS, ANSWERS, 0)


def differing(rows: Sequences, unread: int) -> int:
    """How many token sequences the rows begin with, their last ``unread`` tokens left out."""
    parts = zip(rows.prompt_tokens, rows.prompt_mask, rows.response_tokens, rows.response_mask, strict=True)
    whole = [[*prompt[seen].tolist(), *answer[real].tolist()] for prompt, seen, answer, real in parts]
    return len({tuple(row[:end]) for row in whole for end in range(1, len(row) + 1 - unread)})


def sizes(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
        **more,
    }  # fmt: skip


BASES = {
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**sizes(head_dim=16))),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**sizes(head_dim=16, sliding_window=4))
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**sizes(head_dim=16, sliding_window=4, num_hidden_layers=6))
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes())),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes())),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**sizes(sliding_window=4))),
}  # fmt: skip


def base(name: str) -> SharedBase:
    torch.manual_seed(3)
    model = SharedBase(BASES[name]().eval().requires_grad_(False), LORA, 0)
    model.add("policy")
    disturb(model, "policy", 0.1)
    return model


def test_who_sees_whom_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt 2 3; responses 4 5 and 6; then another prompt 7 with response 8: one row of seven positions."""
    packed = pack(sequences([[2, 3], [2, 3], [7]], [[4, 5], [6], [8]], 0))
    assert packed.tokens.tolist() == [[2, 3, 4, 5, 6, 7, 8]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert packed.sees()[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert packed.index.tolist() == [[1, 2, 3], [1, 4, 0], [5, 6, 0]]
    assert packed.real == 7
    windowed = packed.sees(2)[0].int().tolist()
    assert windowed[3] == [0, 0, 1, 1, 0, 0, 0]  # by position, not by place in the row
    assert windowed[4] == [0, 1, 0, 0, 1, 0, 0]
    monkeypatch.setattr(packing, "WIDTH", 5)
    rows = pack(sequences([[2, 3], [2, 3], [7]], [[4, 5], [6], [8]], 0))
    assert rows.tokens.tolist() == [[2, 3, 4, 5, 6], [7, 8, 0, 0, 0]]
    monkeypatch.setattr(packing, "WIDTH", 4)  # too narrow for both responses: the prompt stands twice
    split = pack(sequences([[2, 3], [2, 3], [7]], [[4, 5], [6], [8]], 0))
    assert split.tokens.tolist() == [[2, 3, 4, 5], [2, 3, 6, 0], [7, 8, 0, 0]]
    assert split.index.tolist() == [[1, 2, 3], [5, 6, 0], [8, 9, 0]]
    assert split.first.tolist() == [[0, 1, 2, 3], [0, 1, 6, 7], [8, 9, 10, 11]], "the second prompt is the first one"
    assert packed.ends.int().tolist() == [[0, 0, 0, 1, 1, 0, 1]]
    assert split.ends.int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert rows.sees()[1].int().tolist()[4] == [0, 0, 0, 0, 1]  # padding attends to itself


def test_every_real_token_stands_once_and_prompts_once_a_prompt() -> None:
    packed = pack(batch())
    assert packed.real == len([2, 10, 11]) + len([2, 20]) + len([2, 30, 31, 32, 33]) + sum(map(len, ANSWERS))
    flat = packed.tokens.flatten()
    for prompt, answer, row in zip(IDS, ANSWERS, packed.index, strict=True):
        assert [int(flat[i]) for i in row[: len(answer) + 1]] == [prompt[-1], *answer]


def test_a_long_prompt_stands_once_for_as_many_responses_as_it_is_long() -> None:
    prompt = list(range(3, 303))
    packed = pack(sequences([prompt] * 8, [[400 + i] * 32 for i in range(8)], 0))
    assert packed.real == 300 + 8 * 32 and len(packed.tokens) == 1
    packed = pack(sequences([prompt[:120]] * 2, [[400] * 40, [401] * 40], 0))
    assert packed.real == 120 + 2 * 40, "chosen and rejected share their prompt"
    packed = pack(sequences([prompt[:100]] * 8, [[400 + i] * 50 for i in range(8)], 0))
    assert packed.tokens.shape == (4, 200), "half of each row is the prompt: a longer one would cost attention more"


def test_one_long_prompt_does_not_pad_every_other_row() -> None:
    rows = [list(range(3, 1003)), *([2000 + i] * 60 for i in range(31))]
    packed = pack(sequences(rows, [[7] * 32] * 32, 0))
    assert packed.tokens.shape == (4, 1032)
    assert packed.real == 1000 + 31 * 60 + 32 * 32


def test_tokens_after_the_same_tokens_are_one_position_by_hand() -> None:
    """Prompt 2 3 with responses 4 5 1 and 4 6 1; prompt 2 4 with response 5 1: the last is after 2 4, not 2 3 4."""
    packed = pack(sequences([[2, 3], [2, 3], [2, 4]], [[4, 5, 1], [4, 6, 1], [5, 1]], 0))
    assert packed.tokens.tolist() == [[2, 3, 4, 5, 1, 4, 6, 1, 2, 4, 5, 1]]
    assert packed.first.tolist() == [[0, 1, 2, 3, 4, 2, 6, 7, 0, 9, 10, 11]]
    same = pack(sequences([[2], [2, 3]], [[3, 4], [4]], 0))  # 2 3 4 twice, with the prompt's end in another place
    assert same.tokens.tolist() == [[2, 3, 4, 2, 3, 4]] and same.first.tolist() == [[0, 1, 2, 0, 1, 2]]


def test_what_no_wanted_state_reads_is_not_computed() -> None:
    """The last token of a response counts where its state is wanted, or where another response goes on behind it."""
    model = base("gemma").model
    rows = sequences([[2, 3], [2, 3], [2, 3]], [[4, 5], [4, 5, 6], [7]], 0)
    packed = pack(rows)
    every = torch.nn.functional.pad(rows.response_mask, (1, 0), value=True)
    before = torch.nn.functional.pad(rows.response_mask, (0, 1))
    states, positions = gemma_states(model, packed, packed.index[every])
    assert positions == len([2, 3, 4, 5, 6, 7])
    fewer, positions = gemma_states(model, packed, packed.index[before])
    assert positions == len([2, 3, 4, 5])
    read = before[every]
    torch.testing.assert_close(fewer, states[read], atol=1e-6, rtol=0)


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_gate_and_up_have_the_gradients_of_their_parts(act: str) -> None:
    from transformers.activations import ACT2FN

    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    upstream = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    function = ACT2FN[act]
    gate, up = rows.chunk(2, 1)
    expected = function(gate) * up
    found = gemma._gated(function, rows)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
    (one,), (other,) = (torch.autograd.grad(y, rows, upstream) for y in (found, expected))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("width", [4, 12, 128])
@pytest.mark.parametrize("name", BASES)
def test_packed_and_padded_agree_in_value_and_gradient(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "WIDTH", width)
    found = []
    for packs in (True, False):
        model = base(name)
        model.packing.agrees = packs
        with model.role("policy", train=True):
            logprobs, _ = model.logprobs(batch(), 1.0)
            (logprobs * torch.linspace(0.5, 2.0, logprobs.numel()).view_as(logprobs)).sum().backward()
        found.append((logprobs.detach(), [p.grad.clone() for p in model.parameters_of("policy")]))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    largest = max(float(g.abs().max()) for g in found[1][1])
    assert max(float((a - b).abs().max()) for a, b in zip(found[0][1], found[1][1], strict=True)) < 1e-5 * largest


def test_a_gemma_computes_no_padding_and_no_prompt_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WIDTH", 8)
    model = base("gemma").model
    packed = pack(batch())
    assert packed.real > 24 and packed.tokens.numel() > packed.real
    states, positions = gemma_states(model, packed, packed.index.flatten())
    assert positions == differing(batch(), 0) == 3 + 1 + 4 + sum(map(len, ANSWERS)) - len([5]) == 21
    found = states.view(*packed.index.shape, -1)
    assert torch.equal(found[0, 0], found[2, 0]) and torch.equal(found[0, 0], found[4, 0])
    assert not torch.equal(found[0, 0], found[1, 0])
    one, _ = gemma_states(model, packed, packed.index[3, 2:4])
    torch.testing.assert_close(one, found[3, 2:4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bfloat16", "llama", "training"])
def test_who_does_not_take_a_gemmas_own_way(kind: str) -> None:
    model = base("llama" if kind == "llama" else "gemma").model
    assert is_plain(model) == (kind != "llama")
    assert not is_plain(model.bfloat16() if kind == "bfloat16" else model.train())


def test_a_planted_loss_of_a_repeated_prompts_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands again adds its gradient to what stood first."""
    monkeypatch.setattr(packing, "WIDTH", 6)
    found, real = [], gemma._rows_of

    def forgotten(rows: Any, own: torch.Tensor) -> tuple[Any, torch.Tensor]:
        return replace(rows, whole=replace(rows.whole, again=rows.whole.again[:0])), own

    for planted in (False, True):
        if planted:
            monkeypatch.setattr(gemma, "_rows_of", lambda *args: forgotten(*real(*args)))
        model = base("gemma")
        model.packing.agrees = True
        with model.role("policy", train=True):
            model.logprobs(batch(), 1.0)[0].sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters_of("policy")]))
    assert float((found[0] - found[1]).abs().max()) > 1e-3 * float(found[0].abs().max())


@pytest.mark.parametrize("name", BASES)
def test_every_architecture_is_packed(name: str) -> None:
    model = base(name)
    with model.role("policy"):
        model.logprobs(batch(), 1.0)
    assert model.packing.agrees is True


def test_a_mask_that_a_model_reads_otherwise_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full mask on a sliding model is silently wrong: it is found on the first batch, and padding is used."""
    config = SimpleNamespace(sliding_window=None)
    model = base("mistral")
    expected = base("mistral")
    expected.packing.agrees = False
    monkeypatch.setattr(
        "gemma_alignment.modeling.states.masks_for", lambda _, packed, dtype: masks_for(config, packed, dtype)
    )
    with caplog.at_level(logging.WARNING), model.role("policy"):
        found = model.logprobs(batch(), 1.0)[0]
    assert model.packing.agrees is False
    assert "padded, not packed" in caplog.text
    with expected.role("policy"):
        assert torch.equal(found, expected.logprobs(batch(), 1.0)[0])


STATEFUL = {
    "linear_attention": ("in_proj", lambda: transformers.Mamba2ForCausalLM(transformers.Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1,
        chunk_size=16, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    ))),
    "conv": ("q_proj", lambda: transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(**sizes(layer_types=["conv", "full_attention"]))
    )),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATEFUL)
def test_layers_that_read_past_a_mask_are_padded(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    target, make = STATEFUL[kind]
    torch.manual_seed(3)
    model = SharedBase(make().eval().requires_grad_(False), SimpleNamespace(rank=4, alpha=8, targets=[target]), 0)
    model.add("policy")
    with caplog.at_level(logging.WARNING), model.role("policy"):
        model.logprobs(batch(), 1.0)
    assert model.packing.agrees is False
    said = [record.message for record in caplog.records if record.name.endswith("states")]
    assert len(said) == 1 and f"layers of the kind {kind} take no mask" in said[0]


def test_a_first_batch_that_cannot_tell_is_not_alone_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one response a prompt, and a prompt a row, the states are right under a mask that only looks back."""
    look_back = lambda _, packed, dtype: torch.triu(  # noqa: E731
        torch.full((packed.tokens.shape[1],) * 2, torch.finfo(dtype).min), 1
    ).expand(len(packed.tokens), 1, -1, -1)
    monkeypatch.setattr(states, "masks_for", look_back)
    alone = sequences([[10 + i] * 35 for i in range(3)], [[20 + i] * 40 for i in range(3)], 0)
    model = base("llama")
    assert len(pack(alone).tokens) == 3 and states._is_same(model.model, alone, 1e-4)
    with model.role("policy"):
        model.logprobs(alone, 1.0)
    assert model.packing.agrees is False


def test_a_check_that_runs_out_of_memory_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The padded way takes more: to fall back on it would hide what is wrong."""

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(states, "packed_states", full)
    model = base("gemma")
    with pytest.raises(torch.OutOfMemoryError), model.role("policy"):
        model.logprobs(batch(), 1.0)
    assert model.packing.agrees is None


def test_values_and_scores_are_those_of_the_padded_way() -> None:
    rows = sequences(
        [chat().encode_prompt(p) for p in ("Name two fruits.", "Name two fruits.", "What are two birds?")],
        [chat().encode_response(r) for r in ("apple and pear", "a", "two birds now")], 0,
    )  # fmt: skip
    found = []
    for packs in (True, False):
        model = shared()
        model.packing.agrees = packs
        for role in ("reward", "critic"):
            disturb(model, role)
        with model.role("reward"):
            scores = model.scores(rows)
        with model.role("critic"):
            found.append((scores, model.values(rows)[rows.response_mask]))
        all_real = int(rows.prompt_mask.sum() + rows.response_mask.sum())
        positions = differing(rows, 0) + differing(rows, 1) if packs else 2 * all_real
        assert model.forward_flops() == 2 * model._body_size * positions
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert SHAPE.max_positions > rows.response_mask.shape[1]


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_state_that_is_wrong_in_any_column_is_noticed(column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column 0 is what the first response token is predicted from."""
    real = states.packed_states

    def wrong(model: Any, rows: Sequences, wanted: torch.Tensor) -> Any:
        found, positions = real(model, rows, wanted)
        found[int(wanted[0].sum()) + column] += 1.0
        return found, positions

    monkeypatch.setattr(states, "packed_states", wrong)
    model, expected = base("gemma"), base("gemma")
    expected.packing.agrees = False
    for one in (model, expected):
        with one.role("policy"):
            found = one.logprobs(batch(), 1.0)[0]
    assert model.packing.agrees is False
    with model.role("policy"):
        assert torch.equal(model.logprobs(batch(), 1.0)[0], found)


def test_what_stands_behind_a_response_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    real = states.packed_states

    def wrong(model: Any, rows: Sequences, wanted: torch.Tensor) -> Any:
        found, positions = real(model, rows, wanted)
        behind = (torch.arange(wanted.shape[1]) > rows.response_mask.sum(1, keepdim=True))[wanted]
        return found + behind[:, None], positions

    monkeypatch.setattr(states, "packed_states", wrong)
    model = base("gemma")
    with model.role("policy"):
        model.logprobs(batch(), 1.0)
    assert model.packing.agrees is True


@pytest.mark.parametrize("agrees", [True, False])
def test_the_answer_is_kept_and_not_asked_again(agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = base("gemma")
    assert first.packing.state_dict() == {}
    monkeypatch.setattr(states, "_agrees", lambda *args: agrees)
    with first.role("policy"):
        expected = first.logprobs(batch(), 1.0)[0]
    monkeypatch.setattr(states, "_agrees", lambda *args: not agrees)
    again = base("gemma")
    again.packing.load_state_dict(json.loads(json.dumps(first.packing.state_dict())))
    with again.role("policy"):
        assert torch.equal(again.logprobs(batch(), 1.0)[0], expected)
    again.packing.load_state_dict({})
    assert again.packing.state_dict() == {}, "back before the first batch"


def test_copies_of_the_base_each_keep_their_own_answer() -> None:
    def copies() -> SeparateCopies:
        return SeparateCopies(lambda: base("gemma"))

    first, again = copies(), copies()
    for role, agrees in (("policy", True), ("reward", False)):
        first.holder(role).packing.agrees = agrees
    first.holder("critic")
    assert first.packing.state_dict() == {"policy": True, "reward": False}
    again.packing.load_state_dict(first.packing.state_dict())
    assert [again.holder(role).packing.agrees for role in ("policy", "reward", "critic")] == [True, False, None]


def test_the_head_counts_where_logits_are_read_and_nowhere_else() -> None:
    rows = sequences([chat().encode_prompt("Name two fruits.")], [chat().encode_response("apple and pear")], 0)
    model = shared()
    inner, head = model.model.model, model.model.get_output_embeddings()
    matrices = ((name, p.numel()) for name, p in inner.named_parameters() if p.dim() == 2)
    weights = sum(size for name, size in matrices if "lora" not in name and "embed" not in name)
    prompt, response = int(rows.prompt_mask.sum()), int(rows.response_mask.sum())
    with model.role("policy"):
        model.logprobs(rows, 1.0)
    read = prompt + response - 1  # no state is read after the last token
    assert model.forward_flops() == 2 * (weights * read + head.weight.numel() * response)
    model.count_decoding(7)
    assert model.forward_flops() == 2 * (weights * (read + 7) + head.weight.numel() * (response + 7))


def test_the_passes_over_one_batch_share_its_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = shared(("policy", "reward")), []
    model.packing.agrees = True
    monkeypatch.setattr(states, "pack", lambda given: calls.append(len(given.response_mask)) or pack(given))
    one = batch()
    raw = score(model, one, torch.ones(5, dtype=torch.bool), (0.0, 1.0), 0.0, 3)
    first, second = (role_logprobs(model, role, one, 1.0, 3) for role in ("reference", "policy"))
    assert calls == [3, 2], "cut and packed once"
    monkeypatch.setattr(model.packing, "agrees", False)
    other = batch()
    torch.testing.assert_close(raw, score(model, other, torch.ones(5, dtype=torch.bool), (0.0, 1.0), 0.0, 5))
    for role, found in (("reference", first), ("policy", second)):
        torch.testing.assert_close(found, role_logprobs(model, role, other, 1.0, 5), atol=1e-5, rtol=0)
    assert len(calls) == 2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_norm_and_its_gradient_are_torchs(scale: float) -> None:
    chance = torch.Generator().manual_seed(1)
    norm = transformers.models.gemma.modeling_gemma.GemmaRMSNorm(6, eps=1e-6).requires_grad_(False).double()
    norm.weight.normal_(generator=chance)
    x = (scale * torch.randn(5, 6, generator=chance, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(5, 6, generator=chance, dtype=torch.float64)
    found = []
    for way in (lambda states: gemma._normed(norm, states), norm):
        y = way(x)
        (slope,) = torch.autograd.grad(y, x, upstream)
        found.append((y, slope))
    torch.testing.assert_close(found[0][0], found[1][0].double(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1].double(), atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda states: gemma._normed(norm, states), x)
