"""Numbers recorded from other people's implementations, run in float64 on the inputs below.

None of them is a dependency, none of their code stands here; where one is wrong or differs, the test
says how. Recorded from

* torchtune 0.6.1: ``torchtune/rlhf/rewards.py``, ``torchtune/rlhf/loss/ppo.py``;
* trl 0.19.1 (the last line with PPO): ``trl/trainer/ppo_trainer.py`` lines 509-535,
  ``trl/trainer/rloo_trainer.py`` lines 434-437, ``trl/core.py``;
* trl 1.16.0: ``trl/trainer/grpo_trainer.py`` lines 2764-2787 and 3095-3172, ``trl/trainer/utils.py``,
  ``trl/trainer/reward_trainer.py`` lines 788-792;
* verl 0.9.1: ``verl/trainer/ppo/core_algos.py`` lines 216-264 (GAE), 268-332 (GRPO), 588-637 (RLOO), 1140-1207
  (aggregation), 1286-1377 (policy loss), 2125-2185 (value loss), 2216-2250 (KL).

Every function was taken out of its wheel and run on these inputs again on 2026-11-26 (torch 2.13): the numbers
are those below, the two that stand for torchtune's and trl's whitening to 2e-8.
"""

import pytest
import torch

from gemma_alignment.objectives.advantages import gae, group_centered, group_zscore, leave_one_out
from gemma_alignment.objectives.kl import k1, k2, k3
from gemma_alignment.objectives.logprobs import entropy, token_logprobs
from gemma_alignment.objectives.losses import (
    bradley_terry,
    clipped_surrogate,
    clipped_value_error,
    probability_ratio,
)
from gemma_alignment.objectives.masking import masked_mean, whiten
from gemma_alignment.objectives.reductions import constant_length, sequence_mean, token_mean
from gemma_alignment.objectives.rewards import token_rewards

EXACT = 1e-7  # the peers add 1e-8 to some divisors


def _matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
NEW = _matrix([-1.2, -0.4, -2.1, -0.9], [-0.3, -1.8, -0.5, -0.7])
OLD = _matrix([-1.0, -0.9, -2.0, -0.5], [-0.8, -1.7, -0.5, -0.7])
REF = _matrix([-1.1, -0.6, -1.5, -1.0], [-0.4, -1.2, -0.6, -0.2])
OLD_VALUES = _matrix([0.3, -0.2, 0.5, 0.1], [-0.4, 0.6, 0.7, -0.9])
SCORES = torch.tensor([1.3, -0.8], dtype=torch.float64)
GROUPED = torch.tensor([0.2, 1.5, -0.7, 0.9, 0.1, 2.0], dtype=torch.float64)
ADVANTAGES = _matrix([1.0, -0.5, 2.0, -1.5], [0.8, -0.3, 0.0, 0.0])
RAW = _matrix([0.2422112, 1.01696, 0.468, 1.15], [0.008, -1.35, 0.0, 0.0])


def _near(found, expected, tolerance=EXACT):
    return torch.allclose(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=tolerance)


def test_token_rewards():
    """trl and torchtune agree on real tokens; torchtune leaves a penalty on padding, trl fills it first."""
    found = token_rewards(SCORES, OLD, REF, MASK, 0.1)
    assert _near(found, [[-0.01, 0.03, 0.05, 1.25], [0.04, -0.75, 0.0, 0.0]])


def test_gae():
    """Both scan over padding with rewards and values of 0 there, which is the same."""
    rewards = token_rewards(SCORES, OLD, REF, MASK, 0.1)
    advantages, returns = gae(rewards, OLD_VALUES, MASK, 0.9, 0.8)
    assert _near(advantages, RAW)
    assert _near(returns, [[0.5422112, 0.81696, 0.968, 1.25], [-0.392, -0.75, 0.0, 0.0]])


