"""The commands of the real project."""

from gemma_alignment.cli import cli, run  # noqa: F401
