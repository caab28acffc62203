"""The continuous batching of transformers 5 against the portable loop: the same responses, and whole failures."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from scipy import stats
from toy import PROMPTS, chat, disturb, settings, shared

from gemma_alignment.errors import UserError
from gemma_alignment.modeling import continuous
from gemma_alignment.rollout.experience import OldLogprobs, role_logprobs, rollout
from gemma_alignment.rollout.sampling import Rollout, sample

STOPS = (1, 5, 6, 7)


def tiny(kind: str) -> Any:
    torch.manual_seed(5)
    shape = {
        "vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64, "head_dim": 8,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**shape)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def drawn(model: Any, engine: str, temperature: float, prompts: Any = ([2, 10, 11, 12], [2, 20], [2, 13, 14]), copies=4,
          rows: int = 12, steps: int = 12, seed: int = 1) -> Rollout:  # fmt: skip
    return sample(
        model, prompts, copies, max_new_tokens=steps, temperature=temperature, stop_ids=STOPS, pad_id=0,
        generator=torch.Generator().manual_seed(seed), batch_size=rows, engine=engine,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("kind", ["Gemma", "Llama"])
def test_the_engine_gives_the_responses_of_the_loop(kind: str, temperature: float) -> None:
    model = tiny(kind)
    ours, theirs = (drawn(model, engine, temperature) for engine in ("transformers", "continuous_batching"))
    lengths = ours.sequences.response_mask.sum(1)
    assert temperature == 0 or len(set(lengths.tolist())) > 2, "rows end apart"
    assert torch.equal(theirs.sequences.response_tokens, ours.sequences.response_tokens)
    assert torch.equal(theirs.ended, ours.ended)
    assert theirs.logprobs is None
    assert theirs.decoded_tokens == 4 + 2 + 3 + int((lengths - 1).sum()) <= ours.decoded_tokens
    assert model.config._attn_implementation == "sdpa", "the model is left as it was"


def test_few_rows_at_a_time_and_other_random_numbers_change_no_response() -> None:
    model = tiny("Gemma")
    expected = drawn(model, "continuous_batching", 1.0)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = drawn(model, "continuous_batching", 1.0, rows=3)
    assert torch.equal(again.sequences.response_tokens, expected.sequences.response_tokens)
    assert torch.equal(torch.random.get_rng_state(), before), "the engine seeds the whole process; nothing of it stays"


def test_the_second_token_has_the_probabilities_of_the_model() -> None:
    """After each first token that is common enough, over a vocabulary of 24."""
    model = tiny("Gemma")
    found = drawn(model, "continuous_batching", 1.0, prompts=[[2, 10, 11]], copies=1500, rows=1500, steps=2)
    tokens, mask = found.sequences.response_tokens, found.sequences.response_mask
    first = int(torch.bincount(tokens[mask[:, 1], 0]).argmax())
    second = tokens[mask[:, 1] & (tokens[:, 0] == first), 1]
    p = model(torch.tensor([[2, 10, 11, first]])).logits[0, -1].double().softmax(-1) * len(second)
    likely = p >= 5
    counts = torch.bincount(second, minlength=24).double()
    seen = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([p[likely], p[~likely].sum()[None]])
    assert len(second) > 100 and int(likely.sum()) >= 3
    assert stats.chisquare(seen, expected / expected.sum() * seen.sum()).pvalue > 1e-3


def test_a_planted_shift_of_the_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Gemma")
    expected = drawn(model, "transformers", 1.0).sequences.response_tokens
    plain = continuous._Drawn._number
    moved = lambda self, state: plain(self, SimpleNamespace(  # noqa: E731
        request_id=state.request_id, position_offset=max(state.position_offset - 1, self._before[0] + 1)
    ))  # fmt: skip
    monkeypatch.setattr(continuous._Drawn, "_number", moved)
    found = drawn(model, "continuous_batching", 1.0, prompts=[[2, 10, 11, 12]]).sequences.response_tokens
    width = min(found.shape[1], expected.shape[1])
    assert not torch.equal(found[:, :width], expected[:4, :width])


def test_what_the_engine_cannot_decode_is_refused_with_the_way_out(monkeypatch, caplog) -> None:
    model = tiny("Gemma")
    failing = lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("no kernel for this"))  # noqa: E731
    monkeypatch.setattr(type(model), "forward", failing)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as refused:
        drawn(model, "continuous_batching", 1.0)
    assert "cannot decode a GemmaForCausalLM on cpu here: RuntimeError: no kernel for this" in str(refused.value)
    assert str(refused.value).endswith("Run with --params rollout.engine=transformers.")
    assert not caplog.records, "it is said once"


@pytest.mark.parametrize("weights", ["merged", "adapter"])
def test_a_policy_is_sampled_so_and_its_log_probabilities_are_those_of_a_training_forward(weights: str) -> None:
    model = shared(("policy",))
    disturb(model, "policy", 0.15)
    how = settings(engine="continuous_batching", weights=weights)
    found = rollout(model, chat(), PROMPTS, 3, how, torch.Generator().manual_seed(5))
    expected = rollout(model, chat(), PROMPTS, 3, settings(), torch.Generator().manual_seed(5))
    assert torch.equal(found.sequences.response_tokens, expected.sequences.response_tokens)
    old = OldLogprobs()
    for _ in range(2):
        logprobs, gap = old.of(model, found, how, 4, False)
        assert torch.equal(logprobs, role_logprobs(model, "policy", found.sequences, 1.0, 4))
        assert gap is None
    assert old.state_dict() == {}
