"""What the loop hands on: coefficients, prompts, chance, epochs, clipped gradients, scores, values; that it learns."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_policy_optimization import run
from torch import Tensor
from toy import PROMPTS, SHAPE, chat, disturb, settings

from gemma_alignment.modeling.sequences import Sequences
from gemma_alignment.modeling.tiny import tiny_gemma
from gemma_alignment.schemas import Credit, Experience
from gemma_alignment.training.kl_control import KLController
from gemma_alignment.training.policy_evaluation import evaluate_policy
from gemma_alignment.training.policy_optimization import Run, optimize
from gemma_alignment.training.rollout_metrics import explained_variance
from gemma_alignment.training.score_normalization import score_normalizer
from gemma_alignment.training.seeding import generator

COEFS = (0.5, 0.4, 0.3, 0.2)
"""One a phase, and four iterations: each has its own."""


class Watched:
    """A method that notes what it is given; with ``sign=-1`` its advantages are upside down."""

    def __init__(self, method: Any, sign: float = 1.0):
        self._method, self._sign = method, sign
        self.experiences: list[Experience] = []
        self.credit_coefs: list[float] = []
        self.loss_coefs: list[set[float]] = []
        self.rows: list[list[str]] = []
        """Prompt ids in the order of the losses, an iteration each."""
        self.value_gaps: list[list[float]] = []
        """Largest gap between a value of the loss's forward and the sampled one, a forward each, an iteration each."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        self.experiences.append(experience)
        self.credit_coefs.append(kl_coef)
        self.loss_coefs.append(set())
        self.rows.append([])
        self.value_gaps.append([])
        credit = self._method.assign_credit(experience, kl_coef)
        return replace(credit, advantages=self._sign * credit.advantages)

    def policy_loss(self, logprobs: Tensor, micro: Any, normalizer: Any) -> Any:
        self.loss_coefs[-1].add(micro.kl_coef)
        self.rows[-1].extend(micro.prompt_ids)
        return self._method.policy_loss(logprobs, micro, normalizer)

    def value_loss(self, values: Tensor, micro: Any, normalizer: Any) -> Any:
        gap = (values.detach() - micro.values).masked_fill(~micro.response_mask, 0.0)
        self.value_gaps[-1].append(float(gap.abs().max()))
        return self._method.value_loss(values, micro, normalizer)


class NotedController(KLController):
    """Notes what it is fed."""

    def __init__(self) -> None:
        super().__init__(COEFS, 0.5, 8)
        self.fed: list[tuple[float, int, float]] = []

    def update(self, kl: float, n: int, progress: float) -> float:
        self.fed.append((kl, n, progress))
        return super().update(kl, n, progress)


def watched(name: str, shared_changes: dict[str, Any] | None = None, count: int = 16, **changes: Any) -> Run:
    """Four iterations of 8 responses, watched, on ``count`` prompts whose ids name them; two epochs each."""
    one = run(name, shared_changes={"num_iterations": 4, **(shared_changes or {})}, update_epochs=2)
    prompts = [(f"q{i}", PROMPTS[i % len(PROMPTS)]) for i in range(count)]
    given = {"kl_controller": NotedController(), "prompts": prompts, "method": Watched(one.method), **changes}
    return replace(one, **given)


