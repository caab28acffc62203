"""The figures that compare: effect sizes, wins, score over drift, length against score."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from gemma_alignment.report.formatting import bounds, name_of, number, pair_name, percent
from gemma_alignment.report.metrics import METRICS
from gemma_alignment.report.plotting import COLORS, GREY, PALE, Figure, Spec, colors_of, short
from gemma_alignment.report.runs import Run


def forest(comparison: Mapping[str, Any]) -> Figure | None:
    """Cohen's d of every metric of the study with its interval."""
    rows = [
        (name, block)
        for name, block in comparison["metrics"].items()
        if block["cohens_d"]["d_low"] is not None and block["role"] != "descriptive"
    ]
    if not rows:
        return None
    protocol = comparison["protocol"]
    a, b = name_of(protocol["method_a"]), name_of(protocol["method_b"])
    effects = [block["cohens_d"] for _, block in rows]
    labels = [_direction_label(block) for _, block in rows]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [round(e["d"], 4) for e in effects],
        "y": labels,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [round(e["d_high"] - e["d"], 4) for e in effects],
            "arrayminus": [round(e["d"] - e["d_low"], 4) for e in effects],
            "thickness": 2,
            "width": 5,
            "color": COLORS[0],
        },
        "marker": {"size": 10, "color": COLORS[0], "symbol": "square"},
        "text": [f"d {number(e['d'], 2)} {bounds(e['d_low'], e['d_high'], 2)}" for e in effects],
        "hovertemplate": "%{y}<br>%{text}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": f"Cohen’s d<br>← {b} higher · {a} higher →", "font": {"size": 11}}},
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "margin": {"l": 10, "r": 16, "t": 8, "b": 62},
    }
    seeds = _counted([n for _, block in rows for n in block["n"].values()])
    caption = (
        f"Effect sizes, {a} − {b}, with {protocol['confidence']:.0%} noncentral-t intervals over {seeds} seeds a "
        "method. Better or worse depends on the metric: the arrow beside its name points to the better side."
    )
    return Figure("forest", "Effect sizes", caption, {"data": [trace], "layout": layout}, 92 + 30 * len(rows))


def _counted(numbers: Sequence[int]) -> str:
    """One number where all are equal, else the least and the largest."""
    least, largest = min(numbers), max(numbers)
    return f"{least:,}" if least == largest else f"{least:,} to {largest:,}"


def _direction_label(block: Mapping[str, Any]) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[block["higher_is_better"]]
    return f"{block['label'].replace(' of held-out chosen responses', '')}{arrow}"


def win_bars(comparison: Mapping[str, Any]) -> Figure | None:
    """Wins, ties and losses of the three pairs, all seeds together."""
    blocks = [block for block in comparison["win_rates"].values() if block]
    if not blocks:
        return None
    protocol = comparison["protocol"]
    colors = colors_of((protocol["method_a"], protocol["method_b"]))
    labels = [pair_name(block["a"], block["b"]) for block in blocks]
    decided = [sum(block["total"][k] for k in ("wins", "ties", "losses")) for block in blocks]
    traces = []
    for part in ("wins", "ties", "losses"):
        counts = [block["total"][part] for block in blocks]
        shares = [c / n for c, n in zip(counts, decided, strict=True)]
        winners = {"wins": [b["a"] for b in blocks], "losses": [b["b"] for b in blocks]}
        fill = [PALE] * len(blocks) if part == "ties" else [colors.get(f, GREY) for f in winners[part]]
        what = ["tie" if part == "ties" else f"{name_of(f)} won" for f in winners.get(part, [""] * len(blocks))]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": [round(100 * s, 2) for s in shares],
                "y": labels,
                "marker": {"color": fill},
                "text": [percent(s, 0) for s in shares],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "textfont": {"color": "#1b1f24" if part == "ties" else "#ffffff"},
                "customdata": [[w, c] for w, c in zip(what, counts, strict=True)],
                "hovertemplate": "%{customdata[0]}: %{customdata[1]} (%{x:.1f}%)<extra></extra>",
            }
        )
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "uniformtext": {"minsize": 9, "mode": "hide"},
        "showlegend": False,
        "xaxis": {
            "range": [0, 100],
            "tickvals": [0, 25, 50, 75, 100],
            "ticktext": ["0%", "25%", "50%", "75%", "100%"],
            "title": {"text": f"share of {_counted(decided)} pairs of answers, all seeds"},
        },
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "margin": {"l": 10, "r": 24, "t": 8, "b": 44},
    }
    caption = (
        "Wins (left, colour of the first), ties (pale) and losses (right). Each pair of answers is judged "
        "in both orders; orders that disagree are a tie."
    )
    return Figure("wins", "Wins, ties, losses", caption, {"data": traces, "layout": layout}, 72 + 44 * len(blocks))


