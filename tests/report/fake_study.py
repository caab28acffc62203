"""A finished study that nobody ran: files of 2 methods x 3 seeds with known shapes."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gemma_alignment.judging.card import agreement_labels, judge_card, length_preference
from gemma_alignment.judging.client import Request
from gemma_alignment.statistics.agreement import kappa

SEEDS = (42, 123, 777)
WORDS = "the a clear kind short answer names its reason first then stops here and thanks you".split()
PROTOCOL = {
    "method_a": "ppo",
    "method_b": "grpo",
    "seeds": [42, 123, 777],
    "confidence": 0.95,
    "power": 0.8,
    "margin": 0.05,
    "effect_size_metric": "eval/score_mean",
    "effect_size_margin": 0.1,
    "secondary_metrics": [
        "win_rate_against_sft",
        "eval/score_mean",
        "eval/gold_mean",
        "eval/kl_to_reference",
        "eval/response_length",
        "eval/perplexity",
    ],
}
ROWS = {
    "data/rows_kept": 950, "data/rows_rejected": 50, "data/other_prompt": 7, "data/reversed_scores": 3,
    "data/contrary_pairs": 5, "data/doubled_prompts": 2,
    "data/equal_scores": 11, "data/train_pairs": 870, "data/eval_pairs": 80,
}  # fmt: skip
REPORTING = {
    "title": "PPO and GRPO compared",
    "bootstrap_draws": 300,
    "bootstrap_seed": 1,
    "answers_shown": 12,
    "answer_characters": 400,
    "points_shown": 80,
}


class Study(dict):
    """Partition folder -> file name -> rows, and the judgements."""

    def partitions(self, name):
        """What a PartitionedDataset with this suffix gives: id -> loader."""
        return {f"{k}/": (lambda v=v: v[name]) for k, v in self["files"].items() if name in v}

    def inputs(self, protocol=None, reporting=None):
        """The inputs of the node ``compare``."""
        return (
            self.partitions("history.jsonl"),
            self.partitions("timing.jsonl"),
            self.partitions("responses.jsonl"),
            self.partitions("run.json"),
            self["judgements"],
            self["judge_card"],
            self["eval_scores"],
            self.prompts(),
            ROWS,
            protocol or PROTOCOL,
            reporting or REPORTING,
        )

    def prompts(self):
        """The held-out prompts, every third of another source."""
        rows = self["files"]["sft"]["responses.jsonl"]
        return [
            {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "source": "essays" if i % 3 else "lists"}
            for i, row in enumerate(rows)
        ]

    def write(self, root):
        """The same as files under ``root``."""
        for folder, files in self["files"].items():
            directory = Path(root) / "07_model_output" / folder
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                lines = [content] if name == "run.json" else content
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
                (directory / name).write_text(text, encoding="utf-8")
        output = Path(root) / "07_model_output"
        text = "".join(json.dumps(row) + "\n" for row in self["judgements"])
        (output / "judgements.jsonl").write_text(text, encoding="utf-8")
        (output / "reward_model").mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in self["eval_scores"])
        (output / "reward_model" / "eval_scores.jsonl").write_text(text, encoding="utf-8")
        (Path(root) / "03_primary").mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in self.prompts())
        (Path(root) / "03_primary" / "prompts_eval.jsonl").write_text(text, encoding="utf-8")
        (output / "judge_card.json").write_text(json.dumps(self["judge_card"]), encoding="utf-8")
        (Path(root) / "02_intermediate").mkdir(exist_ok=True)
        (Path(root) / "02_intermediate" / "row_counts.json").write_text(json.dumps(ROWS), encoding="utf-8")


def fake_study(seeds=SEEDS, families=("ppo", "grpo"), gold=True, judged=True, iterations=80, prompts=60):
    """Build one; equal arguments give equal studies."""
    files = {"sft": _sft(prompts, gold), "reward_model": _reward_model()}
    for family in families:
        for seed in seeds:
            files[f"{family}/seed={seed}"] = _arm(family, seed, iterations, prompts, gold)
    judgements = _judgements(files, families, seeds) if judged else []
    return Study(
        files=files, judgements=judgements, judge_card=_card(judgements, files), eval_scores=held_out_scores(gold)
    )


def held_out_scores(gold=True, pairs=80):
    """What a reward model with some taste for length says of held-out pairs, two a prompt."""
    rng = _rng("held out")
    rows = []
    for i in range(pairs):
        written = sorted(rng.uniform(2, 9, 2).round(1).tolist(), reverse=True)
        row = {"prompt_id": f"h{i // 2}", "source": "essays" if i % 3 else "lists"}
        for side, score in zip(("chosen", "rejected"), written, strict=True):
            tokens = int(rng.integers(10, 50))
            row |= {
                f"written_{side}": score,
                f"output_{side}": float(0.6 * score + 0.05 * tokens + rng.normal(0, 0.8)),
                f"tokens_{side}": tokens,
                f"characters_{side}": 5 * tokens,
                f"gold_{side}": float(np.clip(score + rng.normal(0, 1), 0, 10)) if gold else None,
                f"genrm_{side}": round(float(score + rng.normal(0, 2)), 1) if i < 40 and i % 7 else None,
                f"asked_genrm_{side}": i < 40,
            }
        rows.append(row)
    return rows


def _rng(*words):
    return np.random.default_rng(np.frombuffer(repr(words).encode(), dtype=np.uint8))


def parameters_of(family, seed, iterations):
    """What ``run.json`` records; the variant ``group_size-2`` has that setting, any other none of its own."""
    method, _, variant = family.partition("@")
    settings = {"group_size": 6, "kl_placement": "loss", "clip_epsilon_high": None, "update_epochs": 1}
    name, _, value = variant.partition("-")
    if name in settings:
        settings[name] = int(value) if value.isdecimal() else value
    return {"seed": seed, "policy_optimization": {"num_iterations": iterations}, method: settings}


def _arm(family, seed, iterations, prompts, gold):
    rng = _rng(family, seed)
    method = family.partition("@")[0]
    top = {"ppo": 1.45, "grpo": 1.25}.get(method, 1.1) + rng.normal(0, 0.09)
    speed = {"ppo": 22.0, "grpo": 30.0}.get(method, 25.0)
    history, timing = [], []
    for i in range(iterations + 1):
        done = 1 - np.exp(-i / speed)
        score = 0.02 + top * done + rng.normal(0, 0.05)
        kl = (0.75 if method == "ppo" else 0.6) * done + abs(rng.normal(0, 0.03)) * (i > 0)
        row = {
            "iteration": i,
            "policy/kl_coef": (0.05, 0.02, 0.01)[min(2, 3 * i // (iterations + 1))] * (1 + kl),
        }
        if i:
            row |= {
                "reward/score_mean": score,
                "policy/kl_to_reference": kl,
                "policy/entropy": 2.1 - 0.9 * done,
                "policy/clip_fraction": 0.05 + 0.05 * rng.random(),
                "rollout/response_length": 24 + 7 * done + rng.normal(0, 0.5),
                "rollout/eos_rate": min(1.0, 0.9 + 0.09 * done),
                "budget/responses": 96.0 * i,
                "budget/tokens_generated": 96.0 * i * 27,
                "budget/flops": 3.1e9 * i * (1.6 if method == "ppo" else 1.0),
            }
            if gold:
                row["reward/gold_mean"] = 6.9 + 1.3 * done - 0.25 * done**4
        if i % 10 == 0 or i == iterations:
            row |= {
                "eval/score_mean": score - 0.03,
                "eval/kl_to_reference": kl,
                "eval/response_length": 24 + 7 * done + rng.normal(0, 0.3),
                "eval/perplexity": 3.4 + 0.5 * kl,
            }
            if gold:
                row["eval/gold_mean"] = 6.9 + 1.2 * done - 0.3 * done**4 + rng.normal(0, 0.05)
        history.append(dict(sorted(row.items())))
        if i:
            timing.append(
                {
                    "iteration": i,
                    "budget/seconds": i * (1.9 if method == "ppo" else 1.4),
                    "memory/peak_mb": (910 if method == "ppo" else 640) + i * 0.1,
                    "rollout/tokens_per_second": 2100 + rng.normal(0, 40),
                }
            )
    return {
        "history.jsonl": history,
        "timing.jsonl": timing,
        "responses.jsonl": _answers(rng, prompts, top, 31, gold),
        "run.json": {
            "status": "finished",
            "mlflow_run_id": f"{family}{seed}",
            "mlflow_view": "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=arms",
            "created": "2026-01-01T10:00:00+00:00",
            "ended": "2026-01-01T10:03:00+00:00",
            "peak_mb": 910.0 if method == "ppo" else 640.0,
            "commit": "0123abc",
            "fingerprints": {"sft": "f" * 64, "reward_model": "e" * 64, "data": "d" * 64},
            "parameters": parameters_of(family, seed, iterations),
        },
    }


def _answers(rng, prompts, level, length, gold):
    rows = []
    for p in range(prompts):
        tokens = int(np.clip(rng.normal(length, 6), 4, 48))
        row = {
            "prompt_id": f"p{p:03d}",
            "prompt": f"Say something <kind> & brief about subject {p}, please.",
            "response": " ".join(rng.choice(WORDS, tokens)),
            "reward_model_score": float(rng.normal(level, 0.7) + 0.02 * (tokens - length)),
            "num_tokens": tokens,
            "ended": bool(rng.random() < 0.97),
        }
        if gold:
            row["gold_score"] = float(np.clip(rng.normal(6.9 + 0.8 * level, 1.0), 0, 10))
        rows.append(row)
    rows[0]["response"] = "<script>alert('x')</script> & \"quotes\" \u2028 </td>"
    return rows


def _sft(prompts, gold):
    rng = _rng("sft")
    history = [{"iteration": i, "sft/loss": 2.4 * np.exp(-i / 60) + 1.1} for i in range(0, 200, 20)]
    history[-1] |= {
        "sft/perplexity_before": 9.1,
        "sft/perplexity_after": 3.4,
        "sft/merge_max_logit_diff": 2e-6,
    }
    return {"history.jsonl": history, "responses.jsonl": _answers(rng, prompts, 0.0, 24, gold)}


def _reward_model():
    history = [{"iteration": i, "reward_model/loss": 0.69 - 0.0015 * i} for i in range(0, 200, 20)]
    history[-1] |= {
        "reward_model/accuracy": 0.84,
        "reward_model/accuracy_low": 0.8,
        "reward_model/accuracy_high": 0.873,
    }
    return {"history.jsonl": history}


def _judgements(files, families, seeds):
    rows = []
    for seed in seeds:
        arms = [f"{f}/seed={seed}" for f in families]
        pairs = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]] + [(a, "sft") for a in arms]
        for a, b in pairs:
            rng = _rng(a, b)
            for one, other in zip(files[a]["responses.jsonl"], files[b]["responses.jsonl"], strict=True):
                gap = one["reward_model_score"] - other["reward_model_score"]
                for order, sign in (("ab", 1), ("ba", -1)):
                    shown = (one, other) if order == "ab" else (other, one)
                    request = Request(one["prompt"], *(answer["response"] for answer in shown))
                    seen = sign * gap + 0.1 + rng.normal(0, 0.4)
                    verdict = "tie" if abs(seen) < 0.2 else "first" if seen > 0 else "second"
                    rows.append(
                        {
                            "prompt_id": one["prompt_id"],
                            "system_a": a,
                            "system_b": b,
                            "order": order,
                            "verdict": verdict if rng.random() > 0.002 else "unparsed",
                            "reply": "{}",
                            "model": "rubric",
                            "prompt_version": "v1",
                            "cost": 0.0,
                            "content_key": request.content_key,
                        }
                    )
    return rows


def _card(judgements, files):
    lengths = {}
    for row in judgements:
        texts = [
            next(r["response"] for r in files[row[s]]["responses.jsonl"] if r["prompt_id"] == row["prompt_id"])
            for s in ("system_a", "system_b")
        ]
        lengths[(row["system_a"], row["system_b"], row["prompt_id"])] = (len(texts[0]), len(texts[1]))
    sorts = {s: {"asked": 20, "right": 19, "both_orders": 19, "missing": 0} for s in ("same", "empty", "known")}
    return {
        "kind": "rubric" if judgements else "none",
        "reason": None if judgements else "judge.kind is none",
        "settings": {"noise": 0.4} if judgements else {},
        **judge_card(judgements),
        "kappa_between_orders": asdict(kappa(*agreement_labels(judgements))),
        "longer_answer": length_preference(judgements, lengths),
        "canaries": sorts if judgements else {},
        "repeat": {"asked": 80, "kappa": 0.71, "agreement": 0.82, "n": 79, "reason": None},
        "people": {
            "asked": 0,
            "right": 0,
            "tied": 0,
            "wrong": 0,
            "people_tied": 0,
            "kappa": None,
            "agreement": None,
            "n": 0,
            "reason": "no item was rated twice",
        },
        "about_the_judge": {"calls": 0, "cost": 0.0},
        "control_strings": {"ppo": 0, "grpo": 0, "sft": 0},
    }
