"""A vocabulary of 256,000: the logits of all positions never exist, and nothing else changes by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modeling.test_roles import batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy import LORA, PROMPTS, SHAPE, SharedBase, chat, disturb, shared, tiny_gemma
from training.test_policy_optimization import run

from gemma_alignment.modeling import heads
from gemma_alignment.modeling.embedding import Int8Head, Int8Table, shrink_embedding
from gemma_alignment.modeling.gemma import is_plain
from gemma_alignment.modeling.heads import LOGITS, POSITIONS, chunked_logprobs, positions_at_a_time
from gemma_alignment.modeling.sequences import sequences
from gemma_alignment.objectives.logprobs import entropy, token_logprobs
from gemma_alignment.pipelines.sft.nodes import _largest_gap
from gemma_alignment.training import preference, pretraining, supervised
from gemma_alignment.training.policy_optimization import optimize

V, WIDE = 420, 256_000
ROWS = 40
"""More rows of logits than this are too many here: as many as are decoded side by side, and as d."""
TRAINING = SimpleNamespace(
    learning_rate=1e-3, batch_size=4, microbatch_size=4, epochs=1, warmup_share=0.0, max_grad_norm=1.0, log_every=1
)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_give_the_naive_value_and_gradient_at_256000(temperature: float, frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDE, 16, generator=generator) / 4
    start = torch.randn(70, 16, generator=generator)
    tokens = torch.randint(0, WIDE, (70,), generator=generator)
    chosen = torch.randn(70, generator=generator)
    found = []
    for naive in (True, False):
        hidden = start.clone().requires_grad_(True)
        if naive:
            logits = hidden @ weight.T
            values = token_logprobs(logits[None], tokens[None], temperature)[0]
            spread = entropy(logits.detach()[None], temperature)[0]
        else:
            size = positions_at_a_time(WIDE)
            values, spread = chunked_logprobs(hidden, tokens, lambda h: h @ weight.T, temperature, size, frozen)
        (values * chosen).sum().backward()
        found.append((values.detach(), spread, hidden.grad))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1][2], found[0][2], atol=1e-5, rtol=0)
    assert float(found[0][2].abs().max()) > 0.1


def test_how_many_positions_exist_at_a_time() -> None:
    assert positions_at_a_time(1000) == POSITIONS
    assert positions_at_a_time(WIDE) * WIDE <= LOGITS < (positions_at_a_time(WIDE) + 1) * WIDE
    assert positions_at_a_time(10 * LOGITS) == 1


class Rows(TorchDispatchMode):
    """Notes the most rows of any tensor whose last dimension is the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.dim() and one.shape[-1] == V:
                self.most = max(self.most, one.untyped_storage().nbytes() // one.element_size() // V)  # not of views
        return out


@contextmanager
def few_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rows]:
    monkeypatch.setattr(heads, "LOGITS", 7 * V)
    monkeypatch.setattr(pretraining, "LOGITS", 7 * V)
    with Rows() as rows:
        yield rows
    assert 0 < rows.most <= ROWS, rows.most


def pairs() -> list[Any]:
    say = chat().encode_response
    return [(chat().encode_prompt(p), say("apple and pear, two fruits"), say("a bird")) for p in PROMPTS]


def examples() -> list[Any]:
    return [(prompt, chosen * 4) for prompt, chosen, _ in pairs()]


def test_the_vocabulary_of_these_tests_is_told_from_every_other_size() -> None:
    assert len(chat().tokenizer) == V
    assert sum(len(response) for _, response in examples()) > 2 * ROWS
    assert SHAPE.hidden_size < ROWS and SHAPE.max_positions < V


def test_sft_reward_model_and_their_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared()
    with few_rows(monkeypatch):
        list(supervised.train_supervised(model, examples(), TRAINING, 0, 1))
        supervised.perplexity(model, "policy", examples(), 0, 4, "here")
    with Rows() as rows:
        list(preference.train_reward_model(model, pairs(), TRAINING, 0, 1))
        preference.margins(model, pairs(), 0, 4)
    assert rows.most == 0, "a score needs no logits"


def test_sampling_evaluation_and_updates_of_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    one = run("ppo", shared_changes={"num_iterations": 1, "responses_per_iteration": 16, "minibatch_size": 16,
                                     "microbatch_size": 16})  # fmt: skip
    one.rollout.max_new_tokens = 8
    with few_rows(monkeypatch):
        records = list(optimize(one))
    assert records[1].metrics["budget/tokens_generated"] > 2 * ROWS


