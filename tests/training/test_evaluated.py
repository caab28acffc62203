"""What is measured after a step: a number that is none stops the run, and no null enters the history."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_policy_optimization import adapters, run
from toy import PROMPTS, chat, settings, shared

from gemma_alignment.errors import UserError
from gemma_alignment.pipelines.reward_model.nodes import _normalizer
from gemma_alignment.training import policy_evaluation, rollout_metrics
from gemma_alignment.training.policy_evaluation import HeldOut
from gemma_alignment.training.policy_optimization import Run, optimize
from gemma_alignment.training.preference import margins, train_reward_model
from gemma_alignment.training.supervised import perplexity, train_supervised

NAN, INF = float("nan"), float("inf")
SAID = r"^grpo, evaluation at iteration {at}: {what} is not finite for the prompt {who}\. The weights as they are now"


def watched() -> Run:
    one = run("grpo", shared_changes={"num_iterations": 2})
    chosen = [(chat().encode_prompt(p), chat().encode_response("apple and pear")) for p in PROMPTS[:2]]
    return replace(one, held_out=HeldOut([("p0", PROMPTS[0]), ("p1", PROMPTS[1])], chosen, ["h0", "h1"]))


def spoilt(real: Any, bad: float, after: int) -> Any:
    """A function whose result of row 1 is bad from its call ``after`` on."""
    calls: list[int] = []

    def wrong(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        found = real(*args, **kwargs).clone()
        if len(calls) > after:
            found[1] = bad
        return found

    return wrong


@pytest.mark.parametrize("bad", [NAN, -INF])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(("name", "what", "calls"), [
    ("score", "scores", 1), ("role_logprobs", "logprobs", 2), ("role_logprobs", "ref_logprobs", 2),
])  # fmt: skip
def test_what_an_evaluation_finds_stops_the_run_without_a_record(
    name: str, what: str, calls: int, at: int, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, and after the last one, which no later check would see."""
    after = calls * (at > 0) + (what == "ref_logprobs")
    monkeypatch.setattr(policy_evaluation, name, spoilt(getattr(policy_evaluation, name), bad, after))
    records = []
    with pytest.raises(UserError, match=SAID.format(at=at, what=what, who="p1")):
        for record in optimize(watched()):
            records.append(record.iteration)
    assert records == list(range(at))


@pytest.mark.parametrize(("row", "who"), [(0, "h0"), (1, "h1")])
def test_a_chosen_response_without_a_number_is_named(row: int, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = watched()
    real, wanted = one.model.logprobs, torch.tensor(one.held_out.chosen[row][0])

    def wrong(batch: Any, temperature: float) -> Any:
        found, spread = real(batch, temperature)
        mine = [torch.equal(p[m], wanted) for p, m in zip(batch.prompt_tokens, batch.prompt_mask, strict=True)]
        return found.masked_fill(torch.tensor(mine)[:, None], NAN), spread

    monkeypatch.setattr(one.model, "logprobs", wrong)
    with pytest.raises(UserError, match=f"^here: logprobs of chosen responses is not finite for the prompt {who}"):
        perplexity(one.model, "policy", one.held_out.chosen, 0, 4, "here", one.held_out.chosen_ids)


def test_a_perplexity_beyond_every_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(("policy",))
    chosen = [(chat().encode_prompt(PROMPTS[0]), chat().encode_response("apple and pear"))]
    monkeypatch.setattr(model, "logprobs", lambda batch, _: (torch.full(batch.response_mask.shape, -800.0), None))
    with pytest.raises(UserError, match=r"^SFT, after: perplexity is inf\."):
        perplexity(model, "policy", chosen, 0, 4, "SFT, after")


def test_any_other_metric_without_a_number_stops_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_metrics, "explained_variance", lambda experience: NAN)
    records = []
    with pytest.raises(UserError, match=r"^ppo, iteration 1: value/explained_variance is nan\."):
        for record in optimize(run("ppo")):
            records.append(record.iteration)
    assert records == [0]


def test_a_gold_score_before_the_first_step_is_checked() -> None:
    one = replace(run("grpo"), gold=lambda prompt, response: NAN)
    with pytest.raises(UserError, match=r"^grpo, iteration 0: eval/gold_mean is nan"):
        next(optimize(one))


