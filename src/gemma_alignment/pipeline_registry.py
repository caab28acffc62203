"""The pipelines of the project by the names that ``kedro run --pipeline`` takes."""

from kedro.pipeline import Pipeline

from gemma_alignment.pipelines.data_processing import pipeline as data_processing
from gemma_alignment.pipelines.dr_grpo import pipeline as dr_grpo
from gemma_alignment.pipelines.evaluation import pipeline as evaluation
from gemma_alignment.pipelines.export import pipeline as export
from gemma_alignment.pipelines.grpo import pipeline as grpo
from gemma_alignment.pipelines.ppo import pipeline as ppo
from gemma_alignment.pipelines.reporting import pipeline as reporting
from gemma_alignment.pipelines.reward_model import pipeline as reward_model
from gemma_alignment.pipelines.rloo import pipeline as rloo
from gemma_alignment.pipelines.sft import pipeline as sft
from gemma_alignment.stages import COMPARED, EXPORT, PREPARATION


def register_pipelines() -> dict[str, Pipeline]:
    """One pipeline a stage, and ``__default__``: all of the study for one seed."""
    stages = {
        "data_processing": data_processing.create_pipeline(),
        "sft": sft.create_pipeline(),
        "reward_model": reward_model.create_pipeline(),
        "ppo": ppo.create_pipeline(),
        "grpo": grpo.create_pipeline(),
        "rloo": rloo.create_pipeline(),
        "dr_grpo": dr_grpo.create_pipeline(),
        "evaluation": evaluation.create_pipeline(),
        "reporting": reporting.create_pipeline(),
        EXPORT: export.create_pipeline(),
    }
    # evaluation and reporting read folders; here they must wait for what the same run writes into them
    answers = ["sft.responses", *(f"{method}.responses" for method in COMPARED)]
    closing = evaluation.create_pipeline(answers) + reporting.create_pipeline(answers)
    whole = sum((stages[name] for name in (*PREPARATION, *COMPARED)), Pipeline([])) + closing
    return {**stages, "__default__": whole}
