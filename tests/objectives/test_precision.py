"""Float64 beside fp32 and bf16: how far a result may be off, stated for each objective."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gemma_alignment.objectives.advantages import (
    gae,
    group_centered,
    group_scale,
    group_whiten,
    group_zscore,
    leave_one_out,
)
from gemma_alignment.objectives.kl import k1, k2, k3
from gemma_alignment.objectives.logprobs import entropy, logprobs_with_gradient, token_logprobs
from gemma_alignment.objectives.losses import (
    bradley_terry,
    clipped_surrogate,
    clipped_value_error,
    probability_ratio,
)
from gemma_alignment.objectives.masking import last_position, masked_mean, masked_sum, whiten
from gemma_alignment.objectives.precision import at_least_float32
from gemma_alignment.objectives.reductions import constant_length, sequence_mean, token_mean
from gemma_alignment.objectives.rewards import penalised_scores, token_rewards

ROOT = Path(__file__).parents[2]

ROWS, COLUMNS = 12, 512
MASK = torch.arange(COLUMNS) < torch.randint(1, COLUMNS, (ROWS, 1), generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(64, (ROWS, 8), generator=torch.Generator().manual_seed(1))


def _draw(*shape, scale=1.0, shift=0.0, seed=0):
    return shift + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, C = (_draw(ROWS, COLUMNS, scale=0.3, shift=-1.0, seed=seed) for seed in (1, 2, 3))
SCORES, OTHERS = _draw(ROWS, seed=4), _draw(ROWS, seed=5)
LOGITS = _draw(ROWS, 8, 64, scale=5.0, seed=6)

# name -> (function, its floating-point arguments, bound on the absolute error); docs/implementation_details.md has
# the bounds too
CASES = {
    "masked_sum": (lambda a: masked_sum(a, MASK, dim=1), (A,), 5e-5),
    "masked_mean": (lambda a: masked_mean(a, MASK), (A,), 1e-6),
    "whiten": (lambda a: whiten(a, MASK), (A,), 5e-6),
    "token_logprobs": (lambda x: token_logprobs(x, TOKENS, 0.7), (LOGITS,), 1e-5),
    "entropy": (lambda x: entropy(x, 0.7), (LOGITS,), 1e-5),
    "logprobs_with_gradient": (
        lambda x: torch.cat([part.reshape(ROWS * 8, -1) for part in logprobs_with_gradient(
            x.reshape(ROWS * 8, 64), TOKENS.reshape(-1), 0.7
        )], 1), (LOGITS,), 1e-5,
    ),
    "k1": (k1, (A, B), 1e-6),
    "k2": (k2, (A, B), 1e-6),
    "k3": (k3, (A, B), 1e-6),
    "token_rewards": (lambda s, a, b: token_rewards(s, a, b, MASK, 0.05), (SCORES, A, B), 1e-6),
    "penalised_scores": (lambda s, a, b: penalised_scores(s, a, b, MASK, 0.05), (SCORES, A, B), 1e-5),
    "gae, 512 tokens": (lambda r, v: torch.stack(gae(r, v, MASK, 1.0, 0.95)), (A, B), 5e-5),
    "gae, λ = 1": (lambda r, v: torch.stack(gae(r, v, MASK, 1.0, 1.0)), (A, B), 2e-3),
    "group_centered": (lambda s: group_centered(s, 6), (SCORES,), 1e-6),
    "group_scale": (lambda s: group_scale(s, 6), (SCORES,), 1e-6),
    "group_zscore": (lambda s: group_zscore(s, 6), (SCORES,), 1e-6),
    "group_whiten": (lambda a: group_whiten(a, MASK, 6), (A,), 1e-5),
    "leave_one_out": (lambda s: leave_one_out(s, 6), (SCORES,), 1e-6),
    "probability_ratio": (probability_ratio, (A, B), 5e-6),
    "clipped_surrogate": (lambda a, b, c: clipped_surrogate(a, b, c, 0.2), (A, B, C), 5e-6),
    "clipped_value_error": (lambda a, b, c: clipped_value_error(a, b, c, 0.2), (A, B, C), 5e-6),
    "bradley_terry": (bradley_terry, (SCORES, OTHERS), 1e-6),
    "token_mean": (lambda a: token_mean(a, MASK, int(MASK.sum())), (A,), 1e-6),
    "sequence_mean": (lambda a: sequence_mean(a, MASK, ROWS), (A,), 1e-6),
    "constant_length": (lambda a: constant_length(a, MASK, ROWS * COLUMNS), (A,), 1e-6),
}
EXACT = {at_least_float32, last_position}
"""A change of type, and whole numbers: nothing to round."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_against_float64_stays_in_its_bound(name, dtype):
    """The reference computes in float64 on the same rounded numbers: the bound is on the arithmetic alone."""
    function, arguments, bound = CASES[name]
    rounded = [x.to(dtype) for x in arguments]
    found, exact = function(*rounded), function(*(x.double() for x in rounded))
    assert found.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert (found.double() - exact).abs().max() < bound


@pytest.mark.parametrize(
    "name", ["k1", "k2", "k3", "clipped_surrogate", "clipped_value_error", "bradley_terry", "entropy", "whiten"]
)
def test_gradients_agree_with_finite_differences(name):
    """In float64; none of the drawn numbers stands on the kink of a clip."""
    function, arguments, _ = CASES[name]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in arguments], fast_mode=True)


def test_every_objective_has_a_bound_and_the_document_states_it():
    public = set()
    for path in (ROOT / "src/gemma_alignment/objectives").glob("*.py"):
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        public |= {n.name for n in nodes if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}
    assert {name.partition(",")[0] for name in CASES} == public - {function.__name__ for function in EXACT}
    text = (ROOT / "docs/implementation_details.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| ([\w, =λ]+) \| ([\de-]+) \|$", text, re.MULTILINE))
    assert {name: float(bound) for name, bound in stated.items()} == {name: case[2] for name, case in CASES.items()}


def test_shapes_are_checked_under_pytest_alone():
    """In a run nothing is checked and nothing costs: (B,) advantages broadcast, and no type checker is loaded."""
    program = (
        "import sys, torch\n"
        "from gemma_alignment.objectives.losses import clipped_surrogate\n"
        "found = clipped_surrogate(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3), 0.2)\n"
        "print(tuple(found.shape), 'beartype' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 3) False\n"


def test_at_least_float32():
    assert at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert at_least_float32(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    assert at_least_float32(torch.tensor([1, 2])).dtype == torch.float32
