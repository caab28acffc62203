"""Base model and data to the SFT adapter and the merged model."""

from kedro.pipeline import Pipeline, node

from gemma_alignment.pipelines.sft.nodes import merge_sft, train_sft


def create_pipeline() -> Pipeline:
    """``train_sft`` then ``merge_sft``."""
    return Pipeline(
        [
            node(
                train_sft,
                inputs=[
                    "base_model", "preferences_train", "preferences_eval", "genrm_train", "params:modeling",
                    "params:runtime", "params:sft", "params:prepare_seed", "sft.run_log", "sft.checkpoints",
                ],
                outputs=["sft_adapter", "sft.history"],
                name="train_sft",
            ),
            node(
                merge_sft,
                inputs=[
                    "base_model", "sft_adapter", "preferences_eval", "params:modeling", "params:runtime",
                    "params:prepare_seed", "sft.run_log", "sft.history",
                ],
                outputs="sft_merged_model",
                name="merge_sft",
            ),
        ],
        tags="sft",
    )  # fmt: skip
