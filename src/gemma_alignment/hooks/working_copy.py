"""The working folder of a session whose data are in a bucket: what it needs comes here, what it makes goes there."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline

from gemma_alignment.datasets.judge import JudgeDataset
from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record, now
from gemma_alignment.hooks.checks import free_inputs, path_of
from gemma_alignment.hooks.provenance import command
from gemma_alignment.hooks.work import in_session
from gemma_alignment.stages import PREPARATION, Stage
from gemma_alignment.storage.address import is_bucket
from gemma_alignment.storage.bucket import Unreachable
from gemma_alignment.storage.lease import LEASE, STUDY, Lease, Lost, Pulse, owner
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.storage.names import LOG, RECORD, group_of
from gemma_alignment.storage.patience import PATIENCE, patiently

logger = logging.getLogger(__name__)

PAID = (".jsonl", ".spend.jsonl", ".batches.jsonl")
"""What a judge's files end in: replies, what was spent, batches that are under way."""


class Folder:
    """Data in a folder: nothing comes, and nothing goes."""

    def begin(self) -> None:
        """Nothing to bring here."""

    def push(self) -> None:
        """Nothing to bring there."""

    def finish(self, is_well: bool) -> None:
        """Nothing to let go of."""


class WorkingCopy(Folder):
    """What one session has of a bucket, and its leases on the stages that it makes."""

    def __init__(
        self, mirror: Mirror, pipeline: Pipeline, catalog: Any, parameters: Mapping[str, Any],
        lost: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._mirror = mirror
        self._stages = [Stage.of(name, parameters) for name in in_session(pipeline)]
        self._folders = [stage.directory(mirror.folder) for stage in self._stages]
        self._own = {group_of(name) for name in map(mirror.name_of, self._folders) if name}
        self._needs: list[tuple[str, str]] = []
        for name in pipeline.all_outputs():
            self._own |= {group_of(place) for place, _ in self._places(catalog.get(name))}
        for name in free_inputs(pipeline):
            dataset = catalog.get(name)
            self._needs += self._places(dataset)
            if isinstance(dataset, JudgeDataset):
                replies = [place.removesuffix(PAID[0]) for place, _ in self._places(dataset)]
                self._own |= {group_of(place + end) for place in replies for end in PAID}
        makers = (Stage.of(name, parameters).directory(mirror.folder) / RECORD for name in PREPARATION)
        self._needs += [(name, "") for name in map(mirror.name_of, makers) if name]
        self._leases: list[Lease] = []
        self._is_here = False
        """Whether what stands in the bucket is here: before that, nothing of this machine belongs there."""
        self._is_told = False
        self._pulse = Pulse(self._leases, self._push_lines, lost)

    def begin(self) -> None:
        """Take the stages, bring here what is needed and there what is newer here.

        A run of a study waits for a bucket that is away: it was there when the study began.

        Raises:
            UserError: for a bucket without rights, and a stage that another process makes.
        """
        seconds = PATIENCE if STUDY in os.environ else 0.0
        try:
            patiently(self._mirror.bucket.check, seconds=seconds)
            for stage in self._stages:
                name = f"{self._mirror.name_of(stage.directory(self._mirror.folder))}/{LEASE}"
                facts = owner(since=now(), command=command())
                what = f"{stage.run_name} is being made in {self._mirror.bucket.address}"
                self._leases.append(Lease.take(self._mirror.bucket, name, facts, what, seconds))
            self._mirror.claim(self._own)
            patiently(partial(self._mirror.pull, self._is_needed), seconds=seconds)
            for folder in self._folders:
                record = Record.read(folder)
                if record is not None and record.status == "running":  # whoever wrote it has the stage no more
                    record.end("failed", f"its process {record.pid} on {record.host} was lost").write(folder)
            patiently(partial(self._mirror.push, self._own, before=self._check), seconds=seconds)
            self._is_here = True
        except BaseException:
            self._let_go()
            raise

    def push(self) -> None:
        """Bring there what was made since; a bucket that does not answer is tried again with the next push.

        Raises:
            Lost: when another process has taken over.
        """
        try:
            self._push()
        except Unreachable as error:
            if not self._is_told:
                logger.warning("%s The run goes on, and brings its files there when it can", error)
            self._is_told = True

    def finish(self, is_well: bool) -> None:
        """Bring there what is left, and let go; a run that went well insists. The second time nothing is left to do.

        Raises:
            UserError: when the bucket does not take it; what was made is here.
        """
        if not self._is_here:
            return
        try:
            self._insist() if is_well else self.push()
        except Lost:
            if is_well:
                raise
        finally:
            self._let_go()

    def _insist(self) -> None:
        try:
            patiently(self._push, Unreachable)
        except Unreachable as error:
            raise UserError(
                f"{error}\nAll that was made is in {self._mirror.folder}: the same command, or kedro study --resume, "
                "on this machine brings it to the bucket when that answers, unless another one has gone on with it."
            ) from error

    def _push(self) -> None:
        self._check()
        self._mirror.push(self._own, before=self._check)
        self._is_told = False

    def _check(self) -> None:
        """Before each object: a lease may be lost while the others are on their way."""
        self._pulse.check()
        for lease in self._leases:
            lease.check()

    def _push_lines(self) -> None:
        """At each beat: a judge's reply is in the bucket that many seconds after it came."""
        if self._is_here:
            self._mirror.push(self._own, only_grown=True, before=self._check)

    def _let_go(self) -> None:
        self._is_here = False
        self._pulse.end()
        self._mirror.close()

    def _places(self, dataset: Any) -> list[tuple[str, str]]:
        """Name and ending of what a dataset reads or writes here; nothing for one that is elsewhere."""
        path = path_of(dataset) if dataset is not None else None
        name = None if path is None else self._mirror.name_of(Path(path))
        return [] if name is None else [(name, str(getattr(dataset, "_filename_suffix", "") or ""))]

    def _is_needed(self, name: str) -> bool:
        if name.endswith(LOG):  # of this process or an earlier one: whoever started it holds it open
            return False
        return group_of(name) in self._own or any(
            name == place or (name.startswith(f"{place}/") and name.endswith(end)) for place, end in self._needs
        )


def working_copy(
    pipeline: Pipeline, catalog: Any, parameters: Mapping[str, Any], lost: Callable[[str], None]
) -> Folder:  # fmt: skip
    """That of a session; ``lost`` is called, in another thread, once another process makes one of its stages."""
    root = str(parameters["data_root"])
    return WorkingCopy(Mirror(root), pipeline, catalog, parameters, lost) if is_bucket(root) else Folder()
