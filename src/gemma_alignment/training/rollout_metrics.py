"""What an iteration's sampled responses look like: scores, KL, length, endings, and how far the sampler is off."""

from collections.abc import Mapping

from gemma_alignment.modeling.protocols import Text
from gemma_alignment.objectives.kl import k1
from gemma_alignment.schemas import Experience
from gemma_alignment.training.policy_evaluation import Gold


def describe(experience: Experience, chat: Text, prompts: Mapping[str, str], gold: Gold | None) -> dict[str, float]:
    """The metrics of the sampled responses, before the update; ``prompts`` are the texts by id."""
    mask, scores = experience.response_mask, experience.raw_scores
    count = len(scores)
    divergence = (k1(experience.old_logprobs, experience.ref_logprobs) * mask).sum(1)
    groups = experience.scores.view(-1, experience.group_size)
    metrics = {
        "reward/score_mean": float(scores.mean()),
        "reward/score_std": float(scores.std(correction=0)),
        "policy/kl_to_reference": float(divergence.mean()),
        "rollout/response_length": float(mask.sum()) / count,
        "rollout/eos_rate": float(experience.ended.float().mean()),
    }
    if experience.group_size > 1:
        metrics["rollout/zero_variance_groups"] = float((groups.std(1) == 0).float().mean())
    if experience.values is not None:
        metrics["value/explained_variance"] = explained_variance(experience)
    if experience.sampler_gap is not None:
        metrics["rollout/sampler_gap"] = float(experience.sampler_gap.max())
    if gold is not None:
        texts = [
            chat.decode_response(row[m].tolist())
            for row, m in zip(experience.response_tokens, mask, strict=True)
        ]
        metrics["reward/gold_mean"] = (
            sum(gold(prompts[i], text) for i, text in zip(experience.prompt_ids, texts, strict=True)) / count
        )
    return metrics


def explained_variance(experience: Experience) -> float:
    """1 − Var(s − V_0) / Var(s): how much of the score the critic knew before the first token.

    Read at the first response position against the normalised score; 0 when the scores do not vary.
    """
    if experience.values is None:
        raise ValueError("explained variance needs a critic")
    first, target = experience.values[:, 0], experience.scores
    spread = float(target.var(correction=0))
    return 1 - float((target - first).var(correction=0)) / spread if spread > 0 else 0.0
