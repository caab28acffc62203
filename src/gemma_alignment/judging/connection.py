"""The handle through which a node reaches a judge: it knows where files lie and holds the secret."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from gemma_alignment.errors import UserError
from gemma_alignment.judging.batch_session import BatchSession
from gemma_alignment.judging.batches import Batches
from gemma_alignment.judging.budget import SpendLedger, price_of
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.client import Judge
from gemma_alignment.judging.openai_judge import OpenAIJudge
from gemma_alignment.judging.recorded import RecordedJudge
from gemma_alignment.judging.rubric import RubricJudge
from gemma_alignment.judging.service import OPENAI, Service
from gemma_alignment.judging.session import Session
from gemma_alignment.parameters.judge import JudgeParameters


class JudgeConnection:
    """Makes the judge that the parameters describe; what must not be seen stays in here.

    Args:
        cache_path: the file of replies that were paid for; the record of spending lies beside it.
        api_key: of the service; never shown, logged or stored.
    """

    def __init__(self, cache_path: str | Path, api_key: str | None = None) -> None:
        self._cache_path = Path(cache_path)
        self._api_key = api_key

    def __repr__(self) -> str:
        """Says whether there is a key, not which."""
        return f"JudgeConnection({str(self._cache_path)!r}, api_key={'set' if self._api_key else 'not set'})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or written anywhere: the key would go along."""
        raise TypeError("a JudgeConnection holds a secret: it is neither copied nor serialised")

    def cache(self) -> ReplyCache:
        """The replies that were paid for."""
        return ReplyCache(self._cache_path)

    def check(self, parameters: JudgeParameters) -> None:
        """Refuse a judge that could not be asked, before anything is trained or written for it.

        Raises:
            UserError: a key or a file is missing, or the model has no price.
        """
        if parameters.kind == "recorded" and parameters.recorded_path is not None:
            RecordedJudge(parameters.recorded_path)
        elif parameters.kind == "openai":
            self._check_key(parameters)
            price_of(parameters)

    def judge(self, parameters: JudgeParameters, score: Callable[[str, str], float] | None = None) -> Judge:
        """The judge of ``parameters.kind``, which is by now "rubric", "openai" or "recorded".

        Args:
            parameters: section ``judge``.
            score: the quality of a response to a prompt; the rubric alone needs it.

        Raises:
            UserError: a key or a file is missing, or the model has no price.
        """
        if parameters.kind == "rubric" and score is not None:
            rubric = parameters.rubric
            return RubricJudge(
                score,
                noise=rubric.noise,
                position_bias=rubric.position_bias,
                tie_margin=rubric.tie_margin,
                seed=parameters.seed,
            )
        if parameters.kind == "recorded" and parameters.recorded_path is not None:
            return RecordedJudge(parameters.recorded_path)
        if parameters.kind == "openai":
            return self._openai(parameters)
        raise ValueError(f"there is no judge of kind {parameters.kind!r}")

    def session(
        self,
        parameters: JudgeParameters,
        score: Callable[[str, str], float] | None = None,
        skip_identical: bool = True,
    ) -> Session:
        """A session with that judge: cached, several requests at a time or in batches, if it costs money.

        A session that sends one by one waits for batches too: what they hold is paid for.
        """
        judge = self.judge(parameters, score)
        if not isinstance(judge, OpenAIJudge):
            return Session(judge, None, concurrency=1, attempts=1, skip_identical=skip_identical)
        cache, remote = self.cache(), parameters.remote
        path = self._cache_path.with_suffix(".batches.jsonl")
        batches = Batches(judge, cache, path, remote.batch_size, remote.batch_poll_s, remote.timeout_s)
        if parameters.mode == "live":
            return Session(judge, cache, remote.concurrency, parameters.attempts, skip_identical, batches)
        return BatchSession(judge, cache, 1, parameters.attempts, skip_identical, batches=batches)

    def _check_key(self, parameters: JudgeParameters) -> None:
        official = urlsplit(OPENAI).hostname
        if not self._api_key and urlsplit(parameters.base_url or OPENAI).hostname == official:
            raise UserError(
                "judge.kind is openai, and OPENAI_API_KEY is not set in the environment. Set it, name a "
                "compatible service that needs no key in judge.base_url, or set judge.kind=none."
            )

    def _openai(self, parameters: JudgeParameters) -> Judge:
        self._check_key(parameters)
        remote = parameters.remote
        cap = math.inf if remote.spend_cap_usd is None else remote.spend_cap_usd
        ledger = SpendLedger(self._cache_path.with_suffix(".spend.jsonl"), cap)
        return OpenAIJudge(Service(self._api_key or "no-key-needed", parameters), parameters, ledger)