def each_response(experience: Experience, values: Tensor) -> Tensor:
    """The sum of each response's real tokens."""
    return torch.stack([row[real].sum() for row, real in zip(values, experience.response_mask, strict=True)])


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_credit_loss_and_log_share_an_iterations_coefficient_and_the_controller_moves_after_it(name: str) -> None:
    one = watched(name)
    records = list(optimize(one))[1:]
    assert one.method.credit_coefs == list(COEFS)
    assert one.method.loss_coefs == [{coef} for coef in COEFS]
    assert [record.metrics["policy/kl_coef"] for record in records] == list(COEFS)
    by_hand = [float(each_response(e, e.old_logprobs - e.ref_logprobs).mean()) for e in one.method.experiences]
    assert by_hand[0] == 0 and all(kl != 0 for kl in by_hand[1:])
    kls, counts, shares = zip(*one.kl_controller.fed, strict=True)
    assert kls == pytest.approx(by_hand, rel=1e-4, abs=1e-6)
    assert counts == (8, 8, 8, 8)
    assert shares == (0.25, 0.5, 0.75, 1.0)


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: steps.append(self))
    one = watched("ppo", {"minibatch_size": 1, "microbatch_size": 1})
    list(optimize(one))
    orders = []
    for experience, rows in zip(one.method.experiences, one.method.rows, strict=True):
        sampled = list(experience.prompt_ids)
        assert len(set(sampled)) == 8 and len(rows) == 16
        for seen in (rows[:8], rows[8:]):
            assert sorted(seen) == sorted(sampled)
            orders.append(tuple(sampled.index(row) for row in seen))
    assert len(set(orders)) == 8
    assert tuple(range(8)) not in orders
    assert len(steps) == 4 * 2 * 8 * 2, "iterations, epochs, minibatches, policy and critic"


def test_a_minibatch_is_one_optimizer_step_however_it_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: steps.append(self))
    list(optimize(watched("grpo", {"minibatch_size": 4, "microbatch_size": 2})))
    assert len(steps) == 4 * 2 * 2


def test_prompts_go_round_before_one_comes_again() -> None:
    one = watched("ppo")
    list(optimize(one))
    first, second, third, fourth = (set(e.prompt_ids) for e in one.method.experiences)
    assert first | second == third | fourth == {f"q{i}" for i in range(16)}
    orders = [e.prompt_ids for e in one.method.experiences]
    assert orders[:2] != orders[2:], "shuffled again in the second round"


def test_every_iteration_samples_with_numbers_of_its_own() -> None:
    """One prompt and a policy that hardly moves: only chance can make the responses differ."""
    one = watched("grpo", {"learning_rate": 1e-12}, count=1)
    list(optimize(one))
    found = [tuple(map(tuple, e.response_tokens.tolist())) for e in one.method.experiences]
    assert len(set(found)) == 4


