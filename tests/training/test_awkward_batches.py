"""Batches that a run meets sooner or later: ties, one token, no ending, nothing at all, padding ids that are real."""

import math
from dataclasses import replace

import pytest
import torch
from test_policy_optimization import adapters, run
from toy import chat, disturb, settings, shared

from gemma_alignment.modeling.sequences import Sequences, sequences
from gemma_alignment.rollout.experience import in_parts
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.policy_optimization import optimize

ONE_STEP = {"num_iterations": 1, "minibatch_size": 8}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs_critic])
def test_groups_whose_scores_are_all_equal_move_nothing(name: str) -> None:
    one = run(name, shared_changes={**ONE_STEP, "missing_eos_penalty": 0.0}, kl_placement="none")
    for parameter in one.model.heads["reward"].parameters():
        parameter.data.zero_()
    before = adapters(one.model)
    last = list(optimize(one))[-1]
    assert last.metrics["rollout/zero_variance_groups"] == 1
    assert last.metrics["policy/grad_norm"] == 0
    assert all(torch.equal(value, before[key]) for key, value in adapters(one.model).items())


@pytest.mark.parametrize("name", METHODS)
def test_responses_of_one_token_are_learnt_from(name: str) -> None:
    one = replace(run(name, shared_changes=ONE_STEP), rollout=settings(max_new_tokens=1))
    last = list(optimize(one))[-1]
    assert last.metrics["rollout/response_length"] == 1
    assert last.metrics["policy/grad_norm"] > 0
    assert all(math.isfinite(value) for value in last.metrics.values())


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_responses_without_an_ending_lose_the_penalty_and_nothing_else(name: str) -> None:
    class Endless(type(chat())):
        stop_ids = (10**6,)

    found = {}
    for penalty in (0.0, 1.5):
        one = run(name, shared_changes={**ONE_STEP, "missing_eos_penalty": penalty})
        found[penalty] = list(optimize(replace(one, chat=Endless(chat().tokenizer))))[-1].metrics
        assert found[penalty]["rollout/eos_rate"] == 0
        assert found[penalty]["rollout/response_length"] == one.rollout.max_new_tokens
        assert all(math.isfinite(value) for value in found[penalty].values())
    lost = found[0.0]["reward/score_mean"] - found[1.5]["reward/score_mean"]
    assert lost == pytest.approx(1.5, abs=1e-5)


def test_a_run_without_prompts_says_so() -> None:
    with pytest.raises(ValueError, match="there are no training prompts"):
        list(optimize(replace(run(), prompts=[])))


def test_an_empty_batch_has_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="an empty batch has nothing to score"):
        in_parts(sequences([], [], 0), 4, lambda part: part.response_mask.sum(1))


def test_a_padding_id_inside_a_response_is_a_token_like_any_other() -> None:
    """Its log-probability counts, it is attended to, and the score is read at the last real token, not before it."""
    model = shared()
    for role in ("policy", "reward"):
        disturb(model, role)
    pad, prompt = chat().pad_id, chat().encode_prompt("Name two fruits.")
    rows = sequences([prompt] * 3, [[7, pad, 9, 107], [7, 9, 107], [7, pad, 107]], pad)
    with model.role("policy"):
        logprobs = model.logprobs(rows, 1.0)[0]
        logits = model.head(model.response_states(Sequences(*(part[:1] for part in rows)))).log_softmax(-1)
    expected = [float(logits[t, token]) for t, token in enumerate((7, pad, 9, 107))]
    assert logprobs[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(float(logprobs[0, 2] - logprobs[1, 1])) > 1e-4, "9 after the padding id, and without it"
    with model.role("reward"):
        together = model.scores(rows)
        alone = [model.scores(Sequences(*(part[i : i + 1] for part in rows))) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert len({round(float(value), 4) for value in together}) == 3