def test_pretraining_and_the_comparison_of_merged_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(("policy",))
    disturb(model, "policy", 0.1)
    dialogues = [[*prompt, *response] for prompt, response in examples()]
    plain = tiny_gemma(SHAPE, V, 0)
    settings = SimpleNamespace(learning_rate=1e-3, steps=1, warmup_share=0.0, log_every=1)
    with few_rows(monkeypatch):
        list(pretraining.pretrain(plain, lambda step: dialogues, settings, 0))
        with model.role("policy"):
            states = model.response_states(batch())
        assert 0 <= _largest_gap(model.merged("policy", torch.float32), [batch()], model, [states]) < 1e-4


def test_pretraining_in_parts_is_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(learning_rate=1e-3, steps=2, warmup_share=0.0, log_every=1)
    found = []
    for size in (LOGITS, 7 * V):
        monkeypatch.setattr(heads, "LOGITS", size)
        monkeypatch.setattr(pretraining, "LOGITS", size)
        model = tiny_gemma(SHAPE, V, 0)
        records = pretraining.pretrain(model, lambda step: [[*p, *r] for p, r in examples()], settings, 0)
        found.append([record.metrics["pretraining/loss"] for record in records])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_planted_logits_of_every_position_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "positions_at_a_time", lambda vocabulary: 10**6)
    monkeypatch.setattr("gemma_alignment.modeling.roles.positions_at_a_time", lambda vocabulary: 10**6)
    with Rows() as rows:
        supervised.perplexity(shared(), "policy", examples(), 0, 4, "here")
    assert rows.most > 2 * ROWS


def test_the_table_stays_in_half_precision_and_adapters_in_single() -> None:
    base = tiny_gemma(SHAPE, V, 0).bfloat16().eval().requires_grad_(False)
    model = SharedBase(base, LORA, 0, gradient_checkpointing=True)
    model.add("policy")
    with model.role("policy", train=True):
        model.logprobs(batch(), 1.0)[0].sum().backward()
    assert model.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.model.get_output_embeddings().weight is model.model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters_of("policy")} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters_of("policy"))


def test_a_table_in_8_bits_is_the_table_within_its_rounding_and_halves_bf16() -> None:
    base = tiny_gemma(SHAPE, V, 0).eval().requires_grad_(False)
    before = base.get_input_embeddings().weight.clone()
    model = SharedBase(base, LORA, 0)
    model.add("policy")
    plain = role_of(model)
    shrink_embedding(base)
    table = base.get_input_embeddings()
    assert isinstance(table, Int8Table) and isinstance(base.get_output_embeddings(), Int8Head)
    assert float((table.weight - before).abs().max()) <= float((before.abs().amax(1) / 127).max()) / 2 + 1e-7
    assert table.codes.element_size() * 2 == before.bfloat16().element_size()
    small = role_of(model)
    assert 0 < float((small - plain).abs().mean()) < 0.05
    merged = SharedBase(model.merged("policy", torch.float32), None, 0)
    with merged.role("reference"):
        torch.testing.assert_close(merged.logprobs(batch(), 1.0)[0], small, atol=1e-4, rtol=0)


def role_of(model: SharedBase) -> Tensor:
    with model.role("policy"):
        return model.logprobs(batch(), 1.0)[0]


