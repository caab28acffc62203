"""Source to data and base model: what replaces a download script."""

from kedro.pipeline import Pipeline, node

from gemma_alignment.pipelines.data_processing.nodes import (
    collect_preferences,
    limit_lengths,
    make_genrm_records,
    pretrain_base,
    split_preferences,
    train_tokenizer,
    validate_rows,
    write_down,
)


def create_pipeline() -> Pipeline:
    """Collect, check, tokenise, split, and pre-train."""
    return Pipeline(
        [
            node(
                collect_preferences,
                ["preferences_source", "params:preferences", "params:world", "params:prepare_seed"],
                "collected_rows", name="collect_preferences",
            ),
            node(
                validate_rows, ["collected_rows", "params:preferences"], ["valid_rows", "invalid_rows"],
                name="validate_rows",
            ),
            node(
                train_tokenizer,
                [
                    "valid_rows", "params:tokenizer", "params:modeling", "params:preferences",
                    "params:prepare_seed",
                ],
                "trained_tokenizer", name="train_tokenizer",
            ),
            node(
                limit_lengths, ["valid_rows", "invalid_rows", "trained_tokenizer", "params:preferences"],
                ["preferences", "dropped_rows", "counted_rows"], name="limit_lengths",
            ),
            node(
                split_preferences, ["preferences", "params:preferences", "params:prepare_seed"],
                ["preferences_train", "preferences_eval", "prompts_train", "prompts_eval", "split_sizes"],
                name="split_preferences",
            ),
            node(
                write_down,
                ["collected_rows", "dropped_rows", "counted_rows", "split_sizes", "trained_tokenizer"],
                ["preferences_raw", "rejected_rows", "row_counts", "tokenizer"], name="write_down",
            ),
            node(make_genrm_records, "preferences_train", "genrm_train", name="make_genrm_records"),
            node(
                pretrain_base,
                [
                    "preferences_train", "tokenizer", "params:tiny_model", "params:pretraining", "params:world",
                    "params:preferences", "params:modeling", "params:runtime", "params:prepare_seed",
                    "data_processing.run_log", "data_processing.checkpoints",
                ],
                ["base_model", "data_processing.history"], name="pretrain_base",
            ),
        ],
        tags="data_processing",
    )  # fmt: skip
