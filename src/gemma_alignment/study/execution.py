"""The whole of a study, by whatever engine: preparation, then the arms side by side, then evaluation and report."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from gemma_alignment.config import build
from gemma_alignment.errors import RunInterrupted
from gemma_alignment.fingerprints import Record
from gemma_alignment.hooks.feasible import check_device
from gemma_alignment.hooks.given import JUDGE, check_judge
from gemma_alignment.hooks.store import SCHEME, await_server, shown
from gemma_alignment.parameters.study import StudyParameters
from gemma_alignment.stages import PREPARATION
from gemma_alignment.storage.bucket import Unreachable
from gemma_alignment.storage.lease import STUDY
from gemma_alignment.storage.patience import patiently
from gemma_alignment.study.board import Board
from gemma_alignment.study.engine import Engine, Local, Site
from gemma_alignment.study.heartbeat import Heartbeat
from gemma_alignment.study.oversight import Oversight
from gemma_alignment.study.parent import ParentRun
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.processes import Child, environment
from gemma_alignment.study.project import Opened
from gemma_alignment.study.summary import summary


def run_study(
    project: Path, plan: Plan, workers: int | None, console: Console, resume: bool = False,
    engine: Callable[[Site], Engine] = Local, processes: int = 1, sight: Oversight | None = None,
) -> int:  # fmt: skip
    """Run the whole of ``plan``, or with ``resume`` what is not finished; the exit status: 0 when every run finished.

    ``processes`` train each policy; ``sight`` is of the bucket, where there is one. A run that fails does not stop the
    others; what finished is evaluated.

    Raises:
        UserError: before anything runs, for what would be refused later.
    """
    opened = Opened.open(project, plan)
    runtime = opened.parameters["runtime"]
    if engine is Local:  # a machine that only submits may have no GPU: each run looks where it starts
        check_device(opened.parameters)
    bucket = (None, None) if sight is None else (sight.address, sight.lease.mark)
    site = Site(opened.path, opened.data_root, runtime["device"], int(runtime["threads"]), processes, *bucket)
    with engine(site) as place:
        check_judge(opened.parameters, opened.catalog.load(JUDGE))
        place.check(plan)
        stale = opened.left_to_prepare(resume, place.has(plan.preparation))
        for arm in plan.arms:
            opened.check(opened.going_on(arm) if resume else arm, stale, place.has(arm))
        return _run(_Study(plan, opened, console, resume, place, processes, sight), stale, workers)


def _run(study: "_Study", stale: tuple[str, ...], workers: int | None) -> int:
    """All of it, whatever ends it; the exit status."""
    status = "FAILED"
    try:
        with _signals():
            status = "FINISHED" if study.run(stale, workers) else "FAILED"
    except RunInterrupted as error:
        status = "KILLED"
        study.console.print(f"{error.name}: stopping what runs …", highlight=False)
        study.engine.stop(study.children)
        return error.code
    finally:
        with _undisturbed():
            study.engine.stop(study.children)
            study.settle()
            study.parent.end(status)
        study.summarize(status)
    return 0 if status == "FINISHED" else 1


class _Study:
    """The processes of one study."""

    def __init__(
        self, plan: Plan, opened: Opened, console: Console, resume: bool, engine: Engine, processes: int,
        sight: Oversight | None,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._opened = opened
        self.console = console
        self._resume = resume
        self.engine = engine
        self._sight = sight
        methods, seeds = ",".join(plan.methods), ",".join(map(str, plan.seeds))
        tags = {"methods": methods, "seeds": seeds}
        if plan.variants:
            tags["variants"] = ",".join(f"{variant.method}@{variant.name}" for variant in plan.variants)
        name = f"study-{datetime.now():%Y%m%d-%H%M%S}"
        earlier = opened.records(plan.runs) if resume else []
        address = None if sight is None else sight.address
        self.parent = ParentRun(
            opened.path, opened.experiment_id, name, tags, opened.data_root, earlier, resume, address
        )
        self._variables = environment(self.parent.run_id, self.parent.name, self.parent.tracking_uri, processes)
        if sight is not None:
            self._variables[STUDY] = sight.lease.mark
        if not isinstance(engine, Local) and self.parent.tracking_uri.startswith(SCHEME):
            console.print("MLflow's store is a file: runs on several machines need a server, see docs/scaling.md")
        self.children: list[Child] = []
        self._started = time.monotonic()
        self._labelled = False
        """Whether a run that was finished is asked for as something else now: the report changes with it."""

    def run(self, stale: tuple[str, ...], workers: int | None) -> bool:
        """Every process in its order; whether all of them ended well."""
        self.console.print(f"{self.parent.name}: {len(self._plan.arms)} runs", highlight=False)
        output = self._opened.data_root / "07_model_output"
        prepare = self._going_on(Run(stale or PREPARATION, self._plan.params, self._plan.env))
        preparation = Child(prepare, output / "preparation.log", reused=not stale)
        whole = Run(PREPARATION, self._plan.params, self._plan.env)  # with the stages that are through already
        self.parent.settle(Child(whole, preparation.log, reused=True), self._opened.data_root)
        if not self._through([preparation], 1):
            return False
        arms = [self._arm(run) for run in self._plan.arms]
        all_well = self._through(arms, workers)
        if not any(arm.state in ("done", "reused") for arm in arms):
            return False
        nothing_new = self._resume and not self._labelled and all(child.reused for child in self.children)
        reused = nothing_new and self._is_done(self._plan.closing)
        closing = Child(self._going_on(self._plan.closing), output / "closing.log", reused=reused)
        return self._through([closing], 1) and all_well

    def _arm(self, run: Run) -> Child:
        """The process of an arm, which is not started where it has nothing to do: overwrite=true repeats it."""
        reused = not self._opened.parameters["overwrite"] and self._is_done(run)
        if reused:
            self._labelled |= self._opened.label(run)
            for stage in run.stages:
                record = Record.read(stage.directory(self._opened.data_root))
                self.parent.adopt(record.mlflow_run_id if record else None)
        log = run.stages[0].directory(self._opened.data_root) / "run.log"
        return Child(self._going_on(run), log, reused=reused)

    def _is_done(self, run: Run) -> bool:
        """Whether it need not be started; looking opens MLflow's store, so a server that is away is waited for."""
        await_server(self.parent.tracking_uri)
        return self._opened.is_done(run)

    def _going_on(self, run: Run) -> Run:
        return self._opened.going_on(run) if self._resume else run

    def _through(self, children: Sequence[Child], workers: int | None) -> bool:
        self.children += children
        root = self._opened.data_root
        iterations = int(self._opened.parameters["policy_optimization"]["num_iterations"])
        heartbeat = Heartbeat(build(StudyParameters, self._opened.parameters["study"], "study"), root)
        failed: list[Child] = []
        todo = [child for child in children if not child.reused]
        for each in children:
            self.parent.settle(each, root)  # what an outage kept from MLflow the last time
        with Board(children, root, iterations, self.console) as board:
            for child in self.engine.drive(todo, workers, self._variables):
                self._look(child is not None)
                board.refresh()
                for sentence in heartbeat.look(todo):
                    board.say(sentence)
                if child is not None:
                    self.parent.settle(child, root)
                    if child.state == "failed":
                        failed.append(child)
        if self._sight is not None and not isinstance(self.engine, Local):
            patiently(self._sight.gather, Unreachable)  # what the runs have made is there
        for child in failed:
            self._explain(child)
        return not failed

    def _look(self, at_once: bool) -> None:
        """What runs elsewhere have brought to the bucket, where there is one."""
        if self._sight is not None:
            self._sight.pulse.check()
            if not isinstance(self.engine, Local):
                self._sight.look(at_once)

    def settle(self) -> None:
        """Correct the ends of processes that were stopped."""
        for child in self.children:
            self.parent.settle(child, self._opened.data_root)
        if self._sight is not None:
            self._sight.bring()

    def summarize(self, status: str) -> None:
        """The last lines: what became of it, and where to look."""
        counts = {state: sum(child.state == state for child in self.children) for state in ("done", "failed")}
        root = self._opened.data_root
        if (root / "08_reporting" / "report.html").exists() and self.children[-1].state == "done":
            counts["closed"] = 1
        seconds = time.monotonic() - self._started
        self.console.print()
        for line in summary(
            self.parent.name, status, counts, seconds, self._plan, root, shown(self.parent.tracking_uri)
        ):
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        if self._sight is not None:
            self.console.print(f"Bucket:    {self._sight.address}", soft_wrap=True, highlight=False, markup=False)

    def _explain(self, child: Child) -> None:
        records = [Record.read(stage.directory(self._opened.data_root)) for stage in child.run.stages]
        errors = [one.error for one in records if one and child.wrote(one) and one.error] or [child.end]
        self.console.print(f"\n[red]{child.run.label} failed[/red]  {'; '.join(errors)}", soft_wrap=True)
        for line in child.tail().splitlines():
            self.console.print(f"  │ {line}", markup=False, highlight=False, soft_wrap=True)
        self.console.print(f"  its output: {child.log}", highlight=False, soft_wrap=True)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise RunInterrupted inside the block."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise RunInterrupted(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait until what must be written is written: it takes seconds."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