def test_whiten_differs_by_bessels_correction():
    """trl and torchtune (``shift_mean=False``) divide by the unbiased variance: √(5/6) of ours with 6 tokens."""
    theirs = [
        [-0.01514094288037053, 0.8441890527805782, 0.2352977651554351, 0.9917533505539112],
        [-0.274921544644124, -1.7811776809654305, 0.0, 0.0],
    ]
    assert _near(whiten(RAW, MASK) * (5 / 6) ** 0.5, theirs)


def test_torchtune_whiten_keeps_the_mean_by_default():
    """Wrong there: ``shift_mean`` is inverted, so its PPO recipe trains on advantages that are not centred."""
    theirs = _matrix(
        [0.24072092381771035, 1.100050920337989, 0.49115963210395464, 1.2476152182588864],
        [-0.019059678205823716, -1.5253158160333862, 0.0, 0.0],
    )
    assert abs(theirs[MASK].mean()) > 0.25
    assert abs(whiten(RAW, MASK)[MASK].mean()) < 1e-12
    kept = (whiten(RAW, MASK) * (5 / 6) ** 0.5 + masked_mean(RAW, MASK)) * MASK
    assert _near(kept, theirs)


def test_ppo_loss_and_its_gradients():
    """torchtune's ``PPOLoss`` with ε = .2, value clip .2, value coefficient .5."""
    new = NEW.clone().requires_grad_()
    values = _matrix([0.7, -0.1, 0.2, 0.4], [-0.5, 0.1, 0.3, 0.3]).requires_grad_()
    returns = _matrix([0.9, 0.3, -0.4, 1.0], [0.2, -0.6, 0.0, 0.0])
    policy = token_mean(clipped_surrogate(new, OLD, ADVANTAGES, 0.2), MASK, 6)
    value = token_mean(clipped_value_error(values, OLD_VALUES, returns, 0.2), MASK, 6)
    (policy + 0.5 * value).backward()
    assert policy.item() == pytest.approx(-0.21543228770578765, abs=EXACT)
    assert value.item() == pytest.approx(0.23249999961249998, abs=EXACT)
    assert (policy + 0.5 * value).item() == pytest.approx(-0.09918228789953766, abs=EXACT)
    slopes = [-0.13645512528557177, 0.1373934389960216, -0.3016124721759657, 0.0, 0.0, 0.04524187082639485]
    assert _near(new.grad[MASK], slopes)
    assert _near(values.grad, [[0.0, -0.03333333327777778, 0.0, 0.0], [-0.058333333236111104, 0.0, 0.0, 0.0]])


def test_torchtune_ratio_counts_padding():
    """Wrong there: ``ratios.mean()`` over all 8 positions, 2 of them padding with a ratio of 1."""
    ratio = probability_ratio(NEW, OLD)
    assert ratio.mean().item() == pytest.approx(1.0745210220732244, abs=EXACT)
    assert masked_mean(ratio, MASK).item() == pytest.approx(1.0993613627642993, abs=EXACT)


def test_group_credit():
    """trl's ``scale_rewards="none"`` and ``"group"`` (ddof 1, + 1e-4)."""
    centred = [-0.1333333333333333, 1.1666666666666667, -1.0333333333333332, -0.1, -0.9, 1.0]
    scaled = [
        *(-0.12053885673855237, 1.0547149964623337, -0.934176139723781),
        *(-0.10481749581304341, -0.9433574623173909, 1.0481749581304343),
    ]
    assert _near(group_centered(GROUPED, 3), centred)
    assert _near(group_zscore(GROUPED, 3), scaled)


def test_leave_one_out():
    """trl keeps response k of all prompts together; here the responses of a prompt are consecutive."""
    assert _near(leave_one_out(GROUPED, 3), [-0.2, 1.75, -1.55, -0.15, -1.35, 1.5])


