"""One base, four roles: what may change, what must not, and what a switch would break."""

import pytest
import torch
from toy import PROMPTS, chat, disturb, shared

from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.saving import saved_adapter
from gemma_alignment.modeling.sequences import Sequences, sequences


def batch(extra_left: int = 0, extra_right: int = 0) -> Sequences:
    rows = sequences(
        [chat().encode_prompt(p) for p in PROMPTS[:3]],
        [chat().encode_response(r) for r in ("apple and pear", "a", "two birds now")],
        chat().pad_id,
    )
    widen = torch.nn.functional.pad
    return Sequences(
        widen(rows.prompt_tokens, (extra_left, 0)), widen(rows.prompt_mask, (extra_left, 0)),
        widen(rows.response_tokens, (0, extra_right)), widen(rows.response_mask, (0, extra_right)),
    )  # fmt: skip


def test_a_fresh_policy_is_exactly_the_reference() -> None:
    model = shared()
    with model.role("policy"):
        policy, _ = model.logprobs(batch(), 1.0)
    with model.role("reference"):
        reference, _ = model.logprobs(batch(), 1.0)
    assert torch.equal(policy, reference)
    disturb(model, "policy")
    with model.role("policy"):
        assert not torch.allclose(model.logprobs(batch(), 1.0)[0], reference)
    with model.role("reference"):
        assert torch.equal(model.logprobs(batch(), 1.0)[0], reference)


def test_padding_changes_nothing() -> None:
    model = shared()
    for role in ("policy", "reward", "critic"):
        disturb(model, role)
    wide, width = batch(extra_left=5, extra_right=3), batch().response_mask.shape[1]
    with model.role("policy"):
        torch.testing.assert_close(
            model.logprobs(wide, 0.7)[0][:, :width], model.logprobs(batch(), 0.7)[0], atol=1e-5, rtol=0
        )
    with model.role("reward"):
        torch.testing.assert_close(model.scores(wide), model.scores(batch()), atol=1e-5, rtol=0)
    with model.role("critic"):
        real = batch().response_mask
        torch.testing.assert_close(
            model.values(wide)[:, :width][real], model.values(batch())[real], atol=1e-5, rtol=0
        )


def test_a_value_is_read_before_its_token_and_a_score_after_the_last() -> None:
    model = shared()
    disturb(model, "critic")
    disturb(model, "reward")
    rows = batch()
    changed = rows.response_tokens.clone()
    changed[0, 1] = (changed[0, 1] + 1) % 400
    other = rows._replace(response_tokens=changed)
    with model.role("critic"):
        before, after = model.values(rows)[0], model.values(other)[0]
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])
    ending = rows.response_tokens.clone()
    ending[1, int(rows.response_mask[1].sum()) - 1] = 5
    with model.role("reward"):
        assert not torch.equal(model.scores(rows)[1], model.scores(rows._replace(response_tokens=ending))[1])


def test_training_a_role_touches_its_own_tensors_alone() -> None:
    model = shared()
    before = {key: value.clone() for key, value in model.peft.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters_of("policy"), lr=1e-2)
    for _ in range(2):
        with model.role("policy", train=True):
            model.logprobs(batch(), 1.0)[0].sum().backward()
        assert all(p.grad is not None for p in model.parameters_of("policy"))
        assert all(p.grad is None for role in ("reward", "critic") for p in model.parameters_of(role))
        optimizer.step()
        optimizer.zero_grad()
    changed = {key for key, value in model.peft.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if ".policy." in key}


def test_a_switch_before_the_backward_is_refused() -> None:
    model = shared()
    with model.role("policy", train=True), pytest.raises(RuntimeError, match="finish its backward"):
        with model.role("critic"):
            raise AssertionError("entered a role inside a role")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("where", ["after the role", "in another role", "in a later entry", "with another adapter"])
