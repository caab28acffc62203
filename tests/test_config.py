"""The strict builder, and every section of every environment built with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.config import ConfigError, build, nearest
from gemma_alignment.parameters import SECTIONS

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Inner:
    rank: int
    kind: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    rate: float
    count: int
    name: str
    flag: bool
    inner: Inner
    limit: int | None
    pair: tuple[float, float]
    names: list[str]
    seeds: tuple[int, ...] | None
    table: dict[str, float]
    many: tuple[Inner, ...]

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


GOOD = {
    "rate": 1, "count": 2, "name": "x", "flag": False, "inner": {"rank": 3, "kind": "b"}, "limit": None,
    "pair": [0.5, 1], "names": ["p"], "seeds": [1, 2], "table": {"k": 2}, "many": [{"rank": 1, "kind": "a"}],
}  # fmt: skip


def test_values_are_placed_and_only_ints_and_lists_are_converted():
    built = build(Outer, GOOD, "outer")
    assert built == Outer(
        1.0, 2, "x", False, Inner(3, "b"), None, (0.5, 1.0), ["p"], (1, 2), {"k": 2.0}, (Inner(1, "a"),)
    )
    assert type(built.rate) is float and type(built.pair[1]) is float and type(built.table["k"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 2.0}, r"outer\.count: expected int, got 2\.0 \(float\)"),
        ({"count": True}, r"outer\.count: expected int, got True \(bool\)"),
        ({"count": None}, r"outer\.count: expected int, got null"),
        ({"rate": "1e-4"}, r"outer\.rate: expected float, got '1e-4' \(str\)"),
        ({"rate": False}, r"outer\.rate: expected float, got False \(bool\)"),
        ({"rate": 10**400}, r"outer\.rate: expected float, got 1000000"),
        ({"flag": 0}, r"outer\.flag: expected bool, got 0 \(int\)"),
        ({"name": 3}, r"outer\.name: expected str, got 3 \(int\)"),
        ({"limit": "none"}, r"outer\.limit: expected int, got 'none'"),
        ({"pair": [1, 2, 3]}, r"outer\.pair: expected 2 values, got 3"),
        ({"pair": "ab"}, r"outer\.pair: expected a list, got 'ab' \(str\); for a list of one write \[ab\]$"),
        ({"pair": "a" * 300}, r"outer\.pair: expected a list, got 'a+… 302 characters \(str\)$"),
        ({"pair": None}, r"outer\.pair: expected a list, got null$"),
        ({"names": ["p", 1]}, r"outer\.names\[1\]: expected str, got 1"),
        ({"seeds": [1, "2"]}, r"outer\.seeds\[1\]: expected int, got '2'"),
        ({"table": {"k": "v"}}, r"outer\.table\.k: expected float, got 'v'"),
        ({"inner": 3}, r"outer\.inner: expected a section with keys, got 3"),
        ({"inner": {"rank": 3, "kind": "c"}}, r"outer\.inner\.kind: expected one of a, b, got 'c'"),
        ({"inner": {"rank": 3}}, r"missing parameter: outer\.inner\.kind"),
        (
            {"inner": {"rnak": 3, "kind": "a"}},
            r"unknown parameter outer\.inner\.rnak; did you mean outer\.inner\.rank\?",
        ),
        ({"many": [{"rank": 1, "kind": 1}]}, r"outer\.many\[0\]\.kind: expected one of a, b"),
        ({"count": 0}, r"outer: count must be at least 1, got 0"),
        ({"zzz": 1}, r"unknown parameter outer\.zzz; known here: count, "),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place(change, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, {**GOOD, **change}, "outer")


@pytest.mark.parametrize(
    ("value", "shown"),
    [("x" * 10**6, "1000002 characters (str)"), ([0] * 10**5, "300000 characters (list)"), (10**5000, "digits (int)")],
    ids=["text", "list", "number"],
)
def test_a_huge_value_is_shown_in_part(value, shown):
    key = "rate" if isinstance(value, int) else "count"
    with pytest.raises(ConfigError) as error:
        build(Outer, {**GOOD, key: value}, "outer")
    assert str(error.value).endswith(shown)
    assert len(str(error.value)) < 300


def test_every_missing_key_is_named_at_once():
    rest = {key: value for key, value in GOOD.items() if key not in ("rate", "names")}
    with pytest.raises(ConfigError, match=r"^missing parameters: outer\.rate, outer\.names$"):
        build(Outer, rest, "outer")


@dataclass(frozen=True)
class WithDefault:
    size: int = 3


def test_a_default_in_python_does_not_stand_in_for_a_missing_key():
    with pytest.raises(ConfigError, match=r"missing parameter: one\.size"):
        build(WithDefault, {}, "one")


@given(st.text(min_size=1))
def test_the_nearest_name_is_one_of_the_known_ones(name):
    assert nearest(name, ["group_size", "kl_coef"]) in (None, "group_size", "kl_coef")


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive(count, rate):
    @dataclass(frozen=True)
    class Numbers:
        count: int
        rate: float

    assert build(Numbers, {"count": count, "rate": rate}, "n") == Numbers(count, rate)


def environments():
    return sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "local")


def test_the_environments_are_all_here():
    assert environments() == ["base", "gemma2b", "test"]


@pytest.mark.parametrize("env", environments())
def test_every_section_of_every_environment_can_be_built(env, monkeypatch):
    from kedro.config import OmegaConfigLoader

    from gemma_alignment.hooks.checks import check_parameters
    from gemma_alignment.settings import CONFIG_LOADER_ARGS

    parameters = OmegaConfigLoader(str(ROOT / "conf"), env=env, **CONFIG_LOADER_ARGS)["parameters"]
    check_parameters(parameters, parameters, {})
    sections = {key for key, value in parameters.items() if isinstance(value, dict)}
    assert sections == set(SECTIONS)
    assert len(sections) == 23


def test_a_section_that_no_class_knows_is_an_error():
    from gemma_alignment.hooks.checks import check_parameters

    with pytest.raises(ConfigError, match="unknown parameter grppo; did you mean grpo"):
        check_parameters({"grppo": {}}, {"grppo": {}}, {})