@pytest.mark.parametrize(
    ("reduce", "divisor", "loss", "gradient"),
    [
        (
            sequence_mean, 2, -0.09980564750341536,
            [
                [-0.12346693119967009, 0.0011329327932626133, -0.14086385520783462, -0.09995324076807063],
                [0.2897157546470729, 0.14807006315141152, 0.0, 0.0],
            ],
        ),
        (
            token_mean, 6, -0.43288067884398457,
            [
                [-0.16462257493289345, 0.0015105770576834838, -0.18781847361044612, -0.13327098769076084],
                [0.19314383643138194, 0.09871337543427436, 0.0, 0.0],
            ],
        ),
        (
            constant_length, 16, -0.16233025456649422,
            [
                [-0.061733465599835044, 0.0005664663966313066, -0.07043192760391731, -0.04997662038403532],
                [0.07242893866176822, 0.03701751578785288, 0.0, 0.0],
            ],
        ),
    ],
    ids=["grpo", "bnpo", "dr_grpo"],
)  # fmt: skip
def test_grpo_loss_and_its_gradient(reduce, divisor, loss, gradient):
    """trl's ``loss_type`` grpo, bnpo and dr_grpo with ε = .2, ε_high = .28, β = .05, longest length 8."""
    new = NEW.clone().requires_grad_()
    advantages = torch.tensor([[1.2], [-0.7]], dtype=torch.float64).expand(2, 4)
    per_token = clipped_surrogate(new, OLD, advantages, 0.2, 0.28) + 0.05 * k3(new, REF)
    found = reduce(per_token, MASK, divisor)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=EXACT)
    assert _near(new.grad, gradient)


def test_logprobs_and_entropy():
    """trl's ``selective_log_softmax`` and ``entropy_from_logits`` at temperature .7."""
    logits = torch.tensor([[[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]], dtype=torch.float64)
    found = token_logprobs(logits, torch.tensor([[1, 0]]), 0.7)
    assert _near(found, [[-0.30525442227415445, -4.302632652123208]])
    assert _near(entropy(logits, 0.7), [[0.7428151258457545, 0.09344884278370506]])


def test_bradley_terry():
    """trl's ``RewardTrainer``, without and with the column ``margin``; it takes the mean over pairs."""
    chosen, rejected, margin = torch.tensor([[1.3, -0.2, 0.4], [-0.5, 0.9, 0.4], [0.25, 0.0, 1.0]], dtype=torch.float64)
    assert bradley_terry(chosen, rejected).mean().item() == pytest.approx(0.7444867024379302, abs=EXACT)
    assert bradley_terry(chosen, rejected, margin).mean().item() == pytest.approx(0.9643578236391169, abs=EXACT)


def test_verl_gae_whitened():
    """verl carries value and advantage over what is masked: at the end of a response that is a value of 0."""
    rewards = token_rewards(SCORES, OLD, REF, MASK, 0.1)
    advantages, returns = gae(rewards, OLD_VALUES, MASK, 0.9, 0.8)
    theirs = [
        [-0.015140942419996445, 0.8441890539570607, 0.23529776582450812, 0.991753351853364],
        [-0.27492154440023375, -1.7811776819767537, 0.0, 0.0],
    ]
    assert _near(whiten(advantages, MASK) * (5 / 6) ** 0.5, theirs), "by the unbiased variance"
    assert _near(returns, [[0.5422112, 0.81696, 0.968, 1.25], [-0.392, -0.75, 0.0, 0.0]])


def test_verl_group_credit():
    """The same as trl's with its ``epsilon`` at 1e-4."""
    centred = [-0.1333333333333333, 1.1666666666666667, -1.0333333333333332, -0.1, -0.9, 1.0]
    scaled = [
        *(-0.12053885673855237, 1.0547149964623337, -0.934176139723781),
        *(-0.10481749581304341, -0.9433574623173909, 1.0481749581304343),
    ]
    assert _near(group_centered(GROUPED, 3), centred)
    assert _near(group_zscore(GROUPED, 3), scaled)
    assert _near(leave_one_out(GROUPED, 3), [-0.2, 1.75, -1.55, -0.15, -1.35, 1.5])


def test_verl_takes_the_raw_score_of_a_group_of_one():
    """Wrong there: mean 0 and sd 1 are put in, so a score of .7 becomes an advantage of .7, without a baseline."""
    theirs = 0.6999993205076975
    assert theirs == pytest.approx(0.7 / (1 + 1e-6), abs=1e-6)
    with pytest.raises(ValueError, match="group_size is 1"):
        group_centered(torch.tensor([0.7], dtype=torch.float64), 1)


@pytest.mark.parametrize(
    ("reduce", "divisor", "loss", "gradient"),
    [
        (
            token_mean, 6, -0.22609895473150812,
            [-0.136455125512997, 0.13739343922501068, -0.30161247267865315, 0.0, 0.0, 0.04524187090179797],
        ),
        (
            sequence_mean, 2, -0.2636428117428326,
            [-0.10234134387889439, 0.10304507916114532, -0.2262093539434665, 0.0, 0.0, 0.06786280601338293],
        ),
        (
            constant_length, 16, -0.08478710802431555,
            [-0.05117067206737387, 0.051522539709379006, -0.11310467725449494, 0.0, 0.0, 0.01696570158817424],
        ),
    ],
    ids=["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"],
)  # fmt: skip
def test_verl_policy_loss_and_its_gradient(reduce, divisor, loss, gradient):
    """``compute_policy_loss_vanilla`` with ε = .2, ε_high = .28 under three aggregations, longest length 8."""
    new = NEW.clone().requires_grad_()
    found = reduce(clipped_surrogate(new, OLD, ADVANTAGES, 0.2, 0.28), MASK, divisor)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=EXACT)
    assert _near(new.grad[MASK], gradient)