def test_the_gradient_is_clipped_where_the_optimizer_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, norms, real = 1e-3, [], torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *args: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return real(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    one = watched("ppo", {"max_grad_norm": limit, "num_iterations": 2})
    for record in list(optimize(one))[1:]:
        assert record.metrics["policy/grad_norm"] > 2 * limit
        assert record.metrics["value/grad_norm"] > 2 * limit
    assert len(norms) == 2 * 2 * 2 * 2
    assert norms == pytest.approx([limit] * len(norms), rel=1e-2)


def test_scores_are_in_the_unit_of_the_reward_models_normaliser() -> None:
    one = watched("grpo", {"num_iterations": 1, "missing_eos_penalty": 0.25}, scale=(0.7, 2.0))
    records = list(optimize(one))
    (experience,) = one.method.experiences
    batch = Sequences(
        experience.prompt_tokens, experience.prompt_mask, experience.response_tokens, experience.response_mask
    )
    with one.model.role("reward"):
        outputs = one.model.scores(batch).tolist()
    by_hand = [
        (output - 0.7) / 2.0 - (0.0 if ended else 0.25)
        for output, ended in zip(outputs, experience.ended.tolist(), strict=True)
    ]
    assert experience.raw_scores.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert records[1].metrics["reward/score_mean"] == pytest.approx(sum(by_hand) / 8, abs=1e-5)


def test_the_sampled_values_are_those_of_the_critics_first_forward() -> None:
    one = watched("ppo", {"minibatch_size": 8, "microbatch_size": 8, "critic_learning_rate": 5e-2})
    for role in ("policy", "critic"):
        disturb(one.model, role, 0.1)
    list(optimize(one))
    assert [len(gaps) for gaps in one.method.value_gaps] == [2] * 4
    for first, second in one.method.value_gaps:
        assert first < 1e-5
        assert second > 1e-2


def test_explained_variance_by_hand() -> None:
    one = watched("ppo", {"num_iterations": 2})
    records = list(optimize(one))[1:]
    for record, experience in zip(records, one.method.experiences, strict=True):
        assert record.metrics["value/explained_variance"] == pytest.approx(explained_variance(experience))
        assert record.metrics["value/explained_variance"] < 0.999
    four = Sequences(*(part[:4] for part in (
        experience.prompt_tokens, experience.prompt_mask, experience.response_tokens, experience.response_mask
    )))  # fmt: skip
    made = Experience(
        *four, ended=torch.ones(4).bool(), scores=torch.tensor([0.0, 2.0, 4.0, 6.0]), raw_scores=torch.zeros(4),
        old_logprobs=torch.zeros(four.response_mask.shape), ref_logprobs=torch.zeros(four.response_mask.shape),
        values=torch.zeros(four.response_mask.shape), group_size=1,
    )  # fmt: skip
    assert explained_variance(made) == 0, "a constant explains nothing"
    values = torch.full(four.response_mask.shape, 9.0)
    values[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # the scores' variance is 5; what is left, -1, 0, 1, 2, has 1.25
    assert explained_variance(replace(made, values=values)) == pytest.approx(0.75)
    values[:, 0] = torch.tensor([6.0, 4.0, 2.0, 0.0])
    assert explained_variance(replace(made, values=values)) == pytest.approx(-3)
    assert explained_variance(replace(made, scores=torch.ones(4))) == 0


def test_a_cut_off_response_is_penalised_when_it_is_evaluated_too() -> None:
    one = watched("grpo")
    how = {"settings": settings(max_new_tokens=1), "scale": (0.0, 1.0), "size": 2, "gold": None, "where": "here"}
    free, fined = (
        evaluate_policy(one.model, one.chat, one.held_out, penalty=p, generator=generator(7, "evaluation"), **how)
        for p in (0.0, 1.5)
    )
    assert not any(row["ended"] for row in free[1])
    for before, after in zip(free[1], fined[1], strict=True):
        assert after["reward_model_score"] == pytest.approx(before["reward_model_score"] - 1.5, abs=2e-6)
    assert fined[0]["eval/score_mean"] == pytest.approx(free[0]["eval/score_mean"] - 1.5, abs=2e-6)
    little, much = (next(optimize(watched("grpo", {"missing_eos_penalty": p}))).metrics for p in (1.0, 3.0))
    cut_off = 1 - little["eval/eos_rate"]
    assert cut_off > 0
    assert much["eval/score_mean"] == pytest.approx(little["eval/score_mean"] - 2 * cut_off, abs=1e-5)


def climb(name: str, sign: float) -> tuple[float, float]:
    """Mean score in the first and in the last of 8 iterations, where a score is the share of the planted tokens.

    They are those on one side of a plane through the embeddings, which one direction of the last hidden state
    decides. The tiny model's embeddings are so short that no hidden state gives a token more than a few times its
    uniform share: they are made longer.
    """
    base = tiny_gemma(SHAPE, len(chat().tokenizer), 0)
    embeddings = base.get_output_embeddings().weight
    embeddings.data *= 20
    good = embeddings.data[:, 1] > 0
    one = run(name, base=base, shared_changes={
        "num_iterations": 8, "responses_per_iteration": 32, "minibatch_size": 16, "microbatch_size": 16,
        "learning_rate": 3e-2, "critic_learning_rate": 3e-2, "missing_eos_penalty": 0.0, "eval_every": 8,
    })  # fmt: skip

    def planted(batch: Any) -> Tensor:
        return (good[batch.response_tokens] & batch.response_mask).sum(1) / batch.response_mask.sum(1)

    one.model.scores = planted
    given = {
        "method": Watched(one.method, sign), "kl_controller": KLController((0.001,), 1.0, 32), "gold": None,
        "score_normalizer": score_normalizer("ema", 0.5, 0.05, 0.95),
    }  # fmt: skip
    scores = [record.metrics["reward/score_mean"] for record in list(optimize(replace(one, **given)))[1:]]
    return scores[0], scores[-1]


@pytest.mark.learning
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_loop_raises_a_planted_score_and_upside_down_credit_does_not(name: str) -> None:
    start, end = climb(name, 1.0)
    assert start < 0.2
    assert end > start + 0.5
    start, end = climb(name, -1.0)
    assert end < start + 0.1
