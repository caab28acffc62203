"""The learning curves: every run, with the x axis the reader chooses."""

from collections.abc import Collection, Mapping

from gemma_alignment.report.curves import AXES, Axes, Band, Curve, band
from gemma_alignment.report.formatting import name_of
from gemma_alignment.report.plotting import Figure, Spec, colors_of, faint, short
from gemma_alignment.report.runs import Run

CURVES = (
    ("eval/score_mean", "Reward-model score, held-out prompts", "sd of SFT scores"),
    ("eval/gold_mean", "True quality, held-out prompts", "gold score"),
    ("reward/score_mean", "Reward-model score, training prompts", "sd of SFT scores"),
    ("policy/kl_to_reference", "KL to the SFT model, training prompts", "nats per response"),
    ("policy/kl_coef", "KL coefficient", "coefficient"),
    ("rollout/response_length", "Response length, training prompts", "tokens"),
    ("eval/perplexity", "Perplexity of held-out chosen responses", "perplexity"),
    ("policy/entropy", "Entropy of the policy", "nats per token"),
    ("policy/clip_fraction", "Clipped share of tokens", "share"),
    ("rollout/eos_rate", "Responses that end by themselves", "share"),
    ("value/explained_variance", "Explained variance of the critic", "share"),
    ("rollout/zero_variance_groups", "Groups without variance", "share"),
)


def learning_curves(
    families: Mapping[str, Mapping[int, Run]], axes: Axes, on_request: Collection[str] = ()
) -> list[Figure]:
    """One figure a quantity that any run has: seeds faint, their mean bold, their range shaded.

    Families ``on_request`` come up when their name in the legend is clicked.
    """
    colors = colors_of(list(families))
    figures = []
    for key, title, unit in CURVES:
        bands = [found for name, runs in families.items() if (found := band(name, runs, key))]
        if not bands:
            continue
        traces = [
            {**trace, "visible": "legendonly"} if one.family in on_request else trace
            for one in bands
            for trace in _band_traces(one, colors[one.family], axes)
        ]
        layout = {
            "xaxis": {"title": {"text": AXES["iteration"][0]}},
            "yaxis": {"title": {"text": unit}, **({"rangemode": "nonnegative"} if unit == "share" else {})},
            "margin": {"l": 58, "r": 12, "t": 8, "b": 44},
        }
        figures.append(
            Figure(
                "curve-" + key.replace("/", "-").replace("_", "-"),
                title,
                "",
                {"data": traces, "layout": layout},
                300,
            )
        )
    return figures


def _band_traces(one: Band, color: str, axes: Axes) -> list[Spec]:
    name, group = name_of(one.family), {"legendgroup": one.family}
    hidden = {**group, "showlegend": False, "hoverinfo": "skip", "type": "scatter", "mode": "lines"}
    single = len(one.seeds) == 1
    traces: list[Spec] = []
    if not single:
        edge = {"line": {"width": 0, "color": color}}
        traces.append({**hidden, **edge, **_xy(one.family, one.low, axes)})
        fill = {"fill": "tonexty", "fillcolor": faint(color, 0.16)}
        traces.append({**hidden, **edge, **fill, **_xy(one.family, one.high, axes)})
        for seed, line in one.seeds.items():
            look = {"line": {"width": 1, "color": faint(color, 0.45)}, "name": f"{name} seed {seed}"}
            traces.append(
                {
                    **hidden,
                    **look,
                    **_xy(f"{one.family}/seed={seed}", line, axes),
                    "hoverinfo": "y+name",
                }
            )
    seed = next(iter(one.seeds))
    traces.append(
        {
            **group,
            "type": "scatter",
            "mode": "lines",
            "name": f"{name}, seed {seed}" if single else f"{name}, mean of {len(one.seeds)}",
            "line": {"width": 2.5, "color": color},
            **_xy(f"{one.family}/seed={seed}" if single else one.family, one.mean, axes),
        }
    )
    return traces


def _xy(series: str, line: Curve, axes: Axes) -> Spec:
    """A line at its iterations; ``meta`` names the run whose other x axes the page can put in."""
    return {
        "x": list(line.iterations),
        "y": [short(v) for v in line.values],
        "meta": series if series in axes.values else None,
    }


def axis_values(axes: Axes) -> Spec:
    """For the page: the axes on offer and, for each series, x by iteration."""
    offered = axes.offered()
    series = {
        name: {axis: {str(i): short(v) for i, v in found[axis].items()} for axis in offered if axis != "iteration"}
        for name, found in axes.values.items()
    }
    return {"labels": {axis: AXES[axis][0] for axis in offered}, "series": series}
