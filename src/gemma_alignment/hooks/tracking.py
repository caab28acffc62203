"""MLflow: one run a stage, whatever else runs in the same session, and the right state at the end."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gemma_alignment.errors import let_through
from gemma_alignment.hooks.abandoned import end_abandoned, end_own, tags_of
from gemma_alignment.hooks.provenance import command, git_commit, git_is_dirty
from gemma_alignment.hooks.store import PARENT, VIEW, find_run, view_address
from gemma_alignment.hooks.values import UNCOUNTED
from gemma_alignment.hooks.work import Work
from gemma_alignment.storage.address import folder_under

logger = logging.getLogger(__name__)

STUDY = "GEMMA_ALIGNMENT_STUDY"
"""Environment variable: the name of the study."""
SESSION = "session"
"""Tag ``stage`` of the run of a session of several stages."""
SYSTEM_METRICS = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own switch: processor, memory, disk and GPU of every run, every ten seconds; ``false`` turns it off."""


class Tracking:
    """The MLflow runs of one session.

    kedro-mlflow opens one run a session, logs the parameters of each node to the run it believes to
    be its own, and ends it. A session of one stage keeps to that. In a session of more, its attribute
    ``run_id`` follows the stage whose node runs, so parameters, curves and artifacts go to that stage's
    run; at most one run is active at a time, and the others are parked (their status stays RUNNING).
    """

    def __init__(
        self, context: Any, works: Mapping[str, Work], parameters: Mapping[str, Any], is_default: bool
    ) -> None:
        self._config: Any = getattr(context, "mlflow", None)
        self._works = works
        self._parent = os.environ.get(PARENT)
        self._common = {
            "study": os.environ.get(STUDY, "none"),
            "variant": parameters["variant"] or "none",
            "data_root": parameters["data_root"],
            "overwrite": str(parameters["overwrite"]).lower(),
            "resume": str(parameters["resume"]).lower(),
            "command": command(),
            **_source(context.project_path),
        }
        self._folder = folder_under(context.project_path, parameters["data_root"])
        self._name = f"{'default' if is_default else '+'.join(works)}-seed{parameters['seed']}"
        self.run_id: str | None = None
        """The run that kedro-mlflow opened for the session."""
        self.lost = False
        """Whether the server stopped answering: training goes on, and what belongs there is held back."""
        self._asked: set[str | None] = set()
        self._borrowed = len(works) > 1 and self._parent is not None
        """Whether the session has no run of its own, because its stages stand directly under a study."""

    @property
    def client(self) -> Any:
        """A client of the session's store."""
        from mlflow import MlflowClient

        return MlflowClient()

    @property
    def is_on(self) -> bool:
        """Whether there is a run to log to."""
        return self.run_id is not None and not self.lost

    @property
    def summary_run(self) -> str | None:
        """Where what is said of the study as a whole goes: its own run, else the session's."""
        return self._parent or self.run_id

    @property
    def view(self) -> str | None:
        """The address at which MLflow's pages compare the arms; None where nothing is tracked."""
        import mlflow

        if not self.is_on or self._config is None:
            return None
        return view_address(mlflow.get_tracking_uri(), self._experiment, os.environ.get(STUDY, VIEW))

    def before_open(self) -> None:
        """Make the run that kedro-mlflow is to open: that of the only stage, of the first, or the session's.

        It is born with its tags and its parent, so no signal comes between. A stage that resumes goes on
        with its own.
        """
        if self._config is None or not self._works:  # without a stage there is nothing to track
            return
        os.environ.setdefault(SYSTEM_METRICS, "true")
        _leave_out_uncounted()
        run, works = self._config.tracking.run, list(self._works.values())
        if len(works) == 1 or self._borrowed:
            run.name = works[0].stage.run_name
            run.id = works[0].run_id = self._run_of(works[0], self._parent)
        else:
            run.name = self._name
            end_abandoned(self.client, self._experiment, SESSION, self._folder)
            run.id = self._create(run.name, self._tags(None), self._parent)

    def after_open(self) -> None:
        """Learn what kedro-mlflow opened; nothing where it is switched off for the pipeline."""
        import mlflow

        active = mlflow.active_run() if self._config is not None else None
        self.run_id = None if active is None else active.info.run_id

    def enter(self, work: Work | None) -> None:
        """Make the run of a stage the active one (without a stage: the session's)."""
        if self.run_id is None or (self.lost and not self._is_back(work)):
            return
        try:
            if work is not None and work.run_id is None:
                work.run_id = self._run_of(work, self._parent or self.run_id)
            self._activate(work.run_id if work is not None and work.run_id else self.run_id)
        except Exception as error:
            self.lose(error)

    def _is_back(self, work: Work | None) -> bool:
        """Whether a server that was lost answers again; asked once a stage, and at the end."""
        if work is not None and work.stage.name in self._asked:
            return False
        self._asked.add(work.stage.name if work is not None else None)
        try:
            self.client.get_run(self.run_id)
        except Exception as error:
            let_through(error)
            return False
        self.lost = False
        logger.warning("MLflow answers again; what was held back is sent now")
        return True

    def regain(self) -> None:
        """Before the stages end: a server that is back gets what was held back, and each run its end."""
        if self.lost:
            self._is_back(None)

    def end(self, work: Work, status: str) -> None:
        """The stage is over: FINISHED, FAILED or KILLED; the session's own run is left to kedro-mlflow."""
        if work.run_id is None or not self.is_on or (work.run_id == self.run_id and not self._borrowed):
            return
        try:
            self._park(work.run_id)
            self.client.set_terminated(work.run_id, status)
        except Exception as error:
            self.lose(error)

    def before_close(self) -> None:
        """Hand the session's own run, if it has one, back to kedro-mlflow, which is about to end it."""
        if not self.is_on or self.run_id is None:
            return
        try:
            if self._borrowed:
                _follow(None)
            else:
                self._activate(self.run_id)
        except Exception as error:
            self.lose(error)

    def after_close(self, status: str | None) -> None:
        """Correct the status that kedro-mlflow gave (it knows no KILLED)."""
        if self.is_on and status is not None and not self._borrowed:
            self.client.set_terminated(self.run_id, status)

    def abandon(self, status: str) -> None:
        """End what is still open when the process ends without Kedro having said how."""
        import mlflow

        try:
            while (active := mlflow.active_run()) is not None:
                self._park(active.info.run_id)
                self.client.set_terminated(active.info.run_id, status)
            if status == "KILLED" and self._config is not None and not self.lost:
                end_own(self.client, self._experiment, status)
        except Exception as error:
            self.lose(error)

    def _run_of(self, work: Work, parent: str | None) -> str:
        """The run of a stage: that of the attempt which it goes on with, where the store has it, else a new one."""
        from mlflow.entities import RunTag

        tags, stage = self._tags(work), work.stage.name
        end_abandoned(self.client, self._experiment, stage, work.directory, work.previous, work.continued)
        if find_run(self.client, work.continued) is None:
            return self._create(work.stage.run_name, tags, parent)
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        self.client.log_batch(work.continued, tags=[RunTag(key, value) for key, value in tags.items()])
        return str(work.continued)

    @property
    def _experiment(self) -> str:
        """The id of the experiment that kedro-mlflow opened."""
        return str(self._config.tracking.experiment._experiment.experiment_id)

    def _create(self, name: str, tags: Mapping[str, str], parent: str | None) -> str:
        """A new run, parked."""
        import mlflow

        if (active := mlflow.active_run()) is not None:
            self._park(active.info.run_id)
        run = mlflow.start_run(run_name=name, experiment_id=self._experiment, parent_run_id=parent, tags=dict(tags))
        self._park(run.info.run_id)
        return str(run.info.run_id)

    def _tags(self, work: Work | None) -> dict[str, str]:
        if work is None:
            return {**self._common, **tags_of(self._folder), "stage": SESSION}
        stage = work.stage
        tags = {**self._common, **tags_of(work.directory), "stage": stage.name, "seed": str(stage.seed)}
        if stage.is_arm:
            tags["method"] = stage.name
        return tags

    def _activate(self, run_id: str) -> None:
        import mlflow

        active = mlflow.active_run()
        if active is None or active.info.run_id != run_id:
            if active is not None:
                self._park(active.info.run_id)
            mlflow.start_run(run_id=run_id)
        else:
            self.client.get_run(run_id)  # does the server still answer?
        _follow(run_id)

    def _park(self, run_id: str) -> None:
        """Let go of the active run without ending it."""
        import mlflow

        active = mlflow.active_run()
        if active is not None and active.info.run_id == run_id:
            mlflow.end_run("RUNNING")

    def lose(self, error: Exception) -> None:
        """The server is gone: say so once, keep kedro-mlflow from failing the pipeline over it.

        Raises:
            RunInterrupted: where it is not gone, and a signal came while it was asked.
        """
        let_through(error)
        self.lost = True
        logger.warning("MLflow does not answer (%s); the run goes on, its files hold everything", error)
        _follow(None)


def _follow(run_id: str | None) -> None:
    """Point kedro-mlflow's hook to a run; None: to none, and log nothing any more."""
    from kedro_mlflow.framework.hooks.mlflow_hook import mlflow_hook

    mlflow_hook.run_id = run_id
    mlflow_hook._is_mlflow_enabled = run_id is not None


def _leave_out_uncounted() -> None:
    """Let kedro-mlflow log no parameter that is in no fingerprint: a run that goes on may have another value of it."""
    from kedro_mlflow.framework.hooks.mlflow_hook import mlflow_hook

    mlflow_hook._log_param = partial(_log_param, mlflow_hook)


def _log_param(hook: Any, name: str, value: Any) -> None:
    section, _, own = name.partition(".")
    if section != "modeling" or own not in UNCOUNTED:
        type(hook)._log_param(hook, name, value)


def _source(project: Path) -> dict[str, str]:
    commit = git_commit(project)
    if commit is None:
        return {"mlflow.source.git.commit": "unknown"}
    return {"mlflow.source.git.commit": commit, "git_dirty": str(git_is_dirty(project)).lower()}
