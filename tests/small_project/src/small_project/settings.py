"""The settings of the real project."""

from gemma_alignment.settings import CONFIG_LOADER_ARGS, HOOKS  # noqa: F401
