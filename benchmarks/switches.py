"""Levers of ours that can be switched off: by a setting, or by the choice of another function that does the same.

Nothing here is a copy of the loop: what is switched off is what runs where a model or a setting asks for it, and the
constants that decide when.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gemma_alignment.rollout import experience, sampling

SETTINGS: dict[str, dict[str, Any]] = {"merged weights": {"rollout.weights": "adapter"}}
"""By the lever: parameters that switch it off."""


def _replace(module: Any, name: str, other: Any) -> None:
    """Let a module call something else; a name that it does not have any more is an error, or nothing is switched."""
    getattr(module, name)
    setattr(module, name, other)


def _every_row_to_the_end(_: Any) -> None:
    _replace(sampling, "COMPACT_BELOW", 0.0)


def _prompt_once_a_response(_: Any) -> None:
    one = sampling.sample

    def repeated(model: Any, prompts: Sequence[Any], group_size: int, **how: Any) -> Any:
        return one(model, [prompt for prompt in prompts for _ in range(group_size)], 1, **how)

    _replace(experience, "sample", repeated)


def _padded(run: Any) -> None:
    run.model.packing.load_state_dict({"agrees": False})


def _recomputed(run: Any) -> None:
    run.old_logprobs.load_state_dict({"sampler_agrees": False})


def _by_the_models_own_modules(_: Any) -> None:
    from gemma_alignment.modeling.decoding import ModulesCached

    _replace(sampling, "cached", ModulesCached)


def _states_by_the_models_own_modules(_: Any) -> None:
    from gemma_alignment.modeling import states

    _replace(states, "is_plain", lambda model: False)


FUNCTIONS: dict[str, Callable[[Any], None]] = {
    "ended rows leave": _every_row_to_the_end,
    "prompt computed once, its cache copied": _prompt_once_a_response,
    "packed, shared prompt": _padded,
    "old log-probabilities from the sampler": _recomputed,
}
"""By the lever: what switches it off, given the run before its first iteration."""
PORTABLE = {
    "decoding by Gemma's own products": _by_the_models_own_modules,
    "scoring and training by Gemma's own products": _states_by_the_models_own_modules,
}
"""The levers that only a Gemma has."""
FUNCTIONS |= PORTABLE
