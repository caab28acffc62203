"""The stages of one session: which nodes are left of each, and what its ``run.json`` says."""

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Self

from kedro.io import MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from gemma_alignment.datasets.checkpoint_store import put_back, saved, set_aside
from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import (
    STANDING,
    Record,
    Status,
    differences,
    digest_of,
    one_at_a_time,
    refuse,
    refuse_living,
)
from gemma_alignment.hooks.checks import free_inputs
from gemma_alignment.hooks.digests import digests, without_made
from gemma_alignment.hooks.feasible import check_budget, check_device
from gemma_alignment.hooks.given import JUDGE, SOURCE, check_judge, check_source
from gemma_alignment.hooks.memory import peak_mb, reset_peak
from gemma_alignment.hooks.options import NONE, Options
from gemma_alignment.hooks.outputs import changed, check_unchanged, is_whole, made
from gemma_alignment.hooks.values import read_by
from gemma_alignment.liveness import hold
from gemma_alignment.stages import CLOSING, PREPARATION, STAGES, Stage
from gemma_alignment.storage.address import folder_under
from gemma_alignment.storage.names import CHECKPOINTS

logger = logging.getLogger(__name__)


def stage_name(node: Node) -> str | None:
    """The stage that a node's tags name, if any."""
    return next((name for name in STAGES if name in node.tags), None)


def in_session(pipeline: Pipeline) -> list[str]:
    """The names of the stages that have nodes in ``pipeline``, in the order of the study."""
    present = {stage_name(node) for node in pipeline.nodes}
    return [name for name in STAGES if name in present]


