"""Where the log-probabilities of the policy that sampled come from: the sampler, where it agrees with a forward."""

import dataclasses
import json
import logging

import pytest
import torch
from toy import PROMPTS, chat, disturb, rounded, settings, shared

from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.rollout.experience import AGREEMENT, MEAN_AGREEMENT, OldLogprobs, role_logprobs, rollout
from gemma_alignment.rollout.sampling import Rollout


@pytest.fixture(scope="module")
def sampled() -> tuple[SharedBase, Rollout]:
    model = shared(("policy",))
    disturb(model, "policy", 0.1)
    return model, rollout(model, chat(), PROMPTS, 2, settings(), torch.Generator().manual_seed(3))


def moved(found: Rollout, by: float) -> Rollout:
    logprobs = found.logprobs.clone()
    logprobs[1, 0] += by
    return dataclasses.replace(found, logprobs=logprobs)


def test_the_first_batch_is_computed_both_ways_and_the_next_ones_are_the_samplers(sampled) -> None:
    model, found = sampled
    old, trained = OldLogprobs(), role_logprobs(model, "policy", found.sequences, 1.0, 4)
    assert torch.equal(old.of(model, found, settings(), 4, False)[0], trained)
    assert old.of(model, found, settings(), 4, False)[0] is found.logprobs
    assert not torch.equal(trained, found.logprobs), "two ways to compute them, not one"


def test_a_sampler_that_disagrees_in_the_first_batch_is_never_used(sampled, caplog) -> None:
    model, found = sampled
    old, trained = OldLogprobs(), role_logprobs(model, "policy", found.sequences, 1.0, 4)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(old.of(model, moved(found, 1.5 * AGREEMENT), settings(), 4, False)[0], trained)
    assert "Sampler and training forward differ by up to 7.5e-05 nats a token" in caplog.text
    assert torch.equal(old.of(model, found, settings(), 4, False)[0], trained)
    assert old.state_dict() == {"sampler_agrees": False}


def test_a_sampler_that_is_off_by_a_little_everywhere_is_never_used(sampled) -> None:
    model, found = sampled
    old, trained = OldLogprobs(), role_logprobs(model, "policy", found.sequences, 1.0, 4)
    mask = found.sequences.response_mask
    off = dataclasses.replace(found, logprobs=(trained + 2 * MEAN_AGREEMENT).masked_fill(~mask, 0.0))
    logprobs, gap = old.of(model, off, settings(), 4, False)
    assert gap.max() < AGREEMENT
    assert torch.equal(logprobs, trained)
    assert old.state_dict() == {"sampler_agrees": False}


@pytest.mark.parametrize("gap", [0.0, 1.5 * AGREEMENT])
def test_a_run_that_goes_on_does_not_ask_again(sampled, gap: float) -> None:
    model, found = sampled
    first, again = OldLogprobs(), OldLogprobs()
    assert first.state_dict() == {}
    first.of(model, moved(found, gap), settings(), 4, False)[0]
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (again.of(model, found, settings(), 4, False)[0] is found.logprobs) == (gap == 0.0)
    again.load_state_dict({})
    assert again.state_dict() == {}, "back before the first batch"


def test_the_temperature_is_that_of_the_sampler(sampled) -> None:
    model, _ = sampled
    how = settings(temperature=0.7)
    found = rollout(model, chat(), PROMPTS, 2, how, torch.Generator().manual_seed(3))
    old = OldLogprobs()
    assert torch.equal(old.of(model, found, how, 4, False)[0], role_logprobs(model, "policy", found.sequences, 0.7, 4))
    assert old.state_dict() == {"sampler_agrees": True}


def test_in_half_precision_they_come_from_the_training_forward_always(tmp_path) -> None:
    model = shared(("policy",), base=rounded("bfloat16", tmp_path))
    found = rollout(model, chat(), PROMPTS, 2, settings(), torch.Generator().manual_seed(3))
    old = OldLogprobs()
    for _ in range(2):
        trained = role_logprobs(model, "policy", found.sequences, 1.0, 4)
        logprobs, gap = old.of(model, found, settings(), 4, False)
        assert torch.equal(logprobs, trained)
        assert gap is not None and gap.shape == (8,), "both were computed anyway"
    assert old.state_dict() == {}


def test_asking_again_changes_nothing_while_the_two_agree(sampled) -> None:
    model, found = sampled
    old, trained = OldLogprobs(), role_logprobs(model, "policy", found.sequences, 1.0, 4)
    gap = (trained - found.logprobs).abs().amax(1)
    assert 0 < gap.max() < AGREEMENT
    assert torch.equal(old.of(model, found, settings(), 4, False)[1], gap), "the first batch is always compared"
    assert old.of(model, found, settings(), 4, False)[1] is None
    logprobs, again = old.of(model, found, settings(), 4, True)
    assert logprobs is found.logprobs
    assert torch.equal(again, gap)
    assert old.state_dict() == {"sampler_agrees": True}


def test_a_sampler_that_drifts_off_later_is_dropped_for_good_with_one_warning(sampled, caplog) -> None:
    model, found = sampled
    old, trained = OldLogprobs(), role_logprobs(model, "policy", found.sequences, 1.0, 4)
    old.of(model, found, settings(), 4, False)
    off = moved(found, 1.5 * AGREEMENT)
    assert old.of(model, off, settings(), 4, False)[0] is off.logprobs, "nobody asked"
    with caplog.at_level(logging.WARNING):
        for one, ask in ((off, True), (off, False), (found, True), (found, False)):
            logprobs, gap = old.of(model, one, settings(), 4, ask)
            assert torch.equal(logprobs, trained)
            torch.testing.assert_close(gap, (trained - one.logprobs).abs().amax(1), atol=0, rtol=0)
    assert [record.name for record in caplog.records].count("gemma_alignment.rollout.experience") == 1
    assert "from here on the policy's second forward is made in every iteration" in caplog.text
    assert old.state_dict() == {"sampler_agrees": False}


@pytest.mark.parametrize("gap", [float("nan"), float("inf")])
def test_a_sampler_without_a_number_is_not_used(sampled, gap: float) -> None:
    model, found = sampled
    old = OldLogprobs()
    old.of(model, found, settings(), 4, False)
    _, seen = old.of(model, moved(found, gap), settings(), 4, True)
    assert old.state_dict() == {"sampler_agrees": False}
    assert not torch.isfinite(seen[1])
