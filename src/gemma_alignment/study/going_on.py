"""Whether a run goes on from what an interrupted attempt left."""

import dataclasses
from pathlib import Path

from gemma_alignment.datasets.checkpoint_store import saved
from gemma_alignment.fingerprints import INTERRUPTED, Record
from gemma_alignment.storage.names import CHECKPOINTS
from gemma_alignment.study.plan import Run


def going_on(run: Run, data_root: Path) -> Run:
    """The run on from a checkpoint that is there, or only in the MLflow run that an interrupted attempt opened."""
    folders = [stage.directory(data_root) for stage in run.stages]
    records = [Record.read(folder) for folder in folders]
    interrupted = any(record is not None and record.status in INTERRUPTED for record in records)
    if interrupted or any(saved(folder / CHECKPOINTS) for folder in folders):
        return dataclasses.replace(run, params={**run.params, "resume": True})
    return run
