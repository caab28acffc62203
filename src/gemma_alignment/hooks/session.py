"""The hooks of a session, around those of kedro-mlflow: checks before any run opens, then one run a stage."""

import atexit
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.pipeline.node import Node

from gemma_alignment.datasets.checkpoint_store import CheckpointStore
from gemma_alignment.datasets.run_log import RunLog
from gemma_alignment.fingerprints import Status
from gemma_alignment.hooks import kept
from gemma_alignment.hooks.abandoned import MLFLOW_STATUS
from gemma_alignment.hooks.advice import leave_out_advice
from gemma_alignment.hooks.checks import check_parameters, configured_parameters, free_inputs, path_of
from gemma_alignment.hooks.feasible import check_shares
from gemma_alignment.hooks.inputs import check_inputs
from gemma_alignment.hooks.left import check_left
from gemma_alignment.hooks.options import Options
from gemma_alignment.hooks.provenance import command, git_commit
from gemma_alignment.hooks.signals import Signals
from gemma_alignment.hooks.store import anchor
from gemma_alignment.hooks.tracking import Tracking
from gemma_alignment.hooks.work import Work, stage_name, works
from gemma_alignment.hooks.working_copy import working_copy
from gemma_alignment.redaction import keep_secret, scrub_error, watch_logs

logger = logging.getLogger(__name__)

KEPT = ("report", "comparison", "report_figures")
"""Datasets whose files are kept with the study's run."""
RAW = "preferences_raw"
"""The data that everything is made from: an input of the run that wrote it down."""
PAIRS, JUDGED = "answer_pairs", "judgements"
"""What the judge was asked, and what it said: a few calls are kept as traces."""
SUMMARY = "study_metrics"
"""The dataset whose numbers are logged to the study's run."""
COUNTS = "row_counts"
"""The dataset whose numbers are logged to the run of the stage that makes it."""


