"""The project as a study sees it before anything runs: parameters, checks, what is done already."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemma_alignment.hooks.checks import check_parameters, configured_parameters
from gemma_alignment.hooks.work import works
from gemma_alignment.stages import PREPARATION
from gemma_alignment.study.plan import Plan, Run, nested


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

    @classmethod
    def open(cls, project: Path, plan: Plan) -> Self:
        """Load Kedro's context for ``plan``; kedro-mlflow sets up the store and the experiment."""
        import mlflow
        from kedro.framework.session import KedroSession

        with KedroSession.create(
            project, env=plan.env, runtime_params=nested(plan.params), save_on_close=False
        ) as session:
            context: Any = session.load_context()  # type: ignore[attr-defined]
            parameters = context.params
            name = context.mlflow.tracking.experiment.name
            experiment = mlflow.set_experiment(name)
            return cls(
                path=Path(context.project_path),
                data_root=Path(context.project_path) / parameters["data_root"],
                parameters=parameters,
                catalog=context.catalog,
                experiment_id=experiment.experiment_id,
            )

    def left_to_prepare(self) -> tuple[str, ...]:
        """The preparation stages from the first one on that is not done under these parameters.

        Raises:
            UserError: where such a stage would write over a finished run of something else.
        """
        stale: list[str] = []
        made: frozenset[str] = frozenset()
        for name in PREPARATION:
            work = self._work(name, {})
            if stale or not work.is_current(self.catalog):
                stale.append(name)
                dataclasses.replace(work, made_here=made).check(self.catalog, self._overwrite)
                made |= work.full.all_outputs()
        return tuple(stale)

    def check(self, run: Run, after: tuple[str, ...]) -> None:
        """Refuse an arm that would write over a finished run of something else.

        ``after`` are the stages that will run first: what they make cannot be compared yet.
        """
        from kedro.framework.project import pipelines

        made = frozenset(name for stage in after for name in pipelines[stage].all_outputs())
        for name in run.pipelines:
            work = dataclasses.replace(self._work(name, run.params), made_here=made)
            work.check(self.catalog, self._overwrite)

    @property
    def _overwrite(self) -> bool:
        return bool(self.parameters["overwrite"])

    def _work(self, name: str, params: Mapping[str, Any]) -> Any:
        from kedro.framework.project import pipelines

        seeded = {**self.parameters, **{key: params[key] for key in ("seed", "variant") if key in params}}
        return works(pipelines[name], pipelines, seeded, self.path)[name]
