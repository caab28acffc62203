"""One factor at a time: what ``--ablate`` and ``--sweep`` run beside the methods as they are configured."""

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from gemma_alignment.config import ConfigError, unknown_parameter
from gemma_alignment.dotted import dotted, merged, nested
from gemma_alignment.errors import UserError
from gemma_alignment.hooks.checks import check_parameters
from gemma_alignment.hooks.feasible import check_budget
from gemma_alignment.parameters import section_class
from gemma_alignment.stages import ARMS, kinds_of
from gemma_alignment.study.plan import Variant

SHARED = ("policy_optimization", "rollout", "kl_control", "score_normalization")
"""Sections that can be swept for every method: a variant changes them for its arm alone, never for what arms share."""

OF_AN_ARM = ("rl_base", "sharing")
"""Settings of section ``modeling`` that only arms read: what they start from, and on how many bases."""

Parameters = Mapping[str, Any]


def ablations(settings: Sequence[str], methods: Sequence[str], parameters: Parameters) -> list[Variant]:
    """For each setting and method every value but the configured one, whether the method takes it or not.

    A setting of words takes those of its type; a number those of the section ``study.ablations``.

    Raises:
        UserError: for a setting that cannot be ablated.
    """
    numbers = parameters["study"]["ablations"]
    found: list[Variant] = []
    for setting in settings:
        for method in methods:
            values = {**_words(method), **numbers, **_words("modeling", OF_AN_ARM)}
            if setting not in values:
                raise UserError(f"--ablate {setting}: {unknown_parameter('', setting, list(values))}")
            section = "modeling" if setting in OF_AN_ARM else method
            found += _deviating(method, f"{section}.{setting}", values[setting], parameters, "ablation")
    return found


def sweeps(options: Sequence[str], methods: Sequence[str], parameters: Parameters) -> list[Variant]:
    """The variants of options such as ``grpo.group_size=2,4,6,8``, without the configured value.

    Raises:
        UserError: for an option that means nothing.
    """
    known = dotted(parameters)
    found: list[Variant] = []
    for option in options:
        key, _, texts = option.partition("=")
        swept = _methods_of(key, methods)
        if key not in known:
            raise UserError(f"--sweep {option}: {unknown_parameter('', key, list(known))}")
        if not isinstance(known[key], bool | int | float | str | None):
            raise UserError(f"--sweep {option}: {key} is a list, and only single values can be swept")
        values = [_parsed(option, text) for text in texts.split(",")]
        for method in swept:
            found += _deviating(method, key, values, parameters, "sweep")
    return found


def each_once(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The same without repetitions; what was asked for in two ways stands once, as both."""
    found: dict[Variant, str] = {}
    for variant in variants:
        bare = replace(variant, kind="")
        found[bare] = kinds_of(found.get(bare), variant.kind)
    return tuple(replace(variant, kind=kind) for variant, kind in found.items())


def accepted(tried: Sequence[Variant], parameters: Parameters) -> tuple[list[Variant], list[str]]:
    """Those of ``tried`` that their methods take, and of each other one why not."""
    taken: list[Variant] = []
    refused: list[str] = []
    for variant in tried:
        try:
            check(variant, parameters)
            taken.append(variant)
        except ConfigError as error:
            refused.append(f"{variant.method}@{variant.name}: {error}")
    return taken, refused


def check(variant: Variant, parameters: Parameters) -> None:
    """Refuse a variant that its runs would refuse.

    Raises:
        ConfigError: for a value that the method does not take.
        UserError: for one that does not fit the budget.
    """
    changes = nested(variant.params)
    changed = merged(parameters, changes)
    check_parameters(changed, parameters, changes)
    check_budget(variant.method, changed)


def _words(section: str, only: Sequence[str] | None = None) -> dict[str, Sequence[Any]]:
    """The settings of a section whose type is a choice of words, with the words."""
    hints = typing.get_type_hints(section_class(section))
    words = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
    return {name: words[name] for name in (words if only is None else only)}


def _methods_of(key: str, methods: Sequence[str]) -> Sequence[str]:
    """The methods that a swept parameter belongs to."""
    section = key.partition(".")[0]
    if section in methods:
        return (section,)
    if section in SHARED or key in [f"modeling.{name}" for name in OF_AN_ARM]:
        return methods
    if section in ARMS:
        raise UserError(f"--sweep {key}: {section} is not among the methods of this study: add it to --methods")
    raise UserError(
        f"--sweep {key}: what can be swept are parameters of the arms, in the sections "
        f"{', '.join([*methods, *SHARED])}. Another SFT or reward model is a study of its own: "
        "give it a data_root"
    )


def _deviating(
    method: str, key: str, values: Sequence[Any], parameters: Parameters, kind: str
) -> Iterator[Variant]:  # fmt: skip
    """A variant for each value but the configured one, that of the baseline."""
    configured = dotted(parameters)[key]
    return (Variant(method, key, value, kind) for value in values if value != configured)


def _parsed(option: str, text: str) -> Any:
    """A value as ``--params`` reads it."""
    import yaml
    from omegaconf import OmegaConf

    try:
        (value,) = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text.strip()}"])).values()  # type: ignore[union-attr]
    except yaml.YAMLError:
        value = {}
    if not text.strip() or isinstance(value, dict | list):
        raise UserError(f"--sweep {option}: expected PARAMETER=VALUE,VALUE such as grpo.group_size=2,4,6,8")
    return value