class Session:
    """What the hooks of one session share."""

    def __init__(self, context: Any, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        self.catalog = catalog
        parameters = catalog.load("parameters")
        given = run_params.get("runtime_params") or {}
        check_parameters(parameters, configured_parameters(context.config_loader), given)
        self.signals = Signals()
        self.copy = working_copy(pipeline, catalog, parameters, self.signals.stop)
        self.copy.begin()
        try:
            self._check(context, run_params, pipeline, parameters, given)
        except BaseException:
            self.copy.finish(False)
            raise

    def _check(self, context: Any, run_params: Any, pipeline: Any, parameters: Any, given: dict[str, Any]) -> None:
        """Refuse what cannot go well, now that all that there is is here."""
        from kedro.framework.project import pipelines

        catalog = self.catalog
        options = Options.of(run_params.get("env"), given)
        self.works = works(pipeline, pipelines, parameters, context.project_path, options)
        for work in self.works.values():
            work.check_feasible(catalog)
        check_shares(parameters, [work.stage for work in self.works.values()])
        check_inputs(pipeline, catalog, pipelines, options.typed())
        for work in self.works.values():
            work.check(catalog)
        check_left(self.works, catalog)
        is_default = not run_params.get("pipeline_names")
        self.tracking = Tracking(context, self.works, parameters, is_default)
        self.shelf = kept.Shelf(self.tracking)
        self._commit = git_commit(context.project_path)
        self._logs: list[tuple[RunLog, Work | None]] = []
        self._variant_kind = str(parameters["variant_kind"])
        self._pairs: Sequence[Mapping[str, Any]] = ()
        self._open = True
        atexit.register(self._abandon)

    def open(self) -> None:
        """Listen for signals and prepare the run that kedro-mlflow opens next."""
        watch_logs()
        self.signals.install()
        self.tracking.before_open()

    def enter(self, node: Node, inputs: dict[str, Any]) -> None:
        """Before a node: end the stages that are through, start its own, connect its log."""
        self._end_those_through()
        work = self._work(node)
        self.tracking.enter(work)
        if work is not None and work.record is None:
            tracked = {"mlflow_run_id": work.run_id, "mlflow_view": self.tracking.view}
            kind = self._variant_kind if work.stage.variant else ""
            work.start(self.catalog, commit=self._commit, command=command(), variant_kind=kind, **tracked)
            self.shelf.log_inputs(work.run_id, kept.inputs_of(free_inputs(work.full), self.catalog))
            self.copy.push()
        for value in inputs.values():
            if isinstance(value, RunLog):
                self._connect(value, work)
            elif isinstance(value, CheckpointStore):
                value.after_save = self.copy.push

    def leave(self, node: Node) -> None:
        """After a node; its outputs are not saved yet."""
        work = self._work(node)
        if work is not None:
            work.nodes.discard(node.name)

    def saved(self, name: str, data: Any) -> None:
        """Note which stage wrote, and keep with the study's run what sums it up."""
        for work in self.works.values():
            work.wrote(name, self.catalog)
        if name == SUMMARY:
            self.shelf.log_metrics(data, self.tracking.summary_run)
        elif name == COUNTS:
            self.shelf.log_metrics(data, self._run_that_makes(name))
        elif name == PAIRS:
            self._pairs = data
        elif name == JUDGED:
            self.shelf.log_calls(kept.sample(data, self._pairs), self._run_that_makes(name))
        elif name == RAW:
            self.shelf.log_inputs(self._run_that_makes(name), kept.inputs_of([name], self.catalog))
        elif (trained := kept.adapter(self.catalog.get(name))) is not None:
            self.shelf.log_artifact(trained, self._run_that_makes(name))
        elif name in KEPT and (path := path_of(self.catalog.get(name))) is not None:
            self.shelf.log_artifact(path, self.tracking.summary_run)

    def close(self, error: BaseException | None) -> None:
        """End every stage that began; kedro-mlflow then ends the session's own run."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self._abandon)
        self.signals.hold()
        self.tracking.regain()
        if error is None:
            self._end_those_through()
        status: Status = "killed" if self.signals.received else "failed"
        for work in self.works.values():
            self._end(work, "finished" if error is None else status, error)
        self._close_logs(None)
        self.tracking.before_close()

    def correct(self) -> None:
        """After kedro-mlflow ended its run, and called a stopped one FAILED."""
        self.tracking.after_close("KILLED" if self.signals.received else None)
        self.signals.restore()

    def _abandon(self) -> None:
        """The process ends without Kedro having said how: nothing may stay marked as running."""
        self.close(RuntimeError("the process ended before the run did"))
        self.tracking.abandon("KILLED" if self.signals.received else "FAILED")
        self.copy.finish(False)

    def _work(self, node: Node) -> Work | None:
        name = stage_name(node)
        return self.works.get(name) if name is not None else None

    def _run_that_makes(self, name: str) -> str | None:
        """The MLflow run of the stage that writes a dataset."""
        return next((work.run_id for work in self.works.values() if name in work.full.all_outputs()), None)

    def _connect(self, log: RunLog, work: Work | None) -> None:
        run_id = (work.run_id if work is not None else None) or self.tracking.run_id
        if self.tracking.is_on and run_id is not None:
            log.attach(self.tracking.client, run_id, continued=work is not None and run_id == work.continued)
        if all(log is not known for known, _ in self._logs):
            self._logs.append((log, work))

    def _end_those_through(self) -> None:
        for work in self.works.values():
            if not work.nodes:
                self._end(work, "finished", None)

    def _end(self, work: Work, status: Status, error: BaseException | None) -> None:
        if work.record is None or work.record.status != "running":
            return
        work.has_written |= any(log.has_begun for log, owner in self._logs if owner is work)
        self._close_logs(work)
        work.end(status, self.catalog, None if error is None else f"{type(error).__name__}: {error}")
        self.tracking.end(work, MLFLOW_STATUS[work.record.status])
        if error is None:
            self.copy.push()

    def _close_logs(self, work: Work | None) -> None:
        """Close the logs of one stage, or all of them."""
        for log, owner in self._logs:
            if work is None or owner is work:
                log.close()
        self._logs = [(log, owner) for log, owner in self._logs if work is not None and owner is not work]


class Before:
    """Runs before the hooks of kedro-mlflow."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._context: Any = None

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: Any) -> None:
        """Let a relative store mean the one at the project's root."""
        self._context = context
        leave_out_advice()
        anchor(context)

    @hook_impl(tryfirst=True)
    def after_catalog_created(self, conf_creds: dict[str, Any]) -> None:
        """Credentials of a file are as secret as those of the environment."""
        keep_secret(conf_creds)

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Refuse what cannot go well, while nothing is open yet."""
        self.session = None
        self.session = Session(self._context, run_params, pipeline, catalog)
        self.session.open()

    @hook_impl(tryfirst=True)
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Make the node's stage the one that is logged to."""
        if self.session is not None:
            self.session.enter(node, inputs)

    @hook_impl(tryfirst=True)
    def after_node_run(self, node: Node) -> None:
        """Count the node as run."""
        if self.session is not None:
            self.session.leave(node)

    @hook_impl(tryfirst=True)
    def on_node_error(self, error: Exception, node: Node) -> None:
        """Say which node it was; the command line says what happened. Others write the error down: no secret in it."""
        scrub_error(error)
        logger.error("Node %s failed.", node.name)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Keep the report and the study's numbers in MLflow."""
        if self.session is not None:
            self.session.saved(dataset_name, data)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """End the stages."""
        if self.session is not None:
            self.session.close(None)

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """End the stages as failed, or as killed after a signal; a dataset's error has come by no node."""
        scrub_error(error)
        if self.session is not None:
            self.session.close(error)


class After:
    """Runs after the hooks of kedro-mlflow."""

    def __init__(self, before: Before) -> None:
        self._before = before

    @hook_impl(wrapper=True)
    def before_pipeline_run(self) -> Iterator[None]:
        """Learn which run was opened; where none could be, signals act as before."""
        try:
            yield
        except BaseException:
            if self._before.session is not None:
                self._before.session.signals.restore()
            raise
        if self._before.session is not None:
            self._before.session.tracking.after_open()

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Everything is written down: signals act as before."""
        if self._before.session is not None:
            try:
                self._before.session.copy.finish(True)
            finally:
                self._before.session.signals.restore()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """A stopped run is KILLED."""
        if self._before.session is not None:
            self._before.session.correct()
            self._before.session.copy.finish(False)


def hooks() -> tuple[Before, After]:
    """The hooks of this project, for the settings."""
    before = Before()
    return before, After(before)
