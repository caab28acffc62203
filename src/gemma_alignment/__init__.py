"""A controlled comparison of PPO and GRPO, from preference data to a report with honest intervals."""

import os
import warnings

__version__ = "0.1.0"

for _name, _value in {
    # no library reports home unless the user asked for it
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # a tracking server that does not answer costs seconds, not minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}.items():
    os.environ.setdefault(_name, _value)

for _message in (
    "register_new_resolver",  # Kedro's name for what OmegaConf has renamed
    "One or more dataset names contain '.'",  # {method}.history is meant
    ".*Add type hints to the `predict` method",  # of MLflow's models, which are not used here
    "Option '--pipeline' is deprecated",  # one pipeline is what the study's commands run
):
    warnings.filterwarnings("ignore", message=_message)
