"""Pair the answers of finished runs, have them judged in both orders, and describe the judge."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Literal

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.judging.answers import Answers, join
from gemma_alignment.judging.canaries import canaries, canary_results
from gemma_alignment.judging.card import agreement_labels, judge_card, length_preference, repeated_verdicts
from gemma_alignment.judging.client import digest
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.labelled import against_labels, label_counts, labelled_comparisons
from gemma_alignment.judging.prompts import control_strings
from gemma_alignment.judging.references import yardstick
from gemma_alignment.judging.selection import System, check_shared_models, pair_systems, select_systems
from gemma_alignment.judging.session import Comparison, Session
from gemma_alignment.parameters.judge import EvaluationParameters, JudgeParameters
from gemma_alignment.pipelines.evaluation.people import labelled_rows, references
from gemma_alignment.report.runs import REWARD_MODEL, RunKey, baseline_fingerprints, parse_key

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Partitions = Mapping[str, Callable[[], Any]]
BROKEN = ("failed", "killed")
"""A run that ended so may have left the responses of an earlier one."""
REPEAT_SEED = 1000
"""Added to the seed where a judgement is repeated: beyond the seeds of further attempts."""
EffectiveKind = Literal["rubric", "openai", "recorded", "none"]


def select_pairs(
    responses: Partitions, run_cards: Partitions, parameters: Row, *finished: object
) -> list[dict[str, Any]]:
    """One row for every prompt that two systems to be compared have both answered.

    Args:
        responses: partition id (``ppo/seed=42/``) -> loader of its responses.
        run_cards: partition id -> loader of the run's ``run.json``.
        parameters: section ``evaluation``.
        finished: datasets that only had to be there first.

    Raises:
        UserError: nothing to compare, runs that rest on different models, or answers to
            different prompts under one id.
    """
    settings = build(EvaluationParameters, parameters, "evaluation")
    partitions = select_systems(list(responses), settings.methods, settings.seeds)
    cards = _cards(run_cards, partitions)
    systems = [system for system in partitions if cards[system].get("status") not in BROKEN]
    met = pair_systems(systems, settings.against_sft)
    taking_part = list(dict.fromkeys(system for pair in met for system in pair))
    prints = {system: cards[system].get("fingerprints") or {} for system in taking_part}
    check_shared_models({s: _of_baseline(run_cards) if s.seed is None else found for s, found in prints.items()})
    answers = {system: Answers.of(system, responses[partitions[system]]()) for system in taking_part}
    pairs = []
    for a, b in met:
        pairs += join(answers[a], answers[b], settings.max_prompts, settings.prompt_seed)
    logger.info("%d pairs of answers from %d pairs of systems.", len(pairs), len(met))
    return pairs


def judge_pairs(pairs: Sequence[Row], judge: JudgeConnection, parameters: Row) -> list[dict[str, object]]:
    """Both orders of every pair, judged; no row at all where nothing can judge."""
    settings = build(JudgeParameters, parameters, "judge")
    kind, reason = _effective_kind(settings, pairs)
    if kind == "none":
        logger.warning("Nothing is judged: %s.", reason)
        return []
    return _session(judge, settings, kind).judgements(_comparisons(pairs))


def question_judge(
    preferences: Iterable[Row], pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *judged: object
) -> list[dict[str, object]]:
    """Questions with a known answer, put to the same judge by the same rules after the pairs are ``judged``."""
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = _effective_kind(settings, pairs)
    # A recorded judge knows only what it was asked when it was recorded.
    if kind in ("none", "recorded"):
        return []
    questions = canaries(preferences, settings.canaries)
    return _session(judge, settings, kind, skip_identical=False).judgements(questions)


def judge_again(
    pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *judged: object
) -> list[dict[str, object]]:
    """Some of the ``judged`` pairs judged once more with another seed, drawn by a hash of their names."""
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = _effective_kind(settings, pairs)
    if kind in ("none", "recorded"):
        return []
    told_apart = [pair for pair in pairs if pair["answer_a"] != pair["answer_b"]]
    drawn = sorted(told_apart, key=lambda pair: digest(pair["system_a"], pair["system_b"], pair["prompt_id"]))
    again = replace(settings, seed=settings.seed + REPEAT_SEED)
    return _session(judge, again, kind).judgements(_comparisons(drawn[: settings.repeats]))


def judge_labelled(
    pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *judged: object
) -> list[dict[str, object]]:
    """Pairs that people labelled, put to a language model after the others are ``judged``; each row with the ``label``.

    Raises:
        UserError: the file is not there, or holds no usable pair.
    """
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = _effective_kind(settings, pairs)
    if kind != "openai" or settings.labelled_path is None:
        return []
    asked = labelled_comparisons(labelled_rows(settings.labelled_path), settings.labelled_pairs)
    labels = {comparison.prompt_id: label for comparison, label in asked}
    rows = _session(judge, settings, kind).judgements([comparison for comparison, _ in asked])
    return [{**row, "label": labels[str(row["prompt_id"])]} for row in rows]


def describe_judge(
    judgements: Iterable[Row],
    canary_judgements: Iterable[Row],
    repeat_judgements: Iterable[Row],
    labelled_judgements: Iterable[Row],
    pairs: Sequence[Row],
    parameters: Row,
) -> dict[str, object]:
    """The judge's quality card: how it agrees with itself, with known answers, with people and with length."""
    from gemma_alignment.statistics.agreement import kappa

    settings = build(JudgeParameters, parameters, "judge")
    kind, reason = _effective_kind(settings, pairs)
    rows, canaries_asked, repeats, labelled = map(
        list, (judgements, canary_judgements, repeat_judgements, labelled_judgements)
    )
    labels, results = against_labels(labelled)
    return {
        "kind": kind,
        "reason": reason,
        "settings": _settings(settings, kind),
        **judge_card(rows),
        "kappa_between_orders": asdict(kappa(*agreement_labels(rows))),
        "repeat": {"asked": len(repeats), **asdict(kappa(*repeated_verdicts(rows, repeats)))},
        "people": {
            "asked": len(labelled) // 2,
            **yardstick(judge_card(labelled), label_counts(labels, results), asdict(kappa(labels, results))),
            "n": len(labels),
        },
        "references": references(settings.reference_path),
        "longer_answer": length_preference(rows, _lengths(pairs)),
        "canaries": canary_results(canaries_asked),
        "cost_of_questions": sum(row["cost"] for row in (*canaries_asked, *repeats, *labelled)),
        "control_strings": _control_strings(pairs),
    }


