"""Numbers as a reader sees them."""

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""What stands where there is no number; the reason is in the list of what is not estimable."""


def number(value: float | None, decimals: int = 3) -> str:
    """With so many decimals and a real minus sign; a dash for None."""
    if value is None:
        return NONE
    text = f"{value:,.{decimals}f}"
    if text.strip("-0.,") == "":
        text = text.lstrip("-")  # no minus zero
    return text.replace("-", MINUS)


def signed(value: float | None, decimals: int = 3) -> str:
    """As ``number``, with a plus before what is above 0."""
    text = number(value, decimals)
    positive = value is not None and value > 0 and text.strip("0.,") != ""
    return f"+{text}" if positive else text


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in percent."""
    return NONE if value is None else f"{number(100.0 * value, decimals)}%"


def bounds(low: float | None, high: float | None, decimals: int = 3) -> str:
    """An interval in brackets; a dash when it has no bounds."""
    if low is None or high is None:
        return NONE
    return f"[{number(low, decimals)}, {number(high, decimals)}]"


def percent_bounds(low: float | None, high: float | None, decimals: int = 1) -> str:
    """An interval of shares in percent."""
    if low is None or high is None:
        return NONE
    return f"{number(100.0 * low, decimals)} to {number(100.0 * high, decimals)}%"


def p_value(p: float | None, floor: float | None = None) -> str:
    """A p to two digits, with the least one that its test can give."""
    if p is None:
        return NONE
    text = "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
    return f"{text} (least possible {floor:.2g})" if floor else text


def setting(value: bool | int | float | str | None) -> str:
    """The value of a parameter as the YAML files have it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def name_of(family: str) -> str:
    """A family as people write it: PPO, GRPO@k4, SFT, Dr. GRPO."""
    method, at, variant = family.partition("@")
    known = {"dr_grpo": "Dr. GRPO"}
    return known.get(method, method.upper()) + at + variant


def pair_name(a: str, b: str) -> str:
    """Two families that meet."""
    return f"{name_of(a)} v {name_of(b)}"