def test_verl_bounds_the_loss_of_a_bad_token_that_became_likely():
    """Different there, by default: at a ratio of 5 and A = −1 its loss is 3 ("dual clip") and has no gradient."""
    new = torch.tensor([5.0], dtype=torch.float64).log().requires_grad_()
    found = clipped_surrogate(new, torch.zeros(1).double(), torch.tensor([-1.0]).double(), 0.2)
    found.sum().backward()
    theirs = 3.0
    assert found.item() == pytest.approx(5.0) != theirs
    assert new.grad.item() == pytest.approx(5.0), "as in the paper: the policy is pulled back"


def test_verl_value_loss_and_its_gradient():
    """The same value as torchtune's."""
    values = _matrix([0.7, -0.1, 0.2, 0.4], [-0.5, 0.1, 0.3, 0.3]).requires_grad_()
    returns = _matrix([0.9, 0.3, -0.4, 1.0], [0.2, -0.6, 0.0, 0.0])
    found = token_mean(clipped_value_error(values, OLD_VALUES, returns, 0.2), MASK, 6)
    found.backward()
    assert found.item() == pytest.approx(0.23249999999999996, abs=EXACT)
    assert _near(values.grad, [[0.0, -0.06666666666666667, 0.0, 0.0], [-0.11666666666666665, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("estimator", "theirs"),
    [
        (k1, [-0.1, 0.2, -0.6, 0.1, 0.1, -0.6]),
        (k2, [0.005, 0.02, 0.18, 0.005, 0.005, 0.18]),
        (
            k3,
            [
                *(0.005170918075647624, 0.018730753077981888, 0.22211880039050902),
                *(0.004837418035959606, 0.004837418035959606, 0.22211880039050902),
            ],
        ),
    ],
    ids=["k1", "k2", "k3"],
)
def test_verl_kl_estimators(estimator, theirs):
    assert _near(estimator(NEW, REF)[MASK], theirs)


def test_verl_clamps_k3():
    """Different there: above 10 nats the penalty no longer grows, and has no gradient."""
    theirs = 10.0
    assert k3(_matrix([-20.0]), _matrix([0.0])).item() > 1e8 > theirs