def _effective_kind(settings: JudgeParameters, pairs: Sequence[Row]) -> tuple[EffectiveKind, str | None]:
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


def _comparisons(pairs: Sequence[Row]) -> list[Comparison]:
    names = [field.name for field in fields(Comparison)]
    return [Comparison(**{name: pair[name] for name in names}) for pair in pairs]


def _session(
    connection: JudgeConnection, settings: JudgeParameters, kind: EffectiveKind, skip_identical: bool = True
) -> Session:
    score = _gold_score() if kind == "rubric" else None
    return connection.session(replace(settings, kind=kind), score, skip_identical)


def _gold_score() -> Callable[[str, str], float]:
    from gemma_alignment.world.gold import gold_score

    return gold_score


def _cards(run_cards: Partitions, systems: Iterable[System]) -> dict[System, Row]:
    """The ``run.json`` of each system, empty where there is none."""
    loaders = {System.of(partition): load for partition, load in run_cards.items()}
    cards = {system: loaders[system]() if system in loaders else {} for system in systems}
    unchecked = [system.name for system, card in cards.items() if not card and system.seed is not None]
    if unchecked:
        logger.warning("No run.json, so SFT and reward model go unchecked: %s.", ", ".join(unchecked))
    for system, card in cards.items():
        if card.get("status") in BROKEN:
            logger.warning("%s is left out: its run.json says %s.", system.name, card["status"])
    return cards


def _of_baseline(run_cards: Partitions) -> dict[str, str]:
    """The fingerprints behind the SFT model's own answers."""
    loaders = {parse_key(partition): load for partition, load in run_cards.items()}
    load = loaders.get(RunKey(REWARD_MODEL, None))
    return baseline_fingerprints(load()) if load else {}


def _settings(settings: JudgeParameters, kind: EffectiveKind) -> dict[str, object]:
    if kind == "rubric":
        return {"seed": settings.seed, **asdict(settings.rubric)}
    if kind == "openai":
        names = ("model", "base_url", "mode", "seed", "attempts")
        return {**{name: getattr(settings, name) for name in names}, **asdict(settings.remote)}
    return {"recorded_path": settings.recorded_path} if kind == "recorded" else {}


def _lengths(pairs: Sequence[Row]) -> dict[tuple[str, str, str], tuple[int, int]]:
    return {
        (pair["system_a"], pair["system_b"], pair["prompt_id"]): (
            len(pair["answer_a"]),
            len(pair["answer_b"]),
        )
        for pair in pairs
    }


def _control_strings(pairs: Sequence[Row]) -> dict[str, int]:
    """By system: answers that hold a text which speaks to a judge, each answer counted once."""
    answers = {(pair[f"system_{side}"], pair["prompt_id"]): pair[f"answer_{side}"] for pair in pairs for side in "ab"}
    counts = {system: 0 for system, _ in sorted(answers)}
    for (system, _), answer in answers.items():
        counts[system] += control_strings(answer) > 0
    return counts
