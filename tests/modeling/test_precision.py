"""The precision that responses are decoded in, apart from that of the model: copies, refusals, whose numbers count."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import PROMPTS, chat, disturb, rounded, settings, shared

from gemma_alignment.config import ConfigError, build
from gemma_alignment.dotted import merged
from gemma_alignment.hooks.checks import check_parameters
from gemma_alignment.parameters.rollout import RolloutParameters
from gemma_alignment.rollout.experience import OldLogprobs, role_logprobs, rollout
from gemma_alignment.study.project import read_parameters

ROOT = Path(__file__).parents[2]


def test_half_precision_is_a_copy_of_the_sum_and_leaves_the_model_alone() -> None:
    model = shared(("policy",))
    disturb(model, "policy", 0.15)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    expected = model.merged("policy", torch.bfloat16).state_dict()
    with model.decoder("policy", "merged", "bf16") as decoder:
        assert decoder.dtype == torch.bfloat16
        found = decoder.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    with model.decoder("reference", "merged", "bf16") as decoder:
        assert decoder.dtype == torch.bfloat16, "what is compared is decoded in one precision"
    with model.decoder("policy", "merged") as decoder:
        assert decoder.dtype == torch.float32
    assert all(torch.equal(model.model.state_dict()[name], value) for name, value in before.items())


def test_four_bits_are_the_weights_themselves_and_half_precision_dequantises_them(tmp_path) -> None:
    model = shared(("policy",), base=rounded("nf4", tmp_path))
    disturb(model, "policy", 0.15)
    with model.decoder("policy", "adapter", "4bit") as decoder:
        assert decoder is model.model
        ids = torch.tensor([chat().encode_prompt(PROMPTS[0])])
        through = decoder(ids).logits.float()
    with model.decoder("policy", "merged", "bf16") as decoder:
        assert not hasattr(decoder, "hf_quantizer") and decoder.dtype == torch.bfloat16
        copied = decoder(ids).logits.float()
    assert float((through - copied).abs().max()) < 0.05 * float(through.abs().max())
    for how in (settings(weights="adapter", precision="4bit"), settings(weights="merged", precision="bf16")):
        one = rollout(model, chat(), PROMPTS, 2, how, torch.Generator().manual_seed(3))
        expected = role_logprobs(model, "policy", one.sequences, 1.0, 4)
        assert float((one.logprobs - expected).abs().max()) < 0.3, "both sample from the policy, rounding aside"
        assert torch.equal(OldLogprobs().of(model, one, how, 4, False)[0], expected)


def test_a_sampler_in_half_precision_is_never_taken_at_its_word() -> None:
    model = shared(("policy",))
    disturb(model, "policy", 0.15)
    assert model.is_exact
    how = settings(precision="bf16")
    found, old = rollout(model, chat(), PROMPTS, 2, how, torch.Generator().manual_seed(3)), OldLogprobs()
    for _ in range(2):
        logprobs, gap = old.of(model, found, how, 4, False)
        assert torch.equal(logprobs, role_logprobs(model, "policy", found.sequences, 1.0, 4))
        assert gap is not None and 0 < float(gap.max()) < 0.3
    assert old.state_dict() == {}


def test_settings_that_do_not_go_together_are_refused_with_the_way_out() -> None:
    plain = RolloutParameters(6, 1.0, 8, "transformers", "merged", "as_held")
    assert replace(plain, precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match=r"set rollout\.weights=merged too"):
        replace(plain, weights="adapter", precision="bf16")
    with pytest.raises(ValueError, match=r"set rollout\.weights=adapter too"):
        replace(plain, precision="4bit")
    with pytest.raises(ConfigError, match=r"rollout.precision"):
        build(RolloutParameters, {**vars(plain), "precision": "fp8"}, "rollout")


def test_four_bits_ask_for_a_model_in_four_bits() -> None:
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(ROOT)
    parameters = read_parameters(ROOT, "base", {})
    four = merged(parameters, {"rollout": {"precision": "4bit", "weights": "adapter"}})
    with pytest.raises(ConfigError, match=r"rollout\.precision is '4bit', but modeling\.quantization is 'none'"):
        check_parameters(four, parameters, {})
    check_parameters(merged(four, {"modeling": {"quantization": "nf4"}}), parameters, {})
