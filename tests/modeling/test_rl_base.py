"""What policy optimisation starts from, and on how many bases: the same study whichever way it is held."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from modeling.test_roles import batch
from toy import LORA, SHAPE, SharedBase, chat, disturb, tiny_gemma
from training.test_policy_optimization import run

from gemma_alignment.errors import UserError
from gemma_alignment.modeling.copies import SeparateCopies
from gemma_alignment.modeling.provenance import check_adapter
from gemma_alignment.modeling.saving import SavedModel, saved_adapter
from gemma_alignment.pipelines.models import Start, load_role, open_start
from gemma_alignment.training.policy_optimization import optimize

BASES, SHARINGS = ("sft_merged", "sft_adapter"), ("one_base", "separate_copies")


def modeling(**changes: Any) -> dict[str, Any]:
    lora = {"rank": LORA.rank, "alpha": LORA.alpha, "targets": LORA.targets}
    return {
        "base_model": "pretrain", "revision": None, "quantization": "none", "dtype": "float32", "lora": lora,
        "embedding": "as_saved",
        "gradient_checkpointing": False, "optimizer": "adam", "rl_base": "sft_merged", "sharing": "one_base",
        "sharding": "none", **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Start:
    """A base, an SFT adapter that changes it, the merged model, and a reward model on that."""
    folder = tmp_path_factory.mktemp("start")
    paths = {name: str(folder / name) for name in ("base_model", "sft_adapter", "sft_merged_model", "reward")}
    plain = tiny_gemma(SHAPE, len(chat().tokenizer), 0)
    SavedModel(plain, chat().tokenizer).save_pretrained(paths["base_model"])
    sft = SharedBase(plain.eval().requires_grad_(False), LORA, 0)
    sft.add("policy")
    disturb(sft, "policy", 0.15)
    saved_adapter(sft, "policy", paths["base_model"]).save_pretrained(paths["sft_adapter"])
    SavedModel(sft.merged("policy", torch.float32), chat().tokenizer).save_pretrained(paths["sft_merged_model"])
    reward = SharedBase(sft.merged("policy", torch.float32), LORA, 0)
    reward.add("reward")
    disturb(reward, "reward", 0.1)
    saved_adapter(reward, "reward", paths["sft_merged_model"]).save_pretrained(paths["reward"])
    return Start(paths["sft_merged_model"], paths["base_model"], paths["sft_adapter"])


def opened(start: Start, **changes: Any) -> Any:
    model, _ = open_start(start, modeling(**changes), torch.device("cpu"), 0)
    model.add("policy")
    load_role(model, "reward", start.sft_adapter.replace("sft_adapter", "reward"), start.sft_merged_model)
    model.add("critic", zero_head=True)
    return model


def logprobs(model: Any, role: Any) -> torch.Tensor:
    with model.role(role):
        return model.logprobs(batch(), 1.0)[0]


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("rl_base", BASES)
def test_the_policy_starts_exactly_at_the_reference(start: Start, rl_base: str, sharing: str) -> None:
    model = opened(start, rl_base=rl_base, sharing=sharing)
    assert torch.equal(logprobs(model, "policy"), logprobs(model, "reference"))
    base, _ = open_start(replace(start, sft_merged_model=start.base_model), modeling(), torch.device("cpu"), 0)
    assert not torch.allclose(logprobs(model, "reference"), logprobs(base, "reference"), atol=1e-2)


def test_both_bases_are_the_same_functions(start: Start) -> None:
    merged, chained = opened(start), opened(start, rl_base="sft_adapter")
    torch.testing.assert_close(logprobs(chained, "policy"), logprobs(merged, "policy"), atol=1e-4, rtol=0)
    found = []
    for model in (merged, chained):
        with model.role("reward"):
            found.append(model.scores(batch()))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    assert float(found[0].std()) > 1e-2


@pytest.mark.parametrize("rl_base", BASES)
def test_training_gives_the_same_numbers_on_one_base_and_on_four(start: Start, rl_base: str) -> None:
    found = []
    for sharing in SHARINGS:
        model = opened(start, rl_base=rl_base, sharing=sharing)
        before = {key: value.clone() for key, value in model.holder("reference").model.state_dict().items()}
        records = list(optimize(replace(run("ppo", shared_changes={"num_iterations": 1}), model=model)))
        assert records[0].metrics["eval/kl_to_reference"] == 0
        assert records[1].metrics["eval/kl_to_reference"] != 0
        assert records[1].metrics["value/grad_norm"] > 0
        after = model.holder("reference").model.state_dict()
        changed = {key for key in before if not torch.equal(after[key], before[key])}
        assert all(".policy." in key or ".critic." in key for key in changed)
        assert isinstance(model, SeparateCopies) is (sharing == "separate_copies")
        found.append([record.metrics for record in records])
    assert found[0] == found[1]


def test_copies_hold_a_base_each_and_refuse_a_switch(start: Start) -> None:
    model = opened(start, sharing="separate_copies")
    bases = [model.holder(role).model for role in ("policy", "reference", "reward", "critic")]
    tables = {one.get_input_embeddings().weight.data_ptr() for one in bases}
    assert len(tables) == 4
    with model.role("policy", train=True), pytest.raises(RuntimeError, match="finish its backward"):
        with model.role("critic"):
            raise AssertionError("entered a role inside a role")
    with pytest.raises(RuntimeError, match="needs a role"):
        model.logprobs(batch(), 1.0)


def test_a_chained_policy_is_an_adapter_of_the_base_alone(start: Start, tmp_path) -> None:
    """What is saved loads with plain PEFT on the model before SFT: the SFT adapter is inside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = opened(start, rl_base="sft_adapter")
    disturb(model, "policy", 0.05)
    saved_adapter(model, "policy", start.base_model, method="grpo").save_pretrained(str(tmp_path))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start.base_model), str(tmp_path)).eval()
    ids = torch.tensor([[*chat().encode_prompt("Name two fruits."), 5, 6]])
    with torch.no_grad(), model.role("policy"):
        torch.testing.assert_close(plain(ids).logits, model.model(ids).logits, atol=1e-5, rtol=0)


REFUSED = [
    ("reward", "base_model", None, r"(?s)was trained on another base .* than .*base_model"),
    ("policy", "sft_merged_model", None, "is that of a reward, not of a policy"),
]


@pytest.mark.parametrize(("role", "base", "method", "message"), REFUSED)
def test_an_adapter_of_something_else_is_refused(start: Start, role, base, method, message) -> None:
    directory = start.sft_adapter.replace("sft_adapter", "reward")
    with pytest.raises(UserError, match=message):
        check_adapter(directory, role, getattr(start, base), method)


def test_an_adapter_of_another_method_is_refused(start: Start, tmp_path) -> None:
    model = opened(start)
    saved_adapter(model, "policy", start.sft_merged_model, method="ppo", seed=1).save_pretrained(str(tmp_path))
    check_adapter(str(tmp_path), "policy", start.sft_merged_model, "ppo")
    with pytest.raises(UserError, match="was trained by ppo, not by grpo"):
        check_adapter(str(tmp_path), "policy", start.sft_merged_model, "grpo")
    with pytest.raises(UserError, match="another base"):
        open_start(replace(start, base_model=start.sft_merged_model), modeling(rl_base="sft_adapter"), "cpu", 0)
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"Cannot read .*provenance\.json"):
        check_adapter(str(tmp_path), "policy", start.sft_merged_model, "ppo")
