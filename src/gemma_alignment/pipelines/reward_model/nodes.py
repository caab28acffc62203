"""Nodes of the reward model."""

import json
import logging
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.pipelines.data_processing.lines import Lines, json_line
from gemma_alignment.pipelines.data_processing.nodes import genrm_question, parse_score
from gemma_alignment.pipelines.models import gold_of, load_role, open_base, prepare
from gemma_alignment.pipelines.views import View

Rows = Sequence[Mapping[str, Any]]
logger = logging.getLogger(__name__)
SIDES = ("chosen", "rejected")
GENRM_TOKENS = 24
"""Enough for ``Score: 10.0/10`` in any tokenizer; what follows it is not read."""


def _pairs(chat: Any, rows: Rows) -> View[tuple[list[int], list[int], list[int]]]:
    """Token ids of prompt, chosen and rejected answer."""
    return View(
        rows,
        lambda row: (
            chat.encode_prompt(row["prompt"]),
            chat.encode_response(row["chosen"][-1]["content"]),
            chat.encode_response(row["rejected"][-1]["content"]),
        ),
    )


def _told_apart(rows: Rows, drop_equal_scores: bool) -> View[Mapping[str, Any]]:
    """The rows that say which answer is the better one."""
    keeps = (i for i, row in enumerate(rows) if row["score_chosen"] != row["score_rejected"])
    return View(rows, lambda row: row, array("I", keeps) if drop_equal_scores else None)


def _ids(rows: Rows) -> View[str]:
    return View(rows, lambda row: str(row["prompt_id"]))


def _normalizer(
    model: Any, chat: Any, prompts: Rows, settings: Any, rollout_settings: Any, seed: int
) -> dict[str, float]:
    """Mean and sd of the raw score over the SFT model's own responses to training prompts."""
    from gemma_alignment.rollout.experience import rollout, score
    from gemma_alignment.training.guards import check_measured
    from gemma_alignment.training.seeding import generator

    texts = [prompts[i]["prompt"] for i in range(min(settings.normalizer_prompts, len(prompts)))]
    found = rollout(model, chat, texts, 1, rollout_settings, generator(seed, "normalizer"), "reference")
    raw = score(model, found.sequences, found.ended, (0.0, 1.0), 0.0, settings.microbatch_size).double()
    check_measured({"scores": raw}, [prompts[i]["prompt_id"] for i in range(len(raw))], "Reward model, normaliser")
    return {"mean": float(raw.mean()), "sd": max(1e-6, float(raw.std(correction=0))), "responses": float(len(raw))}


def _check_pairs(train: int, held_out: int) -> None:
    if not train or not held_out:
        raise UserError(
            f"The reward model has {train} pairs to learn from and {held_out} held-out ones to be tested on: it needs "
            "both. Pairs of equal scores are left out, unless reward_model.drop_equal_scores is false; give more rows, "
            "or another preferences.eval_fraction."
        )


def _accuracy(margins: Sequence[float]) -> dict[str, float]:
    """Share of held-out pairs with the chosen answer ahead, with its Wilson interval; a warning at chance."""
    from gemma_alignment.statistics.intervals import wilson

    right = sum(margin > 0 for margin in margins)
    low, high = wilson(right, len(margins))
    if low is None or high is None:
        raise ValueError("an accuracy needs pairs")
    if low <= 0.5:
        logger.warning(
            "The reward model prefers the chosen answer in %d of %d held-out pairs (95%% interval %.2f to %.2f): it is "
            "not shown to be better than chance, and what is trained against it means little", right, len(margins),
            low, high,
        )  # fmt: skip
    return {
        "reward_model/accuracy": right / len(margins),
        "reward_model/accuracy_low": low,
        "reward_model/accuracy_high": high,
        "reward_model/eval_pairs": float(len(margins)),
    }


def train_reward_model(
    sft_merged_model: str, preferences_train: Rows, preferences_eval: Rows, prompts_train: Rows,
    modeling: dict[str, Any], runtime: dict[str, Any], reward_model: dict[str, Any], rollout: dict[str, Any],
    prepare_seed: int, run_log: Any, checkpoints: Any,
) -> tuple[Any, list[dict[str, Any]]]:  # fmt: skip
    """Train adapter and head on preference pairs, on from a checkpoint where there is one.

    Measure held-out accuracy, fix the normaliser.

    Returns: the reward model (adapter, head, normaliser) and the history.

    Raises:
        UserError: without a pair to learn from, or one to test on.
    """
    from gemma_alignment.modeling.saving import saved_adapter
    from gemma_alignment.parameters.rollout import RolloutParameters
    from gemma_alignment.parameters.training import RewardModelParameters
    from gemma_alignment.schemas import UpdateRecord
    from gemma_alignment.training import preference
    from gemma_alignment.training.checkpoints import train_on

    settings = build(RewardModelParameters, reward_model, "reward_model")
    model, chat = open_base(sft_merged_model, modeling, prepare(runtime), prepare_seed)
    model.add("reward")
    train, tested = (_told_apart(rows, settings.drop_equal_scores) for rows in (preferences_train, preferences_eval))
    _check_pairs(len(train), len(tested))
    pairs, ids = _pairs(chat, train), _ids(train)
    step = train_on(
        checkpoints, run_log, settings,
        lambda start: preference.train_reward_model(model, pairs, settings, chat.pad_id, prepare_seed, start, ids),
    )  # fmt: skip
    held_out = _pairs(chat, tested)
    margins = preference.margins(model, held_out, chat.pad_id, settings.microbatch_size, _ids(tested))
    run_log.append(UpdateRecord(step + 1, _accuracy(margins), {}))
    numbers = _normalizer(
        model, chat, prompts_train, settings, build(RolloutParameters, rollout, "rollout"), prepare_seed
    )
    return saved_adapter(model, "reward", sft_merged_model, numbers), run_log.rows("history")


