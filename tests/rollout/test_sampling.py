"""Sampling: the distribution it claims, and independence of everything that should not matter."""

import pytest
import torch
from scipy import stats
from toy import PROMPTS, SHAPE, chat, disturb, settings, shared
from transformers import GemmaForCausalLM

from gemma_alignment.modeling.decoding import GemmaCached, ModulesCached
from gemma_alignment.modeling.heads import prompts_at_a_time
from gemma_alignment.rollout.experience import role_logprobs, rollout
from gemma_alignment.rollout.sampling import draw, sample
from gemma_alignment.schemas import order_by_prompt


def run(batch_size: int = 64, group_size: int = 3, temperature: float = 1.0, seed: int = 5, weights: str = "merged"):
    model = shared()
    disturb(model, "policy", 0.15)
    found = rollout(
        model, chat(), PROMPTS, group_size, settings(batch_size=batch_size, temperature=temperature, weights=weights),
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return model, found


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log_softmax(-1)
    p = logits.exp()[0].tolist()
    for u, expected in ((0.0, 0), (p[0] - 1e-3, 0), (p[0] + 1e-3, 1), (p[0] + p[1] + 1e-3, 2), (1 - 1e-6, 2)):
        assert int(draw(logits, torch.tensor([u]), 1.0)[0]) == expected


def test_draw_has_the_softmax_frequencies() -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.7])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(logits.expand(20_000, 5), uniform, 0.7)
    torch.testing.assert_close(logprobs, (logits / 0.7).log_softmax(0)[tokens], atol=1e-6, rtol=0)
    expected = torch.softmax(logits.double() / 0.7, -1) * 20_000
    p = stats.chisquare(torch.bincount(tokens, minlength=5).double(), expected / expected.sum() * 20_000).pvalue
    assert p > 1e-3


@pytest.mark.parametrize("batch_size", [3, 6, 64])
def test_rows_do_not_depend_on_the_batch(batch_size: int) -> None:
    _, whole = run()
    _, parts = run(batch_size=batch_size)
    assert torch.equal(whole.sequences.response_tokens, parts.sequences.response_tokens)


@pytest.mark.parametrize("way", [GemmaCached, ModulesCached])
def test_few_prompts_at_a_time_go_through_a_wide_mlp(way, monkeypatch) -> None:
    """A pass over prompts holds at most ``WIDE`` numbers of the MLP's width, and the tokens are the same."""
    _, whole = run()
    length = max(len(chat().encode_prompt(prompt)) for prompt in PROMPTS)
    monkeypatch.setattr("gemma_alignment.modeling.heads.WIDE", 3 * length * SHAPE.intermediate_size)
    assert prompts_at_a_time(length, SHAPE.intermediate_size) == 3
    assert prompts_at_a_time(10**9, 10**9) == 1
    monkeypatch.setattr("gemma_alignment.rollout.sampling.cached", way)
    passes = []
    forward, prompts = GemmaForCausalLM.forward, GemmaCached._prompts
    spied = lambda self, **given: passes.append(given["input_ids"]) or forward(self, **given)  # noqa: E731
    monkeypatch.setattr(GemmaForCausalLM, "forward", spied)
    monkeypatch.setattr(GemmaCached, "_prompts", lambda self, *given: passes.append(given[0]) or prompts(self, *given))
    _, parts = run()
    prefills = [tuple(ids.shape) for ids in passes if ids.shape[1] > 1]
    assert prefills == [(3, length), (1, length)]
    assert torch.equal(whole.sequences.response_tokens, parts.sequences.response_tokens)
    torch.testing.assert_close(parts.logprobs, whole.logprobs, atol=1e-5, rtol=0)


def test_merged_weights_sample_the_same_as_the_adapter() -> None:
    assert torch.equal(
        run()[1].sequences.response_tokens, run(weights="adapter")[1].sequences.response_tokens
    )


def test_greedy_tokens_are_those_of_generate() -> None:
    model, found = run(group_size=1, temperature=0.0)
    with model.decoder() as decoder:
        for i, prompt in enumerate(PROMPTS):
            ids = torch.tensor([chat().encode_prompt(prompt)])
            expected = decoder.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=[1, 107]
            )[0, ids.shape[1] :]
            mask = found.sequences.response_mask[i]
            assert found.sequences.response_tokens[i][mask].tolist() == expected.tolist()


def test_an_ending_token_belongs_to_the_mask_and_nothing_after_it() -> None:
    """A model that always ends at once gives one-token responses; pad and EOS ids inside do not end it."""
    model = shared()

    class Scripted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.device, self.config, self.step = model.model, model.device, model.model.config, 0

        def forward(self, **kwargs):
            out = self.inner(**kwargs)
            token = [0, 107, 0][self.step] if self.step < 3 else 0
            self.step += 1
            out.logits = torch.full_like(out.logits, -50.0)
            out.logits[..., token] = 50.0
            return out

    found = sample(
        Scripted().eval(), [chat().encode_prompt(PROMPTS[0])], 2, max_new_tokens=5, temperature=1.0, stop_ids=(1, 107),
        pad_id=0, generator=torch.Generator().manual_seed(0), batch_size=8,
    )  # fmt: skip
    assert found.sequences.response_tokens.tolist() == [[0, 107], [0, 107]]
    assert found.sequences.response_mask.all()
    assert found.ended.all()


def test_a_cut_off_response_is_not_ended() -> None:
    _, found = run()
    lengths = found.sequences.response_mask.sum(1)
    for i, ended in enumerate(found.ended.tolist()):
        last = int(found.sequences.response_tokens[i, lengths[i] - 1])
        assert ended == (last in (1, 107))
        assert ended or lengths[i] == 6


def test_scoring_in_parts_equals_scoring_at_once() -> None:
    model, found = run()
    whole = role_logprobs(model, "policy", found.sequences, 1.0, 100)
    torch.testing.assert_close(role_logprobs(model, "policy", found.sequences, 1.0, 5), whole, atol=1e-5, rtol=0)


def test_rows_of_a_prompt_stand_side_by_side_and_short_prompts_first() -> None:
    tokens = torch.tensor([[2, 7, 8], [0, 2, 9], [2, 5, 8], [2, 7, 8], [0, 2, 9], [2, 5, 8]])
    assert order_by_prompt(tokens, tokens > 0).tolist() == [1, 4, 2, 5, 0, 3]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_sampler_and_a_training_forward_agree_on_every_log_probability(temperature: float) -> None:
    model = shared()
    disturb(model, "policy", 0.1)
    how = settings(temperature=temperature)
    found = rollout(model, chat(), PROMPTS, 3, how, torch.Generator().manual_seed(5))
    assert model.is_exact
    expected = role_logprobs(model, "policy", found.sequences, temperature, 5)
    assert found.logprobs.shape == found.sequences.response_mask.shape
    torch.testing.assert_close(found.logprobs, expected, atol=1e-5, rtol=0)
    assert (found.logprobs[~found.sequences.response_mask] == 0).all()


def test_sampling_in_train_mode_is_refused() -> None:
    model = shared()
    with model.decoder() as decoder, pytest.raises(RuntimeError, match="cannot sample in train mode: under gradient"):
        sample(
            decoder.train(), [[2, 5]], 2, max_new_tokens=5, temperature=1.0, stop_ids=(1,), pad_id=0,
            generator=torch.Generator(), batch_size=8,
        )  # fmt: skip


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        sample(
            None, [], 2, max_new_tokens=5, temperature=1.0, stop_ids=(1,), pad_id=0, generator=torch.Generator(),
            batch_size=8,
        )  # fmt: skip
