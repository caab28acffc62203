"""A Gemma's own way to decode against the portable one: the same tokens and log-probabilities, one set of weights."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from scipy import stats
from toy import PROMPTS, chat, disturb, settings, shared

from gemma_alignment.modeling.decoding import GemmaCached, ModulesCached, cached, lay_side_by_side
from gemma_alignment.modeling.merging import empty_copy, write_merged
from gemma_alignment.rollout import sampling
from gemma_alignment.rollout.experience import rollout


def gemma(shared_heads: int, **more: Any) -> Any:
    torch.manual_seed(5)
    config = transformers.GemmaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=shared_heads,
        head_dim=8, intermediate_size=48, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        **more,
    )  # fmt: skip
    model = transformers.GemmaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
        assert "norm" not in name or float(parameter.std()) > 0
    return model


def sampled(model: Any, temperature: float, way: Any, monkeypatch: pytest.MonkeyPatch) -> sampling.Rollout:
    monkeypatch.setattr(sampling, "cached", way)
    prompts = [[2, 10, 11, 12, 13], [2, 20], [2, 30, 31]]
    return sampling.sample(
        model, prompts, 4, max_new_tokens=20, temperature=temperature, stop_ids=(1, 5, 6, 7), pad_id=0,
        generator=torch.Generator().manual_seed(1), batch_size=12,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("shared_heads", [1, 2, 4])
def test_the_two_ways_give_the_same(shared_heads: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lay_side_by_side(gemma(shared_heads))
    assert type(cached(model)) is GemmaCached
    fast = sampled(model, temperature, GemmaCached, monkeypatch)
    plain = sampled(model, temperature, ModulesCached, monkeypatch)
    lengths = plain.sequences.response_mask.sum(1)
    assert temperature == 0 or len(set(lengths.tolist())) > 2, "rows end apart: the batch is rebuilt on the way"
    assert torch.equal(fast.sequences.response_tokens, plain.sequences.response_tokens)
    assert fast.decoded_tokens == plain.decoded_tokens
    torch.testing.assert_close(fast.logprobs, plain.logprobs, atol=1e-5, rtol=0)


def test_what_is_sampled_has_the_probabilities_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third token after a given second one, over a vocabulary of 40."""
    model = lay_side_by_side(gemma(1))
    way = GemmaCached(model)
    prompt = torch.tensor([[2, 10, 11]])
    with torch.inference_mode():
        way.prefill(prompt, torch.ones_like(prompt), 1, 2)
        logits = way.step(torch.tensor([12]))
    expected = model(torch.tensor([[2, 10, 11, 12]])).logits[0, -1].softmax(-1).double()
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(3))
    tokens, _ = sampling.draw(logits.expand(20_000, -1), uniform, 1.0)
    counts = torch.bincount(tokens, minlength=40).double()
    assert stats.chisquare(counts, expected / expected.sum() * 20_000).pvalue > 1e-3


def test_no_weight_is_held_twice_and_what_is_written_is_used() -> None:
    source = shared(("policy",))
    disturb(source, "policy", 0.1)
    plain = lay_side_by_side(empty_copy(source.model, torch.float32))
    first = plain.model.layers[0]
    start, size = first.self_attn.side_by_side.data_ptr(), first.self_attn.q_proj.weight.nbytes
    assert first.self_attn.q_proj.weight.data_ptr() == start
    assert first.self_attn.k_proj.weight.data_ptr() == start + size
    write_merged(source.model, "policy", plain)
    expected = source.merged("policy", torch.float32).model.layers[0]
    assert torch.equal(first.mlp.side_by_side, torch.cat([expected.mlp.gate_proj.weight, expected.mlp.up_proj.weight]))


@pytest.mark.parametrize("kind", ["bfloat16", "bias", "llama"])
def test_other_models_go_through_their_own_modules(kind: str) -> None:
    if kind == "llama":
        model: Any = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
            )
        )
    else:
        model = gemma(1, attention_bias=True) if kind == "bias" else gemma(1).bfloat16()
    assert type(cached(lay_side_by_side(model.eval()))) is ModulesCached


def test_a_planted_shift_of_the_positions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(GemmaCached):
        def prefill(self, *args: Any) -> torch.Tensor:
            logits = super().prefill(*args)
            self._positions = self._positions + 1
            return logits

    model = lay_side_by_side(gemma(1))
    wrong = sampled(model, 1.0, Shifted, monkeypatch)
    plain = sampled(model, 1.0, ModulesCached, monkeypatch)
    width = min(wrong.logprobs.shape[1], plain.logprobs.shape[1])
    assert float((wrong.logprobs[:, :width] - plain.logprobs[:, :width]).abs().max()) > 1e-3


def test_the_policy_of_a_run_decodes_so_and_an_adapter_does_not() -> None:
    model = shared(("policy",))
    with model.decoder("policy", "merged") as decoder:
        assert type(cached(decoder)) is GemmaCached
    with model.decoder("policy", "adapter") as decoder:
        assert type(cached(decoder)) is ModulesCached
    found = rollout(model, chat(), PROMPTS, 2, SimpleNamespace(**vars(settings())), torch.Generator().manual_seed(3))
    assert found.logprobs.requires_grad is False and not found.logprobs.is_inference(), "a loss can be made of them"
