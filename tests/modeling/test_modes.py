"""No dropout, no checkpointing while sampling, and the same gradients with it: what fails without an error."""

import pytest
import torch
from modeling.test_roles import batch
from torch import nn
from toy import LORA, SHAPE, chat, disturb, rounded, shared

from gemma_alignment.modeling.loading import load_base
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.saving import SavedModel
from gemma_alignment.modeling.tiny import tiny_gemma


def model(checkpointing: bool) -> SharedBase:
    base = tiny_gemma(SHAPE, len(chat().tokenizer), 0).eval().requires_grad_(False)
    found = SharedBase(base, LORA, 0, gradient_checkpointing=checkpointing)
    found.add("policy")
    disturb(found, "policy", 0.1)
    return found


def gradients(one: SharedBase) -> list[torch.Tensor]:
    with one.role("policy", train=True):
        one.logprobs(batch(), 1.0)[0].sum().backward()
    found = [p.grad.clone() for p in one.parameters_of("policy")]
    for p in one.parameters_of("policy"):
        p.grad = None
    return found


def test_two_forwards_in_train_mode_are_bitwise_equal() -> None:
    one = model(checkpointing=True)
    assert all(part.p == 0 for part in one.peft.modules() if isinstance(part, nn.Dropout))
    assert one.model.config.attention_dropout == 0
    with one.role("policy", train=True):
        assert one.model.training
        assert torch.equal(one.logprobs(batch(), 1.0)[0], one.logprobs(batch(), 1.0)[0])


def test_a_base_with_dropout_is_loaded_without_any(tmp_path) -> None:
    """That of attention is no module: the configuration and the layers hold its rate."""
    noisy = tiny_gemma(SHAPE, len(chat().tokenizer), 0)
    noisy.config.attention_dropout = 0.3
    SavedModel(noisy, chat().tokenizer).save_pretrained(str(tmp_path))
    base = load_base(str(tmp_path), "none", "float32", torch.device("cpu"))
    rates = [getattr(part, "attention_dropout", 0.0) for part in base.modules()]
    assert base.config.attention_dropout == 0 and not any(rates)
    one = SharedBase(base, LORA, 0, True)
    one.add("policy")
    with one.role("policy", train=True):
        assert torch.equal(one.logprobs(batch(), 1.0)[0], one.logprobs(batch(), 1.0)[0])


def test_checkpointing_changes_no_gradient() -> None:
    plain, saving = gradients(model(False)), gradients(model(True))
    assert max(float(g.abs().max()) for g in plain) > 1e-3
    for one, other in zip(plain, saving, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_checkpointing_leaves_nothing_behind_in_the_model() -> None:
    """A hook more with every micro-batch would make each later call slower, sampling too."""
    one = model(checkpointing=True)
    before = sum(len(part._forward_hooks) for part in one.model.modules())
    for _ in range(3):
        gradients(one)
    assert sum(len(part._forward_hooks) for part in one.model.modules()) == before


def test_in_four_bits_a_forward_without_gradient_changes_neither_weights_nor_gradients(tmp_path) -> None:
    """bitsandbytes would lay them out anew on CPUs with AVX512-BF16, and leave them out of every later backward."""
    one = shared(("policy",), base=rounded("nf4", tmp_path))
    disturb(one, "policy", 0.1)
    weights = {key: value.clone() for key, value in one.peft.state_dict().items()}
    before = gradients(one)
    with one.role("policy"):
        one.logprobs(batch(), 1.0)
    merged = one.merged("policy", torch.float32)
    for first, later in zip(before, gradients(one), strict=True):
        assert torch.equal(first, later)
    assert all(torch.equal(value, weights[key]) for key, value in one.peft.state_dict().items())
    for key, value in one.merged("policy", torch.float32).state_dict().items():
        assert torch.equal(value, merged.state_dict()[key])


@pytest.mark.parametrize("weights", ["merged", "adapter"])
def test_sampling_after_a_training_forward_is_in_eval_mode_without_checkpointing(weights: str) -> None:
    """In train mode with checkpointing the cache is dropped, and a decoder goes on from one token alone."""
    one = model(checkpointing=True)
    gradients(one)
    assert one.model.is_gradient_checkpointing
    with one.decoder(weights=weights) as decoder:
        assert not any(part.training for part in decoder.modules())
        assert not decoder.is_gradient_checkpointing
        ids = torch.tensor([chat().encode_prompt("Name two fruits.")])
        cached = decoder(ids, use_cache=True).past_key_values
        assert cached.get_seq_length() == ids.shape[1]
