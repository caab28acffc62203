"""Pair the answers of finished runs, have them judged in both orders, and describe the judge."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.judging.answers import Answers, join
from gemma_alignment.judging.canaries import canaries, canary_results
from gemma_alignment.judging.card import agreement_labels, judge_card, length_preference, repeated_verdicts
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.labelled import against_labels, label_counts
from gemma_alignment.judging.prompts import control_strings
from gemma_alignment.judging.questions import distinct, question, total
from gemma_alignment.judging.references import yardstick
from gemma_alignment.judging.selection import System, check_shared_models, pair_systems, select_systems
from gemma_alignment.parameters.judge import EvaluationParameters, JudgeParameters
from gemma_alignment.pipelines.evaluation.people import references
from gemma_alignment.pipelines.evaluation.questions import (
    EffectiveKind,
    another_seed,
    compared,
    drawn_again,
    effective_kind,
    labelled_by_people,
    session_of,
    unanswered,
)
from gemma_alignment.report.runs import REWARD_MODEL, RunKey, baseline_fingerprints, parse_key

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Partitions = Mapping[str, Callable[[], Any]]
BROKEN = ("failed", "killed")
"""A run that ended so may have left the responses of an earlier one."""


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


def estimate_cost(
    pairs: Sequence[Row], preferences: Iterable[Row], judge: JudgeConnection, parameters: Row
) -> dict[str, object]:
    """Price all that the nodes below are going to ask a language model, before any of them asks.

    Returns:
        ``requests``: how many no file has an answer to. A reply that does not parse costs a further one.

    Raises:
        UserError: all of it together will not fit under the cap.
    """
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = effective_kind(settings, pairs)
    if kind != "openai":
        return {"requests": 0}
    requests = unanswered(pairs, preferences, judge, settings)
    judge.judge(settings).prepare(requests)
    return {"requests": len(requests)}


def judge_pairs(
    pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *estimated: object
) -> list[dict[str, object]]:
    """Both orders of every pair, judged after the cost is ``estimated``; no row at all where nothing can judge."""
    settings = build(JudgeParameters, parameters, "judge")
    kind, reason = effective_kind(settings, pairs)
    if kind == "none":
        logger.warning("Nothing is judged: %s.", reason)
        return []
    return session_of(judge, settings, kind).judgements(compared(pairs))


def question_judge(
    preferences: Iterable[Row], pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *judged: object
) -> list[dict[str, object]]:
    """Questions with a known answer, put to the same judge by the same rules after the pairs are ``judged``."""
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = effective_kind(settings, pairs)
    # A recorded judge knows only what it was asked when it was recorded.
    if kind in ("none", "recorded"):
        return []
    questions = canaries(preferences, settings.canaries)
    return session_of(judge, settings, kind, skip_identical=False).judgements(questions)


def judge_again(
    pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *judged: object
) -> list[dict[str, object]]:
    """Some of the ``judged`` pairs judged once more with another seed, drawn by a hash of their names."""
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = effective_kind(settings, pairs)
    if kind in ("none", "recorded"):
        return []
    return session_of(judge, another_seed(settings), kind).judgements(drawn_again(pairs, settings))


def judge_labelled(
    pairs: Sequence[Row], judge: JudgeConnection, parameters: Row, *judged: object
) -> list[dict[str, object]]:
    """Pairs that people labelled, put to a language model after the others are ``judged``; each row with the ``label``.

    Raises:
        UserError: the file is not there, or holds no usable pair.
    """
    settings = build(JudgeParameters, parameters, "judge")
    kind, _ = effective_kind(settings, pairs)
    if kind != "openai" or settings.labelled_path is None:
        return []
    asked = labelled_by_people(settings)
    labels = {comparison.prompt_id: label for comparison, label in asked}
    rows = session_of(judge, settings, kind).judgements([comparison for comparison, _ in asked])
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
    kind, reason = effective_kind(settings, pairs)
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
        "repeat": {"asked": len(distinct(repeats)), **asdict(kappa(*repeated_verdicts(rows, repeats)))},
        "people": {
            "asked": len(labelled) // 2,
            **yardstick(judge_card(labelled), label_counts(labels, results), asdict(kappa(labels, results))),
            "n": len(labels),
        },
        "references": references(settings.reference_path),
        "longer_answer": length_preference(rows, _lengths(pairs)),
        "canaries": canary_results(canaries_asked),
        "about_the_judge": _about_the_judge(rows, [*canaries_asked, *labelled], repeats),
        "control_strings": _control_strings(pairs),
    }


def _about_the_judge(rows: Sequence[Row], questions: Sequence[Row], repeats: Sequence[Row]) -> dict[str, float]:
    """Calls and cost of what was asked about the judge itself; what the pairs had asked already is theirs."""
    known = {question(row) for row in rows if row["calls"]}
    asked = [row for row in distinct(questions) if question(row) not in known] + distinct(repeats)
    return {key: total(asked, key) for key in ("calls", "cost")}


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
