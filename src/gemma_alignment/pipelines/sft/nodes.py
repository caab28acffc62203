"""Nodes of supervised fine-tuning."""

import logging
from array import array
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.pipelines.models import gold_of, load_role, open_base, prepare
from gemma_alignment.pipelines.views import View

Rows = Sequence[Mapping[str, Any]]
logger = logging.getLogger(__name__)


def _examples(chat: Any, rows: Rows, genrm: Rows, settings: Any, seed: int) -> tuple[View[Any], View[str]]:
    """The mixture: shares of the chosen responses and of the GenRM records, as token ids; what each is called."""
    from gemma_alignment.training.seeding import shuffled

    known = len(rows)
    picked = array("q")
    for name, first, pool, share in (
        ("chosen", 0, rows, settings.chosen_share), ("genrm", known, genrm, settings.genrm_share)
    ):  # fmt: skip
        order = shuffled(len(pool), seed, f"sft-{name}", count=round(share * len(pool)))
        picked.extend(first + i for i in order)

    def example(number: int) -> tuple[list[int], list[int]]:
        if number < known:
            row = rows[number]
            return chat.encode_prompt(row["prompt"]), chat.encode_response(row["chosen"][-1]["content"])
        asked, said = genrm[number - known]["messages"]
        return chat.encode_prompt(asked["content"]), chat.encode_response(said["content"])

    def called(number: int) -> str:
        return str(rows[number]["prompt_id"]) if number < known else f"of train.jsonl, line {number - known + 1}"

    numbers = range(known + len(genrm))
    return View(numbers, example, picked), View(numbers, called, picked)


def train_sft(
    base_model: str, preferences_train: Rows, preferences_eval: Rows, genrm_train: Rows, modeling: dict[str, Any],
    runtime: dict[str, Any], sft: dict[str, Any], prepare_seed: int, run_log: Any, checkpoints: Any,
) -> tuple[Any, list[dict[str, Any]]]:  # fmt: skip
    """Train the SFT adapter on chosen responses and GenRM records, on from a checkpoint where there is one.

    Perplexity before and after.

    Returns: the adapter and the history.
    """
    from gemma_alignment.modeling.saving import saved_adapter
    from gemma_alignment.parameters.training import SFTParameters
    from gemma_alignment.schemas import UpdateRecord
    from gemma_alignment.training.checkpoints import train_on
    from gemma_alignment.training.supervised import perplexity, train_supervised

    settings = build(SFTParameters, sft, "sft")
    device = prepare(runtime)
    model, chat = open_base(base_model, modeling, device, prepare_seed)
    model.add("policy")
    examples, names = _examples(chat, preferences_train, genrm_train, settings, prepare_seed)
    rows = [preferences_eval[i] for i in range(min(settings.eval_pairs, len(preferences_eval)))]
    held_out = [
        (chat.encode_prompt(row["prompt"]), chat.encode_response(row["chosen"][-1]["content"])) for row in rows
    ]
    size = settings.microbatch_size
    ids = [row["prompt_id"] for row in rows]
    before = perplexity(model, "policy", held_out, chat.pad_id, size, "SFT, before", ids)
    step = train_on(
        checkpoints, run_log, settings,
        lambda start: train_supervised(model, examples, settings, chat.pad_id, prepare_seed, start, names),
    )  # fmt: skip
    after = perplexity(model, "policy", held_out, chat.pad_id, size, "SFT, after", ids)
    found = {"sft/perplexity_before": before, "sft/perplexity_after": after}
    if after >= before:
        logger.warning("SFT raised the perplexity of held-out chosen responses from %.3f to %.3f", before, after)
    if modeling["embedding"] != "as_saved":
        whole, _ = open_base(base_model, {**modeling, "embedding": "as_saved"}, device, prepare_seed)
        found["sft/perplexity_embedding_as_saved"] = perplexity(
            whole, "reference", held_out, chat.pad_id, size, "SFT, embedding as saved", ids
        )
        logger.info(
            "Before SFT, perplexity is %.4f with the embedding in 8 bits, %.4f as saved.",
            *(before, found["sft/perplexity_embedding_as_saved"]),
        )
    run_log.append(UpdateRecord(step + 1, found, {}))
    return saved_adapter(model, "policy", base_model), run_log.rows("history")


