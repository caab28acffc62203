"""What is wrong before anything starts: parameters that nothing reads, and inputs that are not there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_alignment.config import ConfigError, build, unknown_parameter
from gemma_alignment.parameters import SECTIONS, section_class
from gemma_alignment.parameters.run import RunParameters


def check_parameters(parameters: Mapping[str, Any], configured: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check every parameter of a run, whether its pipeline reads it or not.

    Args:
        parameters: all parameters, those of the command line merged in.
        configured: all parameters as the files have them.
        given: those of the command line, nested.

    Raises:
        ConfigError: an unknown one (naming the nearest), a missing one, a wrong type, a value out of range.
    """
    if problems := _unread(given, configured, ""):
        raise ConfigError("\n".join(problems))
    run = {key: value for key, value in parameters.items() if key not in SECTIONS}
    _check_top(run)
    for section in SECTIONS:
        if section not in parameters:
            raise ConfigError(f"missing section {section}: no conf/**/parameters*.yml has it")
        build(section_class(section), parameters[section], section)
    _check_context(parameters)
    _check_precision(parameters)
    _check_sharding(parameters)


def _check_context(parameters: Mapping[str, Any]) -> None:
    """Prompt and answer must fit the model that is made here; one of the hub has room of its own."""
    preferences, positions = parameters["preferences"], parameters["tiny_model"]["max_positions"]
    answer = max(preferences["max_response_tokens"], parameters["rollout"]["max_new_tokens"])
    if parameters["modeling"]["base_model"] == "pretrain" and preferences["max_prompt_tokens"] + answer > positions:
        raise ConfigError(
            f"preferences.max_prompt_tokens {preferences['max_prompt_tokens']} and answers of up to {answer} tokens "
            f"do not fit tiny_model.max_positions {positions}: lower max_prompt_tokens, max_response_tokens or "
            "rollout.max_new_tokens, or raise max_positions"
        )


def _check_precision(parameters: Mapping[str, Any]) -> None:
    """Responses are decoded in 4 bits only where the model is held so."""
    if parameters["rollout"]["precision"] == "4bit" and parameters["modeling"]["quantization"] != "nf4":
        raise ConfigError(
            "rollout.precision is '4bit', but modeling.quantization is "
            f"'{parameters['modeling']['quantization']}': set rollout.precision=as_held or modeling.quantization=nf4"
        )


def _check_sharding(parameters: Mapping[str, Any]) -> None:
    """A base that is held in shares decodes through its own modules, by the loop whose steps the processes share."""
    for name, needed in (("weights", "adapter"), ("engine", "transformers")):
        found = parameters["rollout"][name]
        if parameters["modeling"]["sharding"] == "base" and found != needed:
            raise ConfigError(
                f"modeling.sharding is 'base', which goes with rollout.{name} {needed!r} alone, but that is {found!r}: "
                f"set rollout.{name}={needed} or modeling.sharding=none"
            )


def configured_parameters(loader: Any) -> dict[str, Any]:
    """The parameters as the files have them, without those of the command line."""
    from kedro.framework.project import settings

    plain = type(loader)(
        conf_source=loader.conf_source, env=loader.env, runtime_params={}, **settings.CONFIG_LOADER_ARGS
    )
    found: dict[str, Any] = plain["parameters"]
    return found


def _check_top(values: Mapping[str, Any]) -> None:
    names = list(RunParameters.__annotations__)
    known = [*names, *SECTIONS]
    if unknown := [key for key in values if key not in names]:
        raise ConfigError("\n".join(unknown_parameter("", key, known) for key in unknown))
    build(RunParameters, values, "")


def _unread(given: Mapping[str, Any], configured: Mapping[str, Any], prefix: str) -> list[str]:
    """A sentence for each given key that the files do not have."""
    problems: list[str] = []
    for key, value in given.items():
        if key not in configured:
            problems.append(unknown_parameter(prefix, str(key), [str(known) for known in configured]))
        elif isinstance(configured[key], Mapping) and configured[key]:
            if isinstance(value, Mapping):
                problems += _unread(value, configured[key], f"{prefix}{key}.")
            else:
                problems.append(
                    f"{prefix}{key} is a section, not a value: write {prefix}{key}.NAME={value}, "
                    f"NAME one of {', '.join(configured[key])}"
                )
    return problems


def free_inputs(pipeline: Any) -> list[str]:
    """The datasets that a pipeline reads and does not make, parameters left out, sorted."""
    return sorted(name for name in pipeline.inputs() if not name.startswith("params:") and name != "parameters")


def path_of(dataset: Any) -> Path | None:
    """Where a dataset stands, if it is a file or a folder."""
    path = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
    return Path(str(path)) if path is not None else None
