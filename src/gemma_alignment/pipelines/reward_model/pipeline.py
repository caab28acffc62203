"""SFT model and preference pairs to the frozen reward model, its held-out scores, and the SFT model's answers."""

from kedro.pipeline import Pipeline, node

from gemma_alignment.pipelines.reward_model.nodes import score_held_out, train_reward_model
from gemma_alignment.pipelines.sft.nodes import answer_with_sft


def create_pipeline() -> Pipeline:
    """``train_reward_model``, then the scores of held-out pairs and the SFT model's scored answers."""
    return Pipeline(
        [
            node(
                train_reward_model,
                inputs=[
                    "sft_merged_model", "preferences_train", "preferences_eval", "prompts_train", "params:modeling",
                    "params:runtime", "params:reward_model", "params:rollout", "params:prepare_seed",
                    "reward_model.run_log", "reward_model.checkpoints",
                ],
                outputs=["rm_model_bt", "reward_model.history"],
                name="train_reward_model",
            ),
            node(
                score_held_out,
                inputs=[
                    "sft_merged_model", "rm_model_bt", "preferences_eval", "params:modeling", "params:runtime",
                    "params:reward_model", "params:rollout", "params:preferences", "params:prepare_seed",
                ],
                outputs="reward_model.eval_scores",
                name="score_held_out",
            ),
            node(
                answer_with_sft,
                inputs=[
                    "sft_merged_model", "rm_model_bt", "prompts_eval", "params:modeling", "params:runtime",
                    "params:policy_optimization.missing_eos_penalty", "params:reward_model.microbatch_size",
                    "params:rollout", "params:preferences", "params:prepare_seed",
                ],
                outputs="sft.responses",
                name="answer_with_sft",
            ),
        ],
        tags="reward_model",
    )  # fmt: skip
