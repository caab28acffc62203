"""The parts of the report that describe: models, answers, protocol, limits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.formatting import (
    NONE,
    name_of,
    number,
    pair_name,
    percent,
    percent_bounds,
)
from gemma_alignment.report.html import Column, Content, Html, details, h, join, paragraphs, table
from gemma_alignment.report.metrics import METRICS
from gemma_alignment.report.variant_tables import left_out
from gemma_alignment.report.variants import described

Block = Mapping[str, Any]


def facts(pairs: Sequence[tuple[str, Content]]) -> Html:
    """Names and values, those without a value left out."""
    return h("dl", *(join([h("dt", name), h("dd", value)]) for name, value in pairs if value not in (None, "")))


def shared_models(comparison: Block) -> Html | None:
    """The data, and the cards of the two models that every arm shares."""
    reward, sft, data = comparison["reward_model"], comparison["sft"], comparison["data"]
    if not reward and not sft and not data:
        return None
    accuracy = percent(reward.get("reward_model/accuracy"))
    interval = percent_bounds(reward.get("reward_model/accuracy_low"), reward.get("reward_model/accuracy_high"))
    merge = sft.get("sft/merge_max_logit_diff")
    return facts(
        [
            ("Preference rows", _rows(data)),
            ("Rows of equal scores, kept", _count(data, "data/equal_scores")),
            ("Rows with the higher score on the rejected answer, kept", _count(data, "data/reversed_scores")),
            ("Pairs of answers given in both orders, kept", _count(data, "data/contrary_pairs")),
            ("Prompts under more than one prompt_id, each split as one", _count(data, "data/doubled_prompts")),
            (
                "Reward model prefers the chosen answer",
                f"{accuracy} of held-out pairs ({interval})" if reward else None,
            ),
            ("Reward model, last loss", _known(reward, "reward_model/loss")),
            ("SFT, held-out perplexity before", _known(sft, "sft/perplexity_before")),
            ("SFT, held-out perplexity after", _known(sft, "sft/perplexity_after")),
            ("SFT, last loss", _known(sft, "sft/loss")),
            ("Largest change of a logit by merging", None if merge is None else f"{merge:.1e}"),
        ]
    )


def _rows(data: Block) -> str | None:
    """What became of the rows of the source."""
    if not data:
        return None
    elsewhere = _count(data, "data/other_prompt") if data.get("data/other_prompt") else None
    because = f", {elsewhere} of them because a conversation starts with another prompt" if elsewhere else ""
    split = (
        ", ".join(f"{found} {kind}" for kind in ("train", "eval") if (found := _count(data, f"data/{kind}_pairs")))
        .replace("eval", "held out")
        .replace("train", "to learn from")
    )
    return f"{_count(data, 'data/rows_kept')} kept ({split}), {_count(data, 'data/rows_rejected')} rejected{because}"


def _count(data: Block, key: str) -> str | None:
    return f"{data[key]:,}" if key in data else None


def _known(values: Block, key: str) -> str | None:
    return number(values[key]) if key in values else None


def other_runs(comparison: Block) -> Html | None:
    """Runs of other methods and of variants without a section of their own: described, not tested."""
    protocol = comparison["protocol"]
    families: dict[str, list[Block]] = defaultdict(list)
    for row in comparison["runs"]:
        if row["family"] not in (protocol["method_a"], protocol["method_b"], *described(comparison)) and row["final"]:
            families[row["family"]].append(row)
    reasons = left_out(comparison["variants_left_out"]) if comparison["variants_left_out"] else None
    if not families:
        return reasons
    names = [n for n in METRICS if any(n in row["final"] for rows in families.values() for row in rows)]
    columns = [Column("Run"), Column("seeds", True), *(Column(METRICS[n].label, True) for n in names)]
    rows = [[name_of(f), str(len(found)), *(_range(found, n) for n in names)] for f, found in families.items()]
    return join([table(columns, rows), reasons])


def _range(rows: Sequence[Block], name: str) -> Html | str:
    values = [row["final"][name] for row in rows if name in row["final"]]
    if not values:
        return NONE
    decimals = METRICS[name].decimals
    mean = number(sum(values) / len(values), decimals)
    spread = f"{number(min(values), decimals)} to {number(max(values), decimals)}" if len(values) > 1 else None
    return join([h("b", mean), h("small", spread) if spread else None])


def protocol(comparison: Block) -> Html:
    """What was fixed beforehand, and whether the runs kept to it."""
    fixed = comparison["protocol"]
    a, b = fixed["method_a"], fixed["method_b"]
    described = facts(
        [
            ("Comparison", f"{pair_name(a, b)}; differences are {name_of(a)} − {name_of(b)}"),
            ("Seeds planned", ", ".join(str(s) for s in fixed["seeds"])),
            ("Stopping rule", "all planned seeds of both methods, no earlier and no later"),
            ("Primary outcome", f"head-to-head win rate, margin ±{percent(fixed['margin'], 0)}"),
            ("Effect size", f"Cohen’s d of {fixed['effect_size_metric']}, unpaired, pooled sd"),
            ("Secondary family", f"{', '.join(fixed['secondary_metrics'])} (Holm)"),
            ("Read out", "the family only where the primary outcome puts one method first, or was not judged"),
            ("Confidence", percent(fixed["confidence"], 0)),
            ("Judged policy", "the last iterate; no checkpoint is selected"),
            ("Fingerprint of this protocol", h("code", fixed["fingerprint"])),
            ("Fingerprint of the configuration it ran under", _configuration(comparison["configuration"])),
        ]
    )
    marks = {True: "held", False: "NOT held", None: "not known"}
    rows = [
        [
            str(one["check"]),
            h("span", marks[one["held"]], class_=f"held-{one['held']}".lower()),
            str(one["detail"]),
        ]
        for one in comparison["equal"]
    ]
    return join([described, table([Column("What is held equal"), Column("in these runs"), Column("detail")], rows)])


def _configuration(found: Block) -> Content:
    if found["fingerprint"] is None:
        return f"not known: {found['reason']}"
    return h("code", found["fingerprint"])


def runs(comparison: Block) -> Html | None:
    """Which runs there are, and the fingerprints of what each was made from."""
    parts = ("configuration", "data", "sft", "reward_model")
    columns = [Column("Run"), Column("state"), *(Column(part.replace("_", " ")) for part in parts)]
    rows: list[list[Content]] = [
        [
            row["name"],
            join([str(row["status"] or "not recorded"), h("small", row["left_out"]) if row["left_out"] else None]),
            *(h("code", str(row["fingerprints"].get(part, NONE))[:12]) for part in parts),
        ]
        for row in comparison["runs"]
    ]
    return table(columns, rows) if rows else None


def limits(comparison: Block) -> Html:
    """What the seeds can and cannot show, and everything without a number."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in comparison["not_estimable"]:
        by_reason[row["reason"]].append(row["what"])
    shown = paragraphs(comparison["limits"]["sentences"])
    if not by_reason:
        return shown
    rows = [[reason, "; ".join(what)] for reason, what in by_reason.items()]
    listed = table([Column("Reason"), Column("What has no number for it")], rows)
    return join([shown, details(f"Not estimable: {len(comparison['not_estimable'])}", listed, open_=len(rows) < 6)])


def software(comparison: Block) -> Html:
    """Versions behind this report."""
    return facts([(name, version) for name, version in comparison["versions"].items()])
