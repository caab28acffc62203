"""What a stage asks for and cannot have: groups that do not fill the budget, a GPU that is not there."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.parameters.training import PolicyOptimizationParameters


def check_budget(method: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a method whose groups do not fill an iteration exactly.

    Raises:
        UserError: with the two numbers.
    """
    shared = build(PolicyOptimizationParameters, parameters["policy_optimization"], "policy_optimization")
    try:
        shared.prompts_per_iteration(parameters[method]["group_size"])
    except ValueError as error:
        raise UserError(f"{method}: {error}") from error


def check_device(parameters: Mapping[str, Any]) -> None:
    """Refuse a stage that must compute on a GPU where there is none; torch is imported only to find out.

    Raises:
        UserError: with the setting.
    """
    if parameters.get("runtime", {}).get("device") == "cuda":
        from gemma_alignment.modeling.loading import choose_device

        choose_device("cuda")
