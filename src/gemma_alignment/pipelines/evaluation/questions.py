"""What a judge is asked, and who that judge is: the pairs, and the questions that show what it is worth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from gemma_alignment.errors import UserError
from gemma_alignment.judging.canaries import canaries
from gemma_alignment.judging.client import Request, digest
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.labelled import Label, labelled_comparisons
from gemma_alignment.judging.session import Comparison, Session
from gemma_alignment.parameters.judge import JudgeParameters
from gemma_alignment.pipelines.evaluation.people import labelled_rows

Row = Mapping[str, Any]
REPEAT_SEED = 1000
"""Added to the seed where a judgement is repeated: beyond the seeds of further attempts."""
EffectiveKind = Literal["rubric", "openai", "recorded", "none"]


def effective_kind(settings: JudgeParameters, pairs: Sequence[Row]) -> tuple[EffectiveKind, str | None]:
    """What ``judge.kind`` comes to for these answers, and why there is no judge where there is none."""
    has_gold = bool(pairs) and all(pair["has_gold"] for pair in pairs)
    if settings.kind == "none":
        return "none", "judge.kind is none"
    if settings.kind == "auto":
        if has_gold:
            return "rubric", None
        return "none", (
            "judge.kind is auto and these answers have no gold score; for the verdicts of a language model "
            "set judge.kind=openai, and OPENAI_API_KEY in the environment"
        )
    if settings.kind == "rubric" and not has_gold:
        raise UserError(
            "judge.kind is rubric, but these answers have no gold score: only the generated world knows "
            "the true quality of an answer. Set judge.kind to openai, recorded or none."
        )
    return settings.kind, None


def another_seed(settings: JudgeParameters) -> JudgeParameters:
    """Those under which pairs are judged a second time."""
    return replace(settings, seed=settings.seed + REPEAT_SEED)


def drawn_again(pairs: Sequence[Row], settings: JudgeParameters) -> list[Comparison]:
    """The pairs that are judged a second time, drawn by a hash of their names."""
    told_apart = [pair for pair in pairs if pair["answer_a"] != pair["answer_b"]]
    by_name = sorted(told_apart, key=lambda pair: digest(pair["system_a"], pair["system_b"], pair["prompt_id"]))
    drawn: dict[tuple[str, ...], Row] = {}
    for pair in by_name:  # the same texts of two runs are one question
        drawn.setdefault((pair["prompt"], *sorted((pair["answer_a"], pair["answer_b"]))), pair)
    return compared(list(drawn.values())[: settings.repeats])


def labelled_by_people(settings: JudgeParameters) -> list[tuple[Comparison, Label]]:
    """The pairs with a label of people; none without a file of them."""
    if settings.labelled_path is None:
        return []
    return labelled_comparisons(labelled_rows(settings.labelled_path), settings.labelled_pairs)


def compared(pairs: Sequence[Row]) -> list[Comparison]:
    """The pairs as a session takes them."""
    names = [field.name for field in fields(Comparison)]
    return [Comparison(**{name: pair[name] for name in names}) for pair in pairs]


def session_of(
    connection: JudgeConnection, settings: JudgeParameters, kind: EffectiveKind, skip_identical: bool = True
) -> Session:
    """A session with the judge of this kind."""
    score = _gold_score() if kind == "rubric" else None
    return connection.session(replace(settings, kind=kind), score, skip_identical)


def unanswered(
    pairs: Sequence[Row], preferences: Iterable[Row], connection: JudgeConnection, settings: JudgeParameters
) -> list[Request]:
    """What a language model is going to be asked in all: pairs, questions, repeats and labelled pairs, each once."""
    asked = (
        (settings, compared(pairs), True),
        (settings, canaries(preferences, settings.canaries), False),
        (another_seed(settings), drawn_again(pairs, settings), True),
        (settings, [comparison for comparison, _ in labelled_by_people(settings)], True),
    )
    requests: dict[str, Request] = {}
    for parameters, comparisons, skip_identical in asked:
        requests |= session_of(connection, parameters, "openai", skip_identical).unanswered(comparisons)
    return list(requests.values())


def _gold_score() -> Callable[[str, str], float]:
    from gemma_alignment.world.gold import gold_score

    return gold_score
