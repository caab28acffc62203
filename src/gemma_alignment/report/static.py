"""The figures as pictures: the Plotly specifications of the page, drawn by Matplotlib as SVG.

Only what the specifications of this report use is drawn: scatter and bar traces, error bars, filled
bands, one or two y axes above each other. Text stays text, and equal figures give equal bytes.
"""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gemma_alignment.report.plotting import COLORS, Figure, Spec

WIDTH = 640
"""Of a picture, in CSS pixels; the height is the figure's own, plus its title."""
DPI = 96
DASHES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-."}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "diamond-open": "D"}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "gemma-alignment",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#d9dee4",
    "axes.labelcolor": "#1b1f24",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9dee4",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "legend.frameon": False,
}


def pictures(figures: Sequence[Figure]) -> dict[str, str]:
    """Every figure as an SVG document, by the figure's id."""
    return {one.id: svg(one) for one in figures}


def svg(figure: Figure) -> str:
    """One figure as an SVG document, on white.

    Raises:
        ValueError: for a kind of trace that the report does not use.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH / DPI, (figure.height + 40) / DPI), dpi=DPI, layout="constrained")
        FigureCanvasSVG(canvas)
        canvas.suptitle(figure.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        layout = figure.spec["layout"]
        axes = _axes(canvas, layout)
        shown = [trace for trace in figure.spec["data"] if trace.get("visible", True) is True]
        _draw(axes, shown, layout)
        for name, key in (("y", "yaxis"), ("y2", "yaxis2")):
            if name in axes:
                _dress(axes[name], layout["xaxis"], layout.get(key, {}), name == list(axes)[-1])
        _legend(canvas, axes["y"], shown)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Title": figure.title})
    return text.getvalue()


def _axes(canvas: Any, layout: Spec) -> dict[str, Any]:
    """By the name that traces give their y axis; a second one stands below the first."""
    if "yaxis2" not in layout:
        return {"y": canvas.subplots()}
    upper, lower = canvas.subplots(2, 1, sharex=True)
    return {"y": upper, "y2": lower}


def _draw(axes: dict[str, Any], traces: Sequence[Spec], layout: Spec) -> None:
    ends: dict[tuple[Any, float], float] = {}
    below: Spec | None = None
    for i, trace in enumerate(traces):
        axis = axes[trace.get("yaxis", "y")]
        color = _color(trace, COLORS[i % len(COLORS)])
        if trace["type"] == "bar":
            _bars(axis, trace, color, ends if layout.get("barmode") == "stack" else {}, layout)
        elif trace["type"] == "scatter":
            _scatter(axis, trace, color, below)
        else:
            raise ValueError(f"no picture is drawn of a {trace['type']} trace")
        below = trace


def _color(trace: Spec, default: str) -> Any:
    line, marker = trace.get("line", {}), trace.get("marker", {})
    return _plain(line.get("color") or marker.get("color") or default)


def _plain(color: Any) -> Any:
    """Matplotlib's form of ``rgba(1,2,3,0.5)``, also in a list."""
    if isinstance(color, list):
        return [_plain(one) for one in color]
    if not str(color).startswith("rgba("):
        return color
    red, green, blue, alpha = (float(part) for part in color[5:-1].split(","))
    return red / 255, green / 255, blue / 255, alpha


def _bars(axis: Any, trace: Spec, color: Any, ends: dict[tuple[Any, float], float], layout: Spec) -> None:
    across = trace.get("orientation") == "h"
    places, lengths = (trace["y"], trace["x"]) if across else (trace["x"], trace["y"])
    keys = [(place, 0.0) for place in places]
    starts = [ends.get(key, 0.0) for key in keys]
    steps = [b - a for a, b in pairwise(places)] if all(isinstance(p, int | float) for p in places) else []
    thick = trace.get("width") or (min(steps) if steps else 1.0)
    size = (thick if isinstance(thick, int | float) else thick[0]) * (1.0 - layout.get("bargap", 0.1))
    draw = axis.barh if across else axis.bar
    drawn = draw(places, lengths, size, starts, color=color)
    if "text" in trace:
        ink = trace.get("textfont", {}).get("color", "#1b1f24")
        labels = [t if n >= 5 else "" for t, n in zip(trace["text"], lengths, strict=True)]
        axis.bar_label(drawn, labels, label_type="center", color=ink)
    for key, start, length in zip(keys, starts, lengths, strict=True):
        ends[key] = start + length


