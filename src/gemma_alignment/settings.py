"""Kedro's settings of this project: how its configuration is read and which hooks run."""

from omegaconf.resolvers import oc

from gemma_alignment.hooks.patience import Patience
from gemma_alignment.hooks.session import hooks
from gemma_alignment.storage.address import folder_of

HOOKS = (*hooks(), Patience())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "custom_resolvers": {
        "oc.env": oc.env,
        # where a bucket is worked on here; a path is itself
        "folder": folder_of,
        # `grpo` and the variant `k8` make the folder `grpo@k8`
        "variant_suffix": lambda variant: f"@{variant}" if variant else "",
    },
    # an environment changes single keys of a section, it does not replace the section
    "merge_strategy": {"parameters": "soft"},
}