def frontier(families: Mapping[str, Mapping[int, Run]], gold: bool) -> Figure | None:
    """Score (proxy) and true quality (gold) of held-out answers over sqrt(KL), after Gao et al. 2023."""
    colors = colors_of(list(families))
    traces: list[Spec] = []
    kinds = [("eval/score_mean", "reward-model score", "solid", "y")]
    if gold:
        kinds.append(("eval/gold_mean", "true quality", "dot", "y2"))
    for name, runs in families.items():
        for key, label, dash, axis in kinds:
            for i, (seed, run) in enumerate(runs.items()):
                points = _over_kl(run, key)
                if points:
                    traces.append(
                        {
                            "type": "scatter",
                            "mode": "lines+markers",
                            "x": [short(x) for x, _ in points],
                            "y": [short(y) for _, y in points],
                            "yaxis": axis,
                            "name": f"{name_of(name)}, {label}",
                            "legendgroup": f"{name}{label}",
                            "showlegend": i == 0,
                            "line": {"dash": dash, "width": 1.5, "color": colors[name]},
                            "marker": {"size": 5, "symbol": "circle" if axis == "y" else "diamond-open"},
                            "hovertemplate": f"seed {seed}<br>√KL %{{x}}<br>%{{y}}<extra></extra>",
                        }
                    )
    if not traces:
        return None
    layout: Spec = {
        "xaxis": {"title": {"text": "√KL to the SFT model (nats per response)"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "reward-model score"}},
        "margin": {"l": 58, "r": 12, "t": 8, "b": 44},
    }
    if gold:  # one above the other on one x axis: two y axes side by side would invite false crossings
        layout["yaxis"]["domain"] = [0.53, 1.0]
        layout["yaxis2"] = {"title": {"text": "true quality"}, "domain": [0.0, 0.47], "anchor": "x"}
        layout["xaxis"]["anchor"] = "y2"
    caption = (
        "Held-out answers at every evaluation, one line a seed: how much score each method buys with how much drift."
    )
    if gold:
        caption += " Where the score goes on rising and the true quality falls, the reward model is being exploited."
    title = "Proxy and true quality over drift" if gold else "Score over drift"
    return Figure("frontier", title, caption, {"data": traces, "layout": layout}, 480 if gold else 380)


def _over_kl(run: Run, key: str) -> list[tuple[float, float]]:
    rows = [r for r in run.history if r.get(key) is not None and r.get("eval/kl_to_reference") is not None]
    return sorted((sqrt(max(0.0, float(r["eval/kl_to_reference"]))), float(r[key])) for r in rows)


def sweeps(comparison: Mapping[str, Any]) -> list[Figure]:
    """Score and true quality over the values of each number that was varied, every seed shown."""
    methods = dict.fromkeys([comparison["protocol"]["method_a"], comparison["protocol"]["method_b"]])
    colors = colors_of([*methods, *sorted({f["method"] for f in comparison["sensitivity"]} - methods.keys())])
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for factor in filter(_has_scale, comparison["sensitivity"]):
        by_name.setdefault(factor["parameter"].rpartition(".")[2], []).append(factor)
    return [
        _sweep(name, metric, [f for f in factors if metric in f["over_values"]], colors)
        for name, factors in by_name.items()
        for metric in ("eval/score_mean", "eval/gold_mean")
        if any(metric in f["over_values"] for f in factors)
    ]


