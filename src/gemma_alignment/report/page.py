"""The file around the report: head, style, data and scripts, all of them inside."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from gemma_alignment.report.html import Html, h

ASSETS = files("gemma_alignment.report") / "assets"
PLOTLY = "plotly-basic-4.1.1.min.js"

Block = Mapping[str, Any]


def page(title: str, body: Html, data: Block) -> str:
    """A whole HTML document; ``data`` is what its script draws."""
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Html(_asset("report.css"))),
    )
    scripts = [
        h("noscript", h("p", "The figures need JavaScript; every number is in the tables.", class_="note")),
        h("script", Html(json_for_script(data)), type="application/json", id="data"),
        h("script", Html(_asset(PLOTLY))),
        h("script", Html(_asset("report.js"))),
    ]
    whole = h("html", head, h("body", h("main", body), *scripts), lang="en")
    return f"<!doctype html>\n{whole}\n"


def json_for_script(data: Block) -> str:
    """JSON that cannot end the script element it stands in, nor break a line of script."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