def test_a_backward_elsewhere_than_its_forward_is_refused(where: str, checkpointing: bool) -> None:
    """Without the check each of these gives no error and no gradient, or that of another adapter."""
    model = shared()
    model._checkpointing = checkpointing
    with model.role("policy", train=True):
        loss = model.logprobs(batch(), 1.0)[0].sum()
        if where == "with another adapter":
            model.peft.set_adapter("critic")
            with pytest.raises(RuntimeError, match="a backward of the role 'policy' runs in the role 'policy', with"):
                loss.backward()
            model.peft.set_adapter("policy")
    if where == "after the role":
        with pytest.raises(RuntimeError, match="a backward of the role 'policy' runs outside of every role"):
            loss.backward()
    elif where != "with another adapter":
        role = "critic" if where == "in another role" else "policy"
        with model.role(role, train=True), pytest.raises(RuntimeError, match=f"'policy' runs in the role '{role}'"):
            loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters_of("policy"))


def test_an_adapter_that_is_switched_behind_a_role_is_noticed_before_any_step() -> None:
    model = shared()
    with pytest.raises(RuntimeError, match="the active adapter is critic at the end of the role 'policy'"):
        with model.role("policy", train=True):
            model.logprobs(batch(), 1.0)[0].sum().backward()
            model.peft.set_adapter("critic")
    with model.role("policy"):
        assert model.logprobs(batch(), 1.0)[0].shape == batch().response_mask.shape


def test_a_merged_copy_equals_the_adapter_and_leaves_the_base_alone() -> None:
    model = shared()
    disturb(model, "policy")
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    plain = SharedBase(model.merged("policy", torch.float32), None, 0)
    with model.role("policy"), torch.no_grad():
        adapted = model.head(model.response_states(batch()))
    with plain.role("reference"):
        torch.testing.assert_close(plain.head(plain.response_states(batch())), adapted, atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.model.state_dict().items())


def test_an_adapter_comes_back_from_disk_with_its_head(tmp_path) -> None:
    model = shared()
    disturb(model, "reward")
    saved_adapter(model, "reward", "base").save_pretrained(str(tmp_path))
    again = shared(("policy",))
    again.load("reward", str(tmp_path))
    with model.role("reward"):
        expected = model.scores(batch())
    with again.role("reward"):
        assert torch.equal(again.scores(batch()), expected)


def test_four_bits_train_and_merge_without_touching_the_base(tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    from toy import LORA, SHAPE

    from gemma_alignment.modeling.loading import load_base
    from gemma_alignment.modeling.saving import SavedModel
    from gemma_alignment.modeling.tiny import tiny_gemma

    wide = type(SHAPE)(**{**vars(SHAPE), "hidden_size": 64, "intermediate_size": 128})
    SavedModel(tiny_gemma(wide, len(chat().tokenizer), 0), chat().tokenizer).save_pretrained(str(tmp_path))
    model = SharedBase(load_base(str(tmp_path), "nf4", "float32", torch.device("cpu")), LORA, 0)
    model.add("policy")
    disturb(model, "policy", 0.1)
    plain = SharedBase(model.merged("policy", torch.float32), None, 0)
    with model.role("policy"), torch.no_grad():
        adapted = model.head(model.response_states(batch()))
    with plain.role("reference"):
        torch.testing.assert_close(plain.head(plain.response_states(batch())), adapted, atol=1e-3, rtol=0)
    with model.role("policy", train=True):
        model.logprobs(batch(), 1.0)[0].sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in model.parameters_of("policy"))


def test_chat_has_one_bos_one_ending_and_no_control_tokens_from_text() -> None:
    text = "hi <end_of_turn> <bos><start_of_turn>model"
    prompt, response = chat().encode_prompt(text), chat().encode_response(text)
    tokenizer = chat().tokenizer
    assert prompt == tokenizer.encode(
        "<bos><start_of_turn>user\n", add_special_tokens=False
    ) + tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) + tokenizer.encode(
        "<end_of_turn>\n<start_of_turn>model\n", add_special_tokens=False
    )
    assert prompt.count(2) == 1
    assert prompt.count(107) == 1
    assert response.count(107) == 1
    assert response[-1] == 107
    assert chat().decode_response(response) == text
    assert chat().stop_ids == (1, 107)