def merge_sft(
    base_model: str, sft_adapter: str, preferences_eval: Rows, modeling: dict[str, Any], runtime: dict[str, Any],
    prepare_seed: int, run_log: Any, history: Rows,
) -> Any:  # fmt: skip
    """Add the SFT adapter to the dequantised base: the model that every arm starts from.

    Never into 4 bits. Saved in bfloat16, or in float32 where the base is float32. Logs the largest
    difference of a logit from the unmerged model on held-out responses, and that of the merged model
    quantised once more where the study runs in 4 bits. On a GPU the merged model has left by then, and one response is
    passed at a time: of all stages this one holds the most.
    """
    from gemma_alignment.modeling.saving import SavedModel
    from gemma_alignment.modeling.sequences import sequences
    from gemma_alignment.schemas import UpdateRecord

    model, chat = open_base(base_model, modeling, prepare(runtime), prepare_seed)
    load_role(model, "policy", sft_adapter, base_model)
    merged = model.merged("policy", model.model.dtype)
    rows = [preferences_eval[i] for i in range(min(8, len(preferences_eval)))]
    answers = [(chat.encode_prompt(row["prompt"]), chat.encode_response(row["chosen"][-1]["content"])) for row in rows]
    batches = [sequences([prompt], [response], chat.pad_id) for prompt, response in answers]
    with model.role("policy"):
        states = [model.response_states(batch) for batch in batches]
    gaps = {"sft/merge_max_logit_diff": _largest_gap(merged, batches, model, states)}
    saved = SavedModel(merged.to("cpu"), chat.tokenizer)
    if modeling["quantization"] != "none":
        with TemporaryDirectory() as directory:
            saved.save_pretrained(directory)
            again, _ = open_base(directory, modeling, model.device, prepare_seed)
            gaps["sft/requantized_max_logit_diff"] = _largest_gap(again.model, batches, model, states)
    run_log.append(UpdateRecord(int(history[-1]["iteration"]) + 1, gaps, {}))
    return saved


def _largest_gap(merged: Any, batches: Sequence[Any], model: Any, states: Sequence[Any]) -> float:
    """The largest difference of a logit at the response positions, of which few exist at a time.

    Raises:
        ValueError: when the merged model's logits are not finite.
    """
    import torch

    from gemma_alignment.modeling.roles import SharedBase

    plain = SharedBase(merged, None, 0)
    size, gaps = plain.positions_at_a_time, []
    for batch, unmerged in zip(batches, states, strict=True):
        with plain.role("reference"):
            parts = zip(plain.response_states(batch).split(size), unmerged.split(size), strict=True)
            gaps += [(plain.head(here) - model.head(there)).abs().max() for here, there in parts]
    gap = torch.stack(gaps).max()
    if not bool(torch.isfinite(gap)):
        raise ValueError("the merged model's logits are not finite")
    return float(gap)


def answer_with_sft(
    sft_merged_model: str, rm_model_bt: str, prompts_eval: Rows, modeling: dict[str, Any], runtime: dict[str, Any],
    missing_eos_penalty: float, microbatch_size: int, rollout: dict[str, Any], preferences: dict[str, Any],
    prepare_seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """The SFT model's own answers to the held-out prompts: what both methods are measured against.

    Of the arms' parameters it reads the penalty alone: another number of iterations makes no other answers.
    """
    from gemma_alignment.modeling.saving import read_normalizer
    from gemma_alignment.parameters.rollout import RolloutParameters
    from gemma_alignment.training.policy_evaluation import answer
    from gemma_alignment.training.seeding import generator

    model, chat = open_base(sft_merged_model, modeling, prepare(runtime), prepare_seed)
    load_role(model, "reward", rm_model_bt, sft_merged_model)
    rows, _ = answer(
        model, chat, [(row["prompt_id"], row["prompt"]) for row in prompts_eval], role="reference",
        settings=build(RolloutParameters, rollout, "rollout"), scale=read_normalizer(rm_model_bt),
        penalty=missing_eos_penalty, size=microbatch_size,
        generator=generator(prepare_seed, "responses"), gold=gold_of(preferences), where="SFT, answers",
    )  # fmt: skip
    return rows
