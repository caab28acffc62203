"""Adapter of one method and seed to a whole model with its card."""

from kedro.pipeline import Pipeline, node

from gemma_alignment.pipelines.export.nodes import export_policy


def create_pipeline() -> Pipeline:
    """``export_policy``; the parameters ``method``, ``seed`` and ``variant`` say whose policy."""
    return Pipeline(
        [
            node(
                export_policy,
                inputs=[
                    "sft_merged_model", "chosen_policy", "chosen_history", "chosen_run", "params:method",
                    "params:seed", "params:runtime", "base_model", "sft_adapter",
                ],
                outputs="exported_policy",
                name="export_policy",
            )
        ],
        tags="export",
    )  # fmt: skip