def _scatter(axis: Any, trace: Spec, color: Any, below: Spec | None) -> None:
    x, y = trace["x"], trace["y"]
    line, marker, mode = trace.get("line", {}), trace.get("marker", {}), trace.get("mode", "lines")
    if trace.get("fill") == "tonexty" and below is not None:
        axis.fill_between(x, below["y"], y, color=_plain(trace["fillcolor"]), linewidth=0)
    if "lines" in mode and line.get("width", 2) > 0:
        dash = DASHES.get(line.get("dash", "solid"), "-")
        axis.plot(x, y, dash, color=color, linewidth=0.75 * line.get("width", 2))
    if "markers" in mode:
        _markers(axis, trace, marker, color)
    for name, key in (("error_x", "xerr"), ("error_y", "yerr")):
        if name in trace:
            error = trace[name]
            sides = {key: [error.get("arrayminus", error["array"]), error["array"]]}
            axis.errorbar(x, y, fmt="none", ecolor=_plain(error.get("color", color)), capsize=3, **sides)


def _markers(axis: Any, trace: Spec, marker: Spec, color: Any) -> None:
    """Points; a list of symbols is drawn symbol by symbol."""
    symbols = marker.get("symbol", "circle")
    each = symbols if isinstance(symbols, list) else [symbols] * len(trace["x"])
    area = (0.75 * marker.get("size", 6)) ** 2
    for symbol in dict.fromkeys(each):
        kept = [i for i, one in enumerate(each) if one == symbol]
        x, y = [trace["x"][i] for i in kept], [trace["y"][i] for i in kept]
        fill = {"facecolors": "none", "edgecolors": color} if symbol.endswith("-open") else {"color": color}
        look = {"marker": MARKERS.get(symbol, "o"), "alpha": marker.get("opacity", 1.0), "linewidths": 1.0}
        axis.scatter(x, y, area, zorder=3, **look, **fill)


def _dress(axis: Any, x: Spec, y: Spec, lowest: bool) -> None:
    """Titles, scales and directions."""
    for one, pick in ((x, "x"), (y, "y")):
        scale, limits = (axis.set_xscale, axis.set_xlim) if pick == "x" else (axis.set_yscale, axis.set_ylim)
        title = one.get("title", {}).get("text", "").replace("<br>", "\n")
        if title and (pick == "y" or lowest):
            (axis.set_xlabel if pick == "x" else axis.set_ylabel)(title)
        if one.get("type") == "log":
            scale("log")
        if "range" in one:
            low, high = one["range"]
            limits(*((10**low, 10**high) if one.get("type") == "log" else (low, high)))
        elif one.get("rangemode") == "tozero":
            limits(**{"left" if pick == "x" else "bottom": 0})
        if one.get("autorange") == "reversed":
            (axis.invert_xaxis if pick == "x" else axis.invert_yaxis)()
        if one.get("showgrid") is False:
            axis.grid(visible=False, axis=pick)
        if "tickvals" in one:
            (axis.set_xticks if pick == "x" else axis.set_yticks)(one["tickvals"], one["ticktext"])


def _legend(canvas: Any, axis: Any, traces: Sequence[Spec]) -> None:
    """A name for every trace that the page's legend names; none where there is only one."""
    from matplotlib.lines import Line2D

    named = {t["name"]: t for t in traces if t.get("showlegend", True) and t.get("name") and t["type"] == "scatter"}
    if len(named) < 2:
        return
    handles: list[Any] = []
    for name, trace in named.items():
        points = trace.get("mode", "lines") == "markers"
        dash = DASHES.get(trace.get("line", {}).get("dash", "solid"), "-")
        color = _color(trace, COLORS[len(handles) % len(COLORS)])
        color = color[0] if isinstance(color, list) else color
        look: dict[str, Any] = {"linestyle": "", "marker": "o"} if points else {"linestyle": dash}
        handles.append(Line2D([], [], color=color, label=name, **look))
    axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, fontsize=8)
