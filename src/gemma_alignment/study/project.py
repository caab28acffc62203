"""The project as a study sees it before anything runs: parameters, checks, what is done already."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemma_alignment.dotted import merged, nested
from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.hooks.checks import check_parameters, configured_parameters
from gemma_alignment.hooks.options import Options
from gemma_alignment.hooks.work import works
from gemma_alignment.redaction import watch_logs
from gemma_alignment.stages import PREPARATION, kinds_of
from gemma_alignment.storage.address import folder_under
from gemma_alignment.study.going_on import going_on
from gemma_alignment.study.plan import Plan, Run


def read_parameters(project: Path, env: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters under ``env`` with the dotted ``params`` merged in, checked; no store is touched.

    Raises:
        UserError: for a parameter that is unknown, missing or wrong.
    """
    from kedro.config import OmegaConfigLoader
    from kedro.framework.project import settings

    given = nested(params)
    loader = OmegaConfigLoader(
        str(project / settings.CONF_SOURCE), env=env, runtime_params=given, **settings.CONFIG_LOADER_ARGS
    )
    parameters: dict[str, Any] = loader["parameters"]
    check_parameters(parameters, configured_parameters(loader), given)
    return parameters


@dataclass(frozen=True)
class Opened:
    """The project with its MLflow store ready: migrated once, before any process starts."""

    path: Path
    data_root: Path
    parameters: Mapping[str, Any]
    catalog: Any
    experiment_id: str
    options: Options

    @classmethod
    def open(cls, project: Path, plan: Plan | Run) -> Self:
        """Load Kedro's context for a plan or a run; kedro-mlflow sets up the store and the experiment."""
        import mlflow
        from kedro.framework.session import KedroSession

        with KedroSession.create(
            project, env=plan.env, runtime_params=nested(plan.params), save_on_close=False
        ) as session:
            context: Any = session.load_context()  # type: ignore[attr-defined]
            watch_logs()  # of the libraries that came with it
            parameters = context.params
            name = context.mlflow.tracking.experiment.name
            experiment = mlflow.set_experiment(name)
            return cls(
                path=Path(context.project_path),
                data_root=folder_under(context.project_path, parameters["data_root"]),
                parameters=parameters,
                catalog=context.catalog,
                experiment_id=experiment.experiment_id,
                options=Options.of(plan.env, plan.params),
            )

    def left_to_prepare(self, resume: bool, is_at_work: bool = False) -> tuple[str, ...]:
        """The preparation stages from the first one on that is not done under these parameters.

        ``resume``: whether they are to go on with interrupted ones; ``is_at_work``: whether an earlier study's process
        of them is waited for.

        Raises:
            UserError: where such a stage would write over a finished run of something else, or lose a checkpoint.
        """
        stale: list[str] = []
        made: frozenset[str] = frozenset()
        for name in PREPARATION:
            work = self._work(name, {"resume": resume})
            if stale or not work.is_current(self.catalog):
                stale.append(name)
                work.check_given(self.catalog)
                _check(dataclasses.replace(work, made_here=made), self.catalog, is_at_work)
                made |= work.full.all_outputs()
        return tuple(stale)

    def check(self, run: Run, after: tuple[str, ...], is_at_work: bool = False) -> None:
        """Refuse an arm that would write over a finished run of something else.

        ``after`` are the stages that will run first: what they make cannot be compared yet. ``is_at_work``: whether an
        earlier study's process of the arm is waited for.
        """
        from kedro.framework.project import pipelines

        made = frozenset(name for stage in after for name in pipelines[stage].all_outputs())
        for name in run.pipelines:
            _check(dataclasses.replace(self._work(name, run.params), made_here=made), self.catalog, is_at_work)

    def is_done(self, run: Run) -> bool:
        """Whether a finished run of the same configuration and inputs stands there, outputs and all."""
        own = Opened.open(self.path, run)
        return all(own._work(name, {}).is_current(own.catalog) for name in run.pipelines)

    def label(self, run: Run) -> bool:
        """Let the records of a run that is reused say what it is asked for as now, too; whether they had to be changed.

        An ablation of yesterday is a value of today's sweep, and no reason to train it again.
        """
        changed = False
        for stage in run.stages:
            directory = stage.directory(self.data_root)
            record = Record.read(directory)
            if record is None:
                continue
            kind = kinds_of(record.variant_kind, run.params.get("variant_kind"))
            if kind != record.variant_kind:
                dataclasses.replace(record, variant_kind=kind).write(directory)
                changed = True
        return changed

    def left(self, plan: Plan) -> list[Run]:
        """What resuming ``plan`` would start; arms count as left while their inputs have to be made.

        Raises:
            UserError: for what resuming would refuse.
        """
        stale = self.left_to_prepare(resume=True)
        arms = [self.going_on(run) for run in plan.arms if stale or not self.is_done(run)]
        for arm in arms:
            self.check(arm, stale)
        preparation = [self.going_on(Run(stale, plan.params, plan.env))] if stale else []
        is_over = not stale and not arms and self.is_done(plan.closing)
        return [*preparation, *arms, *([] if is_over else [self.going_on(plan.closing)])]

    def records(self, runs: Iterable[Run]) -> list[Record]:
        """What the stages of ``runs`` say of themselves, those that began."""
        found = [Record.read(stage.directory(self.data_root)) for run in runs for stage in run.stages]
        return [record for record in found if record is not None]

    def going_on(self, run: Run) -> Run:
        """The run on from what an interrupted attempt left."""
        return going_on(run, self.data_root)

    def _work(self, name: str, params: Mapping[str, Any]) -> Any:
        from kedro.framework.project import pipelines

        own = merged(self.parameters, nested(params))
        return works(pipelines[name], pipelines, own, self.path, self.options)[name]


def _check(work: Any, catalog: Any, is_at_work: bool) -> None:
    """Refuse a start that would lose something, or to wait for a process that makes something else.

    Raises:
        UserError: with the differences.
    """
    if not is_at_work or work.previous is None or work.previous.status != "running":
        work.check(catalog)
    elif others := work.deviations():
        raise UserError(
            f"{work.directory} is being written by {work.previous.host}, for an earlier study of something else:\n"
            + "".join(f"  {line}\n" for line in others)
            + "Stop that one, or give this one a folder of its own with --params data_root=FOLDER"
        )
