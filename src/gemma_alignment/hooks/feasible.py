"""What a stage asks for and cannot have: groups that do not fill the budget, a GPU or processes that are not there."""

from collections.abc import Iterable, Mapping
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.parameters.training import PolicyOptimizationParameters
from gemma_alignment.pipelines import several
from gemma_alignment.stages import Stage


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


def check_processes(parameters: Mapping[str, Any], processes: int) -> None:
    """Refuse to share out a base where one process alone trains each policy.

    Raises:
        UserError: with the setting.
    """
    if parameters["modeling"]["sharding"] == "base" and processes == 1:
        raise UserError(
            "modeling.sharding is 'base', but one process trains each policy and would hold all of it: ask for more "
            "(kedro study --processes-per-run N, or accelerate launch), or set modeling.sharding=none"
        )


def check_shares(parameters: Mapping[str, Any], stages: Iterable[Stage]) -> None:
    """The same where some of the stages train a policy, for the processes that this one is of.

    Raises:
        UserError: with the setting.
    """
    if any(stage.is_arm for stage in stages):
        check_processes(parameters, several.processes())


def check_device(parameters: Mapping[str, Any]) -> None:
    """Refuse a stage that must compute on a GPU where there is none; torch is imported only to find out.

    Raises:
        UserError: with the setting.
    """
    if parameters.get("runtime", {}).get("device") == "cuda":
        from gemma_alignment.modeling.loading import choose_device

        choose_device("cuda")