def score_held_out(
    sft_merged_model: str, rm_model_bt: str, preferences_eval: Rows, modeling: dict[str, Any],
    runtime: dict[str, Any], reward_model: dict[str, Any], rollout: dict[str, Any], preferences: dict[str, Any],
    prepare_seed: int,
) -> View[dict[str, Any]]:  # fmt: skip
    """Everything that is known of the two answers of each held-out pair: what the card is made from.

    One row a pair: ``prompt_id``, ``source`` (null where the row names none) and, for ``chosen`` and
    ``rejected``, ``output_*`` (of the reward model, before its normaliser, so that its loss's
    probability is sigma of their difference), ``written_*`` (the score in the data), ``tokens_*``,
    ``characters_*``, ``gold_*`` (null outside the embedded world), ``asked_genrm_*`` and ``genrm_*`` (whether
    the SFT model was asked for a score, and the one it wrote; null where it wrote none).
    """
    from gemma_alignment.parameters.rollout import RolloutParameters
    from gemma_alignment.parameters.training import RewardModelParameters
    from gemma_alignment.training.preference import AT_A_TIME

    settings = build(RewardModelParameters, reward_model, "reward_model")
    model, chat = open_base(sft_merged_model, modeling, prepare(runtime), prepare_seed)
    load_role(model, "reward", rm_model_bt, sft_merged_model)
    pairs, gold = _told_apart(preferences_eval, settings.drop_equal_scores), gold_of(preferences)
    read = _genrm_scores(
        model, chat, _answers(pairs[: settings.genrm_pairs]), build(RolloutParameters, rollout, "rollout")
    )
    scored = (
        json_line(row)
        for start in range(0, len(pairs), AT_A_TIME)
        for row in _scored(
            model, chat, list(pairs[start : start + AT_A_TIME]), settings, gold, read[len(SIDES) * start :]
        )
    )
    return View(Lines(scored), json.loads)


def _answers(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Prompt and answer, the chosen and the rejected one of each row in turn."""
    return [(row["prompt"], row[side][-1]["content"]) for row in rows for side in SIDES]


def _scored(
    model: Any, chat: Any, rows: Sequence[Mapping[str, Any]], settings: Any, gold: Any, read: Sequence[float | None]
) -> list[dict[str, Any]]:
    """See ``score_held_out``; ``read`` are the scores that were asked for, of the first answers or of none."""
    from gemma_alignment.modeling.sequences import sequences
    from gemma_alignment.rollout.experience import score
    from gemma_alignment.training.guards import check_measured

    answers = _answers(rows)
    tokens = [chat.encode_response(text) for _, text in answers]
    batch = sequences([chat.encode_prompt(prompt) for prompt, _ in answers], tokens, chat.pad_id)
    outputs = score(model, batch, batch.response_mask.any(1), (0.0, 1.0), 0.0, settings.microbatch_size)
    check_measured({"scores": outputs}, [row["prompt_id"] for row in rows for _ in SIDES], "Reward model, card")
    found = [
        {
            "output": round(float(outputs[i]), 6),
            "tokens": len(tokens[i]),
            "characters": len(text),
            "gold": None if gold is None else round(float(gold(prompt, text)), 6),
            "genrm": read[i] if i < len(read) else None,
            "asked_genrm": i < len(read),
        }
        for i, (prompt, text) in enumerate(answers)
    ]
    return [_held_out_row(row, *found[2 * i : 2 * i + 2]) for i, row in enumerate(rows)]


def _held_out_row(row: Mapping[str, Any], *sides: Mapping[str, Any]) -> dict[str, Any]:
    flat = {f"{key}_{side}": value for side, values in zip(SIDES, sides, strict=True) for key, value in values.items()}
    written = {f"written_{side}": float(row[f"score_{side}"]) for side in SIDES}
    return {"prompt_id": row["prompt_id"], "source": row.get("source"), **written, **flat}


def _genrm_scores(model: Any, chat: Any, answers: Sequence[tuple[str, str]], settings: Any) -> list[float | None]:
    """The score that the SFT model writes for each answer, at temperature 0; None where it writes none."""
    from torch import Generator

    from gemma_alignment.rollout.sampling import sample

    if not answers:
        return []
    questions = [chat.encode_prompt(genrm_question(prompt, text)) for prompt, text in answers]
    with model.decoder("reference", settings.weights, settings.precision) as decoder:
        found = sample(
            decoder, questions, 1, max_new_tokens=GENRM_TOKENS, temperature=0.0, stop_ids=chat.stop_ids,
            pad_id=chat.pad_id, generator=Generator(), batch_size=settings.batch_size,
            engine=settings.engine,
        ).sequences  # fmt: skip
    written = zip(found.response_tokens, found.response_mask, strict=True)
    return [parse_score(chat.decode_response(tokens[mask].tolist())) for tokens, mask in written]