def _has_scale(factor: Mapping[str, Any]) -> bool:
    """Whether its values are numbers: words and null have no place on an axis."""
    return all(isinstance(one["value"], int | float) and not isinstance(one["value"], bool) for one in factor["values"])


def _sweep(name: str, metric: str, factors: list[Mapping[str, Any]], colors: Mapping[str, str]) -> Figure:
    traces: list[Spec] = []
    for factor in factors:
        look = {"legendgroup": factor["method"], "type": "scatter", "marker": {"color": colors[factor["method"]]}}
        values = [(one["value"], one["metrics"][metric]) for one in factor["values"]]
        seeds = [(x, seed, y) for x, block in values for seed, y in block["per_seed"].items()]
        traces.append(
            {
                **look,
                "mode": "markers",
                "showlegend": False,
                "x": [x for x, _, _ in seeds],
                "y": [short(y) for _, _, y in seeds],
                "text": [f"seed {seed}" for _, seed, _ in seeds],
                "marker": {
                    **look["marker"],
                    "opacity": 0.6,
                    "symbol": ["diamond" if x == factor["configured"] else "circle" for x, _, _ in seeds],
                },
                "hovertemplate": f"{name} %{{x}}<br>%{{text}}<br>%{{y}}<extra></extra>",
            }
        )
        means = [(x, block["mean"]) for x, block in values if block["mean"] is not None]
        traces.append(
            {
                **look,
                "mode": "lines",
                "name": name_of(factor["method"]),
                "line": {"color": colors[factor["method"]], "width": 2},
                "x": [x for x, _ in means],
                "y": [short(y) for _, y in means],
                "hovertemplate": f"{name} %{{x}}<br>mean %{{y}}<extra></extra>",
            }
        )
    shown = [x for trace in traces for x in trace["x"]]
    layout: Spec = {
        "xaxis": {"title": {"text": name}, "type": "log" if _spans_magnitudes(shown) else "linear"},
        "yaxis": {"title": {"text": METRICS[metric].unit}},
        "margin": {"l": 58, "r": 12, "t": 8, "b": 44},
    }
    if len(set(shown)) <= 8:  # a group of 4.5 answers is none
        layout["xaxis"] |= {"tickvals": sorted(set(shown)), "ticktext": [f"{x:g}" for x in sorted(set(shown))]}
    caption = "A point a seed, a line through the means; diamonds stand at the configured value."
    title = f"{METRICS[metric].label} over {name}"
    slug = f"sweep-{name}-{metric}".replace("/", "-").replace("_", "-")
    return Figure(slug, title, caption, {"data": traces, "layout": layout}, 300)


def _spans_magnitudes(values: list[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) >= 20 * min(values)


def length_and_score(families: Mapping[str, Mapping[int, Run]], most: int) -> Figure | None:
    """Length of the final answers against their score."""
    colors = colors_of(list(families))
    traces = []
    for name, runs in families.items():
        rows = [row for run in runs.values() for row in run.responses]
        rows = rows[:: max(1, -(-len(rows) // most))]
        if rows:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name_of(name),
                    "x": [row["num_tokens"] for row in rows],
                    "y": [short(float(row["reward_model_score"])) for row in rows],
                    "marker": {"size": 5, "opacity": 0.5, "color": colors[name]},
                    "hovertemplate": "%{x} tokens<br>score %{y}<extra></extra>",
                }
            )
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "tokens in the answer"}},
        "yaxis": {"title": {"text": "reward-model score"}},
        "margin": {"l": 58, "r": 12, "t": 8, "b": 44},
    }
    caption = f"Final answers to held-out prompts, at most {most} a method: does the reward model pay for length?"
    return Figure("length", "Length against score", caption, {"data": traces, "layout": layout}, 380)