@dataclasses.dataclass
class Work:
    """One stage of a session."""

    stage: Stage
    directory: Path
    nodes: set[str]
    """Names of its nodes that have not run yet."""
    full: Pipeline
    """All of the stage, which may be more than what runs."""
    made_here: frozenset[str]
    """What the session makes: inputs among these have no digest before the stage starts."""
    parameters: dict[str, Any]
    makers: Mapping[str, Path]
    """The directories of the stages that prepare, by name: their records tell what they left."""
    overwrite: bool
    """Whether what is there may be replaced, whatever it is."""
    resume: bool
    """Whether it goes on with what an attempt of the same configuration left: its checkpoints, its MLflow run."""
    options: Options
    """What a command that is named in an error needs to mean the same files."""
    record: Record | None = None
    """Its ``run.json`` since it started."""
    previous: Record | None = None
    """The ``run.json`` that was there before."""
    run_id: str | None = None
    has_written: bool = False
    """Whether any of its outputs is another than before it started."""
    has_set_aside: bool = False
    """Whether checkpoints of an earlier training are kept for the case that it fails before it has written anything."""
    held: IO[str] | None = None
    """The lock of the folder, from start to end."""

    @classmethod
    def of(
        cls, name: str, running: Pipeline, full: Pipeline, parameters: Mapping[str, Any], project: Path,
        options: Options,
    ) -> Self:  # fmt: skip
        """The stage ``name`` of the pipeline ``running``, under all ``parameters``."""
        stage = Stage.of(name, parameters)
        root = folder_under(project, parameters["data_root"])
        directory = stage.directory(root)
        return cls(
            stage=stage,
            directory=directory,
            nodes={node.name for node in running.nodes if stage_name(node) == name},
            full=full,
            made_here=frozenset(running.all_outputs()),
            parameters=read_by(full.nodes, parameters),
            makers={one: Stage.of(one, parameters).directory(root) for one in PREPARATION},
            overwrite=bool(parameters["overwrite"]),
            resume=bool(parameters["resume"]),
            options=options,
            previous=Record.read(directory),
        )

    def deviations(self) -> list[str]:
        """How the record that is there differs from these parameters and the files that they name, a line each."""
        return [] if self.previous is None else differences(self.previous, self.begin(None))

    def begin(self, catalog: Any, **facts: Any) -> Record:
        """The record of a start now, with the digests of the inputs that stand still.

        Without a catalog these are only the files that parameters name.

        ``facts`` are further fields of the record. Nothing is written.
        """
        return Record(
            stage=self.stage.name,
            seed=self.stage.seed,
            variant=self.stage.variant,
            method=self.stage.name if self.stage.is_arm else None,
            fingerprints={"configuration": digest_of(self.parameters), **self._digests(catalog)},
            parameters=self.parameters,
            **facts,
        )

    def check_feasible(self, catalog: Any) -> None:
        """Refuse groups that do not fill the budget, a GPU, a file or a judge's key that is not there.

        Raises:
            UserError: with the setting.
        """
        self.check_given(catalog)
        if self.stage.is_arm:
            check_budget(self.stage.name, self.parameters)
        check_device(self.parameters)

    def check_given(self, catalog: Any) -> None:
        """Refuse files that are not there, and a judge that could not be asked.

        Raises:
            UserError: with what is missing.
        """
        read = {name for node in self.full.nodes if node.name in self.nodes for name in node.inputs}
        if SOURCE in read:
            check_source(self.parameters)
        if JUDGE in read:
            check_judge(self.parameters, catalog.load(JUDGE))

    def check(self, catalog: Any) -> None:
        """Refuse a start on a damaged input (no cure is to overwrite), over another finished run or an interrupted one.

        Raises:
            UserError: with the differences and the ways out.
        """
        self._check_inputs(catalog)
        new = self.begin(catalog)
        self._refuse(dataclasses.replace(new, fingerprints=without_made(new.fingerprints, self.made_here)))

    def start(self, catalog: Any, **facts: Any) -> None:
        """Write that the stage runs; what earlier stages of the session made is checked too now."""
        new = self.begin(catalog, **facts)
        self._check_inputs(catalog)
        with one_at_a_time(self.directory):
            self.previous = Record.read(self.directory)  # another process may have begun since
            self._refuse(new)
            self._hold()
            if self._trains and not self.resume:
                # before the record: none may stand beside a record that is not its own
                self.has_set_aside = set_aside(self._checkpoints)
            self.record = new
            new.write(self.directory)
        reset_peak()

    def _hold(self) -> None:
        """Take the folder, whatever the record that stands there says; evaluation and report may be made twice at once.

        Raises:
            UserError: when another process holds it.
        """
        self.held = hold(self.directory)
        if self.held is None and self.stage.name not in CLOSING:
            raise UserError(f"{self.directory} is being written by another process: wait for it, or stop it")

    def _check_inputs(self, catalog: Any) -> None:
        """Refuse what an earlier session made and something changed since."""
        makers = {name: Record.read(directory) for name, directory in self.makers.items() if name != self.stage.name}
        known = {name: record for name, record in makers.items() if record is not None}
        others = [name for name in free_inputs(self.full) if name not in self.made_here]
        check_unchanged(others, known, catalog, self.options)

    def _refuse(self, new: Record) -> None:
        if self.stage.name in CLOSING:
            return
        refuse_living(self.directory, self.previous, self.overwrite)
        if not self.overwrite:
            iterations = saved(self._checkpoints) if self._trains else []
            refuse(self.directory, self.previous, new, iterations[-1] if iterations else None, self.resume)

    def end(self, status: Status, catalog: Any, error: str | None = None) -> None:
        """Write how the stage ended, with the digests of every input it had, and let go of the folder.

        Where it failed before it wrote anything, what stands there is what an earlier one left, and so are the record
        and the checkpoints.
        """
        if self.record is None:
            return
        with self.held or nullcontext():
            self._write_end(self.record, status, catalog, error)

    def _write_end(self, begun: Record, status: Status, catalog: Any, error: str | None) -> None:
        if status == "finished" and not is_whole(self.full, catalog):
            status = "partial"
        fingerprints = {**begun.fingerprints, **self._digests(catalog)}
        outputs = made(self.full, catalog) if status in STANDING else {}
        record = dataclasses.replace(begun, fingerprints=fingerprints, outputs=outputs, peak_mb=peak_mb())
        self.record = record.end(status, error)
        old = None if status in STANDING or self.has_written else self.previous
        if old is None or not (old.status in STANDING or self.has_set_aside):
            self.record.write(self.directory)
            return
        old.write(self.directory)
        if self.has_set_aside:
            put_back(self._checkpoints)

    def is_current(self, catalog: Any) -> bool:
        """Whether a finished run of the same configuration and inputs stands there, outputs and all."""
        old = self.previous
        if old is None or old.status != "finished" or not is_whole(self.full, catalog):
            return False
        new = self.begin(catalog)
        if differences(old, new) or old.fingerprints.keys() != new.fingerprints.keys():
            return False
        for _, path in (others := changed(old, old.outputs, catalog)):
            logger.warning("%s is not what the stage %s left there: it is made again", path, self.stage.name)
        return not others

    def would_repeat(self, catalog: Any) -> bool:
        """Whether an arm is about to be trained that is finished and current."""
        anew = not self.overwrite and not self.resume
        return anew and self.stage.is_arm and self._trains and self.is_current(catalog)

    @property
    def continued(self) -> str | None:
        """The MLflow run that it goes on with, if it resumes one.

        Evaluation and report may be made again with other parameters, which one MLflow run cannot hold: they go
        on only with an interrupted run of the same.
        """
        old = self.previous
        if not self.resume or old is None:
            return None
        changed = old.fingerprints.get("configuration") != digest_of(self.parameters)
        if self.stage.name in CLOSING and (old.status in STANDING or changed):
            return None
        return old.mlflow_run_id

    @property
    def _trains(self) -> bool:
        """Whether what is left to run begins or goes on with a training that leaves checkpoints."""
        store = f"{self.stage.name}.{CHECKPOINTS}"
        return any(store in node.inputs and node.name in self.nodes for node in self.full.nodes)

    @property
    def _checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def _digests(self, catalog: Any) -> dict[str, str]:
        return digests(self.full, self.parameters, catalog, self.stage.name, self.directory)

    def wrote(self, name: str, catalog: Any) -> None:
        """Learn that a dataset was saved: what only memory holds changes nothing."""
        if name in self.full.all_outputs() and not isinstance(catalog.get(name), MemoryDataset):
            self.has_written = True


def works(
    pipeline: Pipeline, registry: Mapping[str, Pipeline], parameters: Mapping[str, Any], project: Path,
    options: Options = NONE,
) -> dict[str, Work]:  # fmt: skip
    """The stages of ``pipeline``, by name.

    Args:
        pipeline: what is about to run.
        registry: all pipelines: a stage may be more than what runs of it.
        parameters: all parameters.
        project: what a relative ``data_root`` is relative to.
        options: of the command, for those that errors name.
    """
    found: dict[str, Work] = {}
    for name in in_session(pipeline):
        whole = registry.get(name, pipeline)
        full = Pipeline([node for node in whole.nodes if stage_name(node) == name])
        found[name] = Work.of(name, pipeline, full, parameters, Path(project), options)
    return found
