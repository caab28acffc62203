"""The MLflow run of the study, and the right end for every run under it."""

import logging
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemma_alignment.datasets.metric_writer import synchronize
from gemma_alignment.datasets.run_log import RunLog
from gemma_alignment.errors import UserError, brief, let_through
from gemma_alignment.fingerprints import Record, Status
from gemma_alignment.hooks.abandoned import MLFLOW_STATUS
from gemma_alignment.hooks.provenance import command, git_commit
from gemma_alignment.hooks.store import find_run
from gemma_alignment.redaction import scrubbed
from gemma_alignment.storage.names import RECORD
from gemma_alignment.study.lock import identity_of
from gemma_alignment.study.processes import Child
from gemma_alignment.study.view import share

logger = logging.getLogger(__name__)


FOLDER = "study_folder"
"""Tag of a study's run: the machine and the data folder, or the bucket, in which one study runs at a time."""
IDENTITY = "study_folder_id"
"""The same of the folder alone: two machines may have one name."""
GIVES_WAY = 10.0
"""Seconds that another study of the same second has to give way, which one that has begun does not."""
LOOK = 0.5
"""Seconds between two looks at whether it has."""


class ParentRun:
    """The parent of every run of one study: a new one, or that of an earlier attempt which this one finishes.

    A study that was shot leaves its run RUNNING. Whoever holds the data folder now knows that it is dead: with
    ``resume`` the run is gone on with, else it ends as KILLED, and whatever stands under it but a stage whose own
    process outlived the study's and still trains.
    """

    def __init__(
        self, project: Path, experiment_id: str, name: str, tags: Mapping[str, str], data_root: Path,
        earlier: Sequence[Record] = (), resume: bool = False, address: str | None = None,
    ) -> None:  # fmt: skip
        from mlflow import MlflowClient
        from mlflow.tracking.context.registry import resolve_tags

        self._client = MlflowClient()
        self._warned = False
        self._brought: set[tuple[str, Status]] = set()
        self._experiment = experiment_id
        self.tracking_uri: str = self._client.tracking_uri
        folder = address or f"{socket.gethostname()}:{data_root.resolve()}"
        place = {FOLDER: folder, IDENTITY: "" if address else identity_of(data_root)}
        left = self._left_in(place)
        run = self._study_of(earlier) or (resume and (left[0] if left else self._unbegun_in(place))) or None
        if run is None:
            self._refuse_namesake(name)
        self.name: str = name if run is None else run.info.run_name
        own = {
            "study": self.name,
            "stage": "study",
            **place,
            "command": command(),
            "mlflow.source.git.commit": git_commit(project) or "unknown",
            **tags,
        }
        if run is None:
            run = self._client.create_run(experiment_id, run_name=name, tags={**resolve_tags(), **own})
            self._claim(run, name)
        else:
            for key, value in own.items():
                self._client.set_tag(run.info.run_id, key, value)
            self._client.update_run(run.info.run_id, status="RUNNING")
        self.run_id: str = run.info.run_id
        for one in left:
            if one.info.run_id != self.run_id:
                self._end(one.info.run_id, "KILLED", _living(data_root))
        with self._patient():
            share(self._client, experiment_id, self.name)

    def _refuse_namesake(self, name: str) -> None:
        """Names say the second; two machines with one server may begin in the same, and their runs would be one view's.

        Raises:
            UserError: when the experiment has a study of this name.
        """
        for run in self._named(name):
            raise _taken(name, run)

    def _claim(self, run: Any, name: str) -> None:
        """Look again, once the own run is there: of two that looked and then wrote, each sees the other.

        The later one gives way. The earlier one waits until it has; as clocks differ, the other may take itself for the
        earlier one, or have begun: then neither waits for ever.

        Raises:
            UserError: when another study has the name; the run is not there any more.
        """
        deadline = time.monotonic() + GIVES_WAY
        while others := [one for one in self._named(name) if one.info.run_id != run.info.run_id]:
            first = min(others, key=_age)
            if _age(first) < _age(run) or time.monotonic() >= deadline:
                self._client.delete_run(run.info.run_id)
                raise _taken(name, first)
            time.sleep(LOOK)

    def _named(self, name: str) -> list[Any]:
        query = f"tags.stage = 'study' and attributes.run_name = '{name}'"
        return list(self._client.search_runs([self._experiment], query))

    def adopt(self, run_id: str | None) -> None:
        """Let a finished run that this study reuses say so: the view of the study's arms finds it by its tag."""
        with self._patient():
            if run_id is not None and (run := find_run(self._client, run_id)) is not None:
                names = dict.fromkeys([*run.data.tags.get("study", "").split(), self.name])
                self._client.set_tag(run_id, "study", " ".join(name for name in names if name != "none"))

    def _study_of(self, records: Sequence[Record]) -> Any:
        """The MLflow run of the study that the newest of ``records`` belongs to, where the store has it."""
        for record in sorted(records, key=lambda one: one.created, reverse=True):
            run = find_run(self._client, record.mlflow_run_id)
            parent = find_run(self._client, run.data.tags.get("mlflow.parentRunId")) if run is not None else None
            if parent is not None and parent.data.tags.get("stage") == "study":
                return parent
        return None

    def _left_in(self, place: Mapping[str, str]) -> list[Any]:
        """The studies of the folder that still say RUNNING, the newest first."""
        running = self._client.search_runs(
            [self._experiment], "tags.stage = 'study' and attributes.status = 'RUNNING'",
            order_by=["attributes.start_time DESC"],
        )  # fmt: skip
        return [run for run in running if _is_in(place, run)]

    def _unbegun_in(self, place: Mapping[str, str]) -> Any:
        """The last study of the folder, where it failed before a run under it wrote anything: that was shot at once."""
        studies = self._client.search_runs(
            [self._experiment], "tags.stage = 'study'", order_by=["attributes.start_time DESC"]
        )
        last = next((run for run in studies if _is_in(place, run)), None)
        if last is None or last.info.status == "FINISHED":
            return None
        child = f"tags.mlflow.parentRunId = '{last.info.run_id}'"
        return None if any(run.data.metrics for run in self._client.search_runs([self._experiment], child)) else last

    def settle(self, child: Child, data_root: Path) -> None:
        """Give the records and MLflow runs of a process that is over the end that it did not write itself.

        A killed process leaves ``running`` behind; one that lost the server leaves a run that is
        finished on disk only. One that ended well has said so in its record, which here may be behind while a bucket is
        away. Points that the run does not hold are sent from the files.
        """
        if child.process is None:
            self._deliver(child, data_root)
            return
        for stage in child.run.stages:
            directory = stage.directory(data_root)
            record = Record.read(directory)
            if record is None or not child.wrote(record):
                continue
            if record.status == "running" and child.code != 0:
                record.end("failed", child.end).write(directory)
        self._deliver(child, data_root)

    def _deliver(self, child: Child, data_root: Path) -> None:
        """Bring the MLflow runs of a process to what its files say; a store that does not answer costs a warning."""
        if child.state in ("waiting", "running"):
            return
        for stage in child.run.stages:
            directory = stage.directory(data_root)
            record = Record.read(directory)
            if record is not None and record.mlflow_run_id and record.status != "running":
                with self._patient():
                    self._bring(record.mlflow_run_id, record.status, directory)

    def _bring(self, run_id: str, status: Status, directory: Path) -> None:
        """Points first: a store that came back in between may have taken the end of a run, and none of its curves."""
        if (run_id, status) in self._brought:
            return
        synchronize(self._client, run_id, RunLog(directory).points())
        if self._is_running(run_id):
            self._client.set_terminated(run_id, MLFLOW_STATUS[status])
        self._brought.add((run_id, status))

    @contextmanager
    def _patient(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the store does, the runs go on
            let_through(error)
            if not self._warned:
                logger.warning(
                    "MLflow does not answer (%s); the study goes on, its files hold every number, and the same "
                    "command with --resume brings them to MLflow", scrubbed(brief(error)),
                )  # fmt: skip
            self._warned = True

    def end(self, status: str) -> None:
        """End the study's run, and whatever under it still says RUNNING."""
        with self._patient():
            self._end(self.run_id, status)

    def _end(self, run_id: str, status: str, spared: Collection[str] = ()) -> None:
        under = self._client.search_runs(
            [self._experiment], f"tags.mlflow.parentRunId = '{run_id}' and attributes.status = 'RUNNING'"
        )
        for run in under:
            if run.info.run_id not in spared:
                self._client.set_terminated(run.info.run_id, "KILLED" if status == "KILLED" else "FAILED")
        self._client.set_terminated(run_id, status)

    def _is_running(self, run_id: str) -> bool:
        info: Any = self._client.get_run(run_id).info
        return bool(info.status == "RUNNING")


def _age(run: Any) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _taken(name: str, run: Any) -> UserError:
    where = run.data.tags.get(FOLDER, "another folder")
    return UserError(f"A study named {name} is there already, in {where}: start this one again in a second")


def _is_in(place: Mapping[str, str], run: Any) -> bool:
    """Whether a study's run is of a place; one from before folders had an identity is known by its path."""
    return all(run.data.tags.get(key, own if key == IDENTITY else None) == own for key, own in place.items())


def _living(data_root: Path) -> set[str]:
    """The MLflow runs of the stages in the folder whose process is there."""
    records = ((path.parent, Record.read(path.parent)) for path in data_root.rglob(RECORD))
    return {one.mlflow_run_id for folder, one in records if one and one.mlflow_run_id and one.is_alive(folder)}
