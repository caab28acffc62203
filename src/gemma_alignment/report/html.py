"""HTML that cannot forget to escape: text is escaped unless it already is ``Html``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

VOID = frozenset({"br", "hr", "img", "input", "meta", "link"})


class Html(str):
    """A piece of finished markup."""

    __slots__ = ()


Content = Html | str | int | None
"""What may stand in an element; None leaves nothing."""


def h(tag: str, *content: Content, **attributes: str | bool | None) -> Html:
    """One element. ``class_`` and ``for_`` lose their underscore, other underscores become dashes.

    Text and attribute values are escaped; an attribute that is None or False is left out.
    """
    shown = []
    for name, value in attributes.items():
        key = name.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {key}")
        elif value is not None and value is not False:
            shown.append(f' {key}="{escape(value)}"')
    opening = f"<{tag}{''.join(shown)}>"
    return Html(opening) if tag in VOID else Html(f"{opening}{join(content)}</{tag}>")


def join(content: Iterable[Content], between: str = "") -> Html:
    """Several pieces in a row, text escaped."""
    pieces = (c if isinstance(c, Html) else escape(str(c), quote=False) for c in content if c is not None)
    return Html(between.join(pieces))


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    head: Content
    numeric: bool = False
    title: str | None = None
    """What the head means, shown on hovering."""


def table(columns: Sequence[Column], rows: Iterable[Sequence[Content]], caption: Content = None) -> Html:
    """A table that scrolls sideways on narrow screens; the first cell of a row is its head."""
    heads = [h("th", c.head, scope="col", class_="number" if c.numeric else None, title=c.title) for c in columns]
    body = []
    for row in rows:
        cells = [h("th", row[0], scope="row")]
        cells += [
            h("td", cell, class_="number" if column.numeric else None)
            for column, cell in zip(columns[1:], row[1:], strict=True)
        ]
        body.append(h("tr", *cells))
    inner = h(
        "table",
        h("caption", caption) if caption else None,
        h("thead", h("tr", *heads)),
        h("tbody", *body),
    )
    return h("div", inner, class_="scroll", tabindex="0", role="group", aria_label="table")


def details(summary: Content, *content: Content, open_: bool = False) -> Html:
    """A part that opens on a click; printed open."""
    return h("details", h("summary", summary), *content, open=open_)


def paragraphs(texts: Iterable[Content]) -> Html:
    """A list of sentences."""
    return h("ul", *(h("li", text) for text in texts), class_="plain")
