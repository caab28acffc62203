"""The node and the pipeline that every arm shares: one factory, no copies."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node

from gemma_alignment.pipelines.arm_nodes import answer_with_policy, train_policy

SHARED = (
    "params:policy_optimization", "params:rollout", "params:kl_control", "params:score_normalization",
    "params:modeling", "params:runtime", "params:preferences", "params:seed", "params:prepare_seed",
    "base_model", "sft_adapter",
)  # fmt: skip


def create_arm(method: str) -> Pipeline:
    """Train a policy with ``method``, then answer the held-out prompts with it."""
    train = update_wrapper(partial(train_policy, method), train_policy)
    answer = update_wrapper(partial(answer_with_policy, method), answer_with_policy)
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