def test_a_table_in_8_bits_is_dequantised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once it would pass through fp32, twice: 4 GB for the table of Gemma-2B."""
    monkeypatch.setattr("gemma_alignment.modeling.embedding.ROWS", 100)
    table = Int8Table(torch.randn(250, 8, generator=torch.Generator().manual_seed(1)).bfloat16())
    taken = []
    rows = table.rows
    monkeypatch.setattr(table, "rows", lambda which: taken.append(which) or rows(which))
    assert table.weight.shape == (250, 8) and table.weight.dtype == torch.bfloat16
    assert torch.equal(table.weight, rows(slice(None)))
    assert {one.stop - one.start for one in taken} == {100, 50}


def test_the_gradient_through_a_table_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_alignment.modeling.embedding.ROWS", 100)
    table = Int8Table(torch.randn(V, 8, generator=torch.Generator().manual_seed(1)))
    start = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    found = []
    for head in (Int8Head(table), lambda hidden: hidden @ table.weight.T):
        hidden = start.clone().requires_grad_(True)
        logits = head(hidden)
        logits.log_softmax(-1)[:, 3].sum().backward()
        found.append((logits.detach(), hidden.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_pass_takes_the_rows_that_it_reads_and_not_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(("policy",))
    shrink_embedding(model.model)
    assert is_plain(model.model)
    monkeypatch.setattr(Int8Table, "weight", property(lambda table: pytest.fail("the whole table is dequantised")))
    role_of(model)


def test_a_run_trains_with_its_table_in_8_bits() -> None:
    one = run("grpo", shared_changes={"num_iterations": 1})
    model = shared(("policy", "reward"))
    shrink_embedding(model.model)
    records = list(optimize(replace(one, model=model)))
    assert records[0].metrics["eval/kl_to_reference"] == 0
    assert records[1].metrics["policy/grad_norm"] > 0


def test_the_largest_gap_is_that_of_all_responses() -> None:
    """One at a time, in whatever order: as of all in one batch, but for rounding."""
    model = shared(("policy",))
    merged = model.merged("policy", torch.float32)
    disturb(model, "policy", 0.1)
    answers = ("apple and pear", "a", "two birds now")
    parts = [
        sequences([chat().encode_prompt(prompt)], [chat().encode_response(answer)], 0)
        for prompt, answer in zip(PROMPTS, answers, strict=False)
    ]
    with model.role("policy"):
        states, whole = [model.response_states(one) for one in parts], model.response_states(batch())
    each = [_largest_gap(merged, [one], model, [state]) for one, state in zip(parts, states, strict=True)]
    assert len(set(each)) == 3 and min(each) > 1e-3
    assert _largest_gap(merged, parts, model, states) == max(each)
    assert _largest_gap(merged, parts[::-1], model, states[::-1]) == max(each)
    assert _largest_gap(merged, [batch()], model, [whole]) == pytest.approx(max(each), rel=1e-3)


def test_a_merged_model_that_is_not_finite_is_noticed() -> None:
    model = shared(("policy",))
    merged = model.merged("policy", torch.float32)
    merged.model.norm.weight.fill_(float("nan"))
    with model.role("policy"):
        states = model.response_states(batch())
    with pytest.raises(ValueError, match="not finite"):
        _largest_gap(merged, [batch()], model, [states])


def test_sft_measures_what_a_table_in_8_bits_costs(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    from modeling.test_rl_base import modeling

    from gemma_alignment.datasets.checkpoint_store import CheckpointStore
    from gemma_alignment.datasets.run_log import RunLog
    from gemma_alignment.modeling.saving import SavedModel
    from gemma_alignment.pipelines.sft.nodes import train_sft

    SavedModel(tiny_gemma(SHAPE, V, 0), chat().tokenizer).save_pretrained(str(tmp_path / "base"))
    chosen = [{"role": "assistant", "content": "apple and pear"}]
    rows = [{"prompt_id": f"p{i}", "prompt": p, "chosen": chosen} for i, p in enumerate(PROMPTS)]
    settings = {
        **vars(TRAINING), "chosen_share": 1.0, "genrm_share": 0.0, "eval_pairs": 4, "checkpoint_every": 1,
        "checkpoints_kept": 1,
    }  # fmt: skip
    found = {}
    for embedding in ("as_saved", "int8"):
        with caplog.at_level("INFO"):
            _, history = train_sft(
                str(tmp_path / "base"), rows, rows, [], modeling(embedding=embedding),
                {"device": "cpu", "threads": 1}, settings, 1, RunLog(tmp_path / embedding),
                CheckpointStore(tmp_path / embedding / "checkpoints", False),
            )  # fmt: skip
        found[embedding] = history[-1]
    plain, small = found["as_saved"], found["int8"]
    assert "sft/perplexity_embedding_as_saved" not in plain
    assert small["sft/perplexity_embedding_as_saved"] == pytest.approx(plain["sft/perplexity_before"], rel=1e-5)
    cost = small["sft/perplexity_before"] - small["sft/perplexity_embedding_as_saved"]
    assert cost != 0 and abs(cost) < 0.05 * plain["sft/perplexity_before"]
    assert "with the embedding in 8 bits" in caplog.text