TRAINING = SimpleNamespace(
    learning_rate=1e-3, epochs=1, batch_size=2, microbatch_size=1, max_grad_norm=1.0, log_every=1, warmup_share=0.0
)
PAIRS = [
    (chat().encode_prompt(p), chat().encode_response("apple"), chat().encode_response("two")) for p in PROMPTS[:2]
]


def trainings(model: Any) -> dict[str, Any]:
    """SFT and reward model on two rows, "x" and "y"."""
    examples = [(prompt, chosen) for prompt, chosen, _ in PAIRS]
    return {
        "SFT": lambda: train_supervised(model, examples, TRAINING, 0, 1, ids=("x", "y")),
        "Reward model": lambda: train_reward_model(model, PAIRS, TRAINING, 0, 1, ids=("x", "y")),
    }


@pytest.mark.parametrize("what", ["SFT", "Reward model"])
@pytest.mark.parametrize("row", [0, 1])
def test_sft_and_reward_model_name_the_row_whose_output_is_bad(
    what: str, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared(("policy", "reward"))
    before = adapters(model)
    real, prompt = model._hidden, torch.tensor(PAIRS[row][0])

    def wrong(batch: Any, wanted: torch.Tensor) -> Any:
        mine = [torch.equal(p[m], prompt) for p, m in zip(batch.prompt_tokens, batch.prompt_mask, strict=True)]
        return real(batch, wanted).masked_fill(torch.tensor(mine)[wanted.nonzero()[:, 0], None], NAN)

    monkeypatch.setattr(model, "_hidden", wrong)
    output = "logprobs" if what == "SFT" else "scores of chosen responses"
    with pytest.raises(UserError, match=rf"^{what}, step 1: {output} is not finite for the prompt {'xy'[row]}\."):
        list(trainings(model)[what]())
    assert all(torch.equal(value, before[key]) for key, value in adapters(model).items())


@pytest.mark.parametrize(("what", "role"), [("SFT", "policy"), ("Reward model", "reward")])
def test_sft_and_reward_model_name_the_rows_of_a_bad_gradient(what: str, role: str) -> None:
    model = shared(("policy", "reward"))
    name, parameter = next(iter(model.named_parameters_of(role).items()))
    parameter.requires_grad_(True).register_hook(lambda gradient: gradient * NAN)
    with pytest.raises(UserError, match=rf"^{what}, step 1, prompts [xy], [xy]: the gradient of {re.escape(name)} is"):
        list(trainings(model)[what]())


def test_a_reward_model_without_a_number_gets_neither_accuracy_nor_normaliser() -> None:
    """A margin that is no number is not above 0, and the larger of 1e-6 and NaN is 1e-6: neither would be seen."""
    model = shared(("reward",))
    with torch.no_grad():
        model.heads["reward"].bias.fill_(NAN)
    with pytest.raises(UserError, match=r"^Reward model, held-out pairs: margin is not finite for the prompts x, y\."):
        margins(model, PAIRS, 0, 2, ("x", "y"))
    rows = [{"prompt_id": f"p{i}", "prompt": text} for i, text in enumerate(PROMPTS[:2])]
    how = SimpleNamespace(normalizer_prompts=2, microbatch_size=2)
    with pytest.raises(UserError, match=r"^Reward model, normaliser: scores is not finite for the prompts p0, p1\."):
        _normalizer(model, chat(), rows, how, settings(), 1)


@pytest.mark.parametrize("agrees", [True, False])
def test_a_reward_model_that_goes_on_computes_its_states_the_first_runs_way(agrees: bool) -> None:
    single = SimpleNamespace(**{**vars(TRAINING), "batch_size": 1})
    model, again = shared(("reward",)), shared(("reward",))
    model.packing.agrees = agrees
    first, second = train_reward_model(model, PAIRS, single, 0, 1)
    again.packing.agrees = not agrees
    (rest,) = train_reward_model(again, PAIRS, single, 0, 1, first.state)
    assert rest.metrics == second.metrics
    assert again.packing.agrees is agrees


def test_a_state_of_an_older_version_is_refused() -> None:
    state: Any = next(optimize(run("grpo"))).state
    numbers = {key: value for key, value in state.numbers.items() if key != "packing"}
    with pytest.raises(UserError, match="says nothing of packing: it was written by another version"):
        next(optimize(run("grpo"), replace(state, numbers=numbers)))
