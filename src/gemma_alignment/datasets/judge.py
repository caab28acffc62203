"""The judge as a catalog entry: loading gives the handle, saving is refused."""

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from gemma_alignment.judging.connection import JudgeConnection


class JudgeDataset(AbstractDataset[NoReturn, JudgeConnection]):
    """Gives nodes the handle to a judge and keeps the key away from everything else.

    Example of a catalog entry::

        judge:
          type: gemma_alignment.datasets.judge.JudgeDataset
          filepath: data/07_model_output/judge_cache.jsonl
          credentials: openai
    """

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Remember where replies are kept and with which key they are asked for.

        Args:
            filepath: the file of replies that were paid for; what was spent is written beside it.
            credentials: ``api_key``, None where the environment has none.
            metadata: for Kedro-Viz; not used here.
        """
        self._filepath = Path(filepath)
        self._credentials = dict(credentials or {})
        self.metadata = metadata

    def load(self) -> JudgeConnection:
        """The handle; which judge it makes is said by the parameters."""
        return JudgeConnection(self._filepath, self._credentials.get("api_key"))

    def save(self, data: NoReturn) -> None:
        """Refuse: a judge is asked, not written."""
        raise DatasetError("a judge cannot be saved; its verdicts are the entry `judgements`")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        # The credentials stay out: this is what logs, errors and Kedro-Viz show.
        return {"filepath": str(self._filepath)}
