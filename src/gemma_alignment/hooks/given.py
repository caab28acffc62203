"""Files of the user's that parameters name: what a stage reads of them counts among its inputs."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.datasets.preference_source import existing
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.parameters.judge import JudgeParameters
from gemma_alignment.pipelines.evaluation.people import labelled_rows, references

SOURCE, JUDGE = "preferences_source", "judge"
"""The datasets that read them."""


def files_given(read: Collection[str], parameters: Mapping[str, Any]) -> dict[str, Path]:
    """The files that a stage reads because parameters name them, by the label of their digest.

    Args:
        read: the datasets that it reads.
        parameters: the sections that it reads.
    """
    found: dict[str, str | None] = {}
    preferences, judge = parameters.get("preferences") or {}, parameters.get("judge") or {}
    if SOURCE in read and preferences.get("source") == "jsonl":
        found["source"] = preferences["path"]
    if JUDGE in read and judge:
        found["references"] = judge["reference_path"]
        if judge["kind"] == "recorded":
            found["recorded"] = judge["recorded_path"]
        elif judge["kind"] == "openai":
            found["labelled"] = judge["labelled_path"]
    return {label: Path(path) for label, path in found.items() if path}


def check_source(parameters: Mapping[str, Any]) -> None:
    """Refuse a file of preferences that is not there.

    Raises:
        UserError: with the path.
    """
    if parameters["preferences"]["source"] == "jsonl":
        existing(Path(str(parameters["preferences"]["path"])))


def check_judge(parameters: Mapping[str, Any], connection: JudgeConnection) -> None:
    """Refuse a judge that could not be asked: without its key, its price, or a file that it reads.

    Raises:
        UserError: with what is missing.
    """
    settings = build(JudgeParameters, parameters["judge"], "judge")
    connection.check(settings)
    if settings.kind == "openai" and settings.labelled_path is not None:
        labelled_rows(settings.labelled_path)
    references(settings.reference_path)
