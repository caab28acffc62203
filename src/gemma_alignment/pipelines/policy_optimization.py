"""The node and the pipeline that every arm shares: one factory, no copies."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from kedro.pipeline import Pipeline, node

from gemma_alignment.pipelines.arm_nodes import answer_with_policy, train_policy
from gemma_alignment.pipelines.several import shared_out, shared_out_in_shares

SHARED = (
    "params:policy_optimization", "params:rollout", "params:kl_control", "params:score_normalization",
    "params:modeling", "params:runtime", "params:preferences", "params:seed", "params:prepare_seed",
    "base_model", "sft_adapter",
)  # fmt: skip


def create_arm(method: str) -> Pipeline:
    """Train a policy with ``method``, then answer the held-out prompts with it."""
    train, answer = _with(method, shared_out(train_policy)), _with(method, shared_out_in_shares(answer_with_policy))
    return Pipeline(
        [
            node(
                train,
                inputs=[
                    "sft_merged_model", "rm_model_bt", "prompts_train", "prompts_eval", "preferences_eval",
                    f"params:{method}", *SHARED, f"{method}.run_log", f"{method}.checkpoints",
                ],
                outputs=[f"{method}.{name}" for name in ("policy", "history", "timing", "samples")],
                name=f"train_{method}",
            ),
            node(
                answer,
                inputs=[
                    "sft_merged_model", "rm_model_bt", f"{method}.policy", "prompts_eval",
                    "params:policy_optimization", "params:rollout", "params:modeling", "params:runtime",
                    "params:preferences", "params:prepare_seed", "base_model", "sft_adapter",
                ],
                outputs=f"{method}.responses",
                name=f"answer_with_{method}",
            ),
        ],
        tags=method,
    )  # fmt: skip


def _with(method: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its first argument given; Kedro-Viz shows neither source nor docstring of a ``partial``."""

    @wraps(function)
    def node_function(*inputs: Any) -> Any:
        return function(method, *inputs)

    _, *others = inspect.signature(function).parameters.values()
    node_function.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
    return node_function
