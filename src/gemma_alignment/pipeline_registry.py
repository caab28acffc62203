"""The pipelines of the project by the names that ``kedro run --pipeline`` takes."""

import importlib
import importlib.util

from kedro.pipeline import Pipeline

NAMES = ("data_processing", "sft", "reward_model", "ppo", "grpo", "rloo", "dr_grpo", "evaluation", "reporting")


def register_pipelines() -> dict[str, Pipeline]:
    """Every pipeline, and ``__default__``: all of the study for one seed."""
    found: dict[str, Pipeline] = {}
    for name in NAMES:
        module = f"gemma_alignment.pipelines.{name}"
        if importlib.util.find_spec(module) and importlib.util.find_spec(f"{module}.pipeline"):
            found[name] = importlib.import_module(f"{module}.pipeline").create_pipeline()
    return {**found, "__default__": sum(found.values(), Pipeline([]))}
