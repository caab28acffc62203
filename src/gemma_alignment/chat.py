"""``chat``: prompts answered by a trained policy, and by the SFT model that it started from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.modeling.protocols import Role
from gemma_alignment.parameters.training import RolloutParameters
from gemma_alignment.stages import ARMS, Stage

MODELS = "06_models"


@dataclass(frozen=True)
class Trained:
    """A policy on disk: where it is, and the base that it belongs to."""

    name: str
    """``grpo-seed777``."""
    base: Path
    policy: Path

    @classmethod
    def find(cls, project: Path, method: str, parameters: Mapping[str, Any]) -> Self:
        """The policy of ``method`` for the seed and variant of ``parameters``.

        Raises:
            UserError: when there is none, with those that there are and the command that trains it.
        """
        if method not in ARMS:
            raise UserError(f"unknown method {method}; there are {', '.join(ARMS)}")
        stage = Stage.of(method, parameters)
        models = project / str(parameters["data_root"]) / MODELS
        found = cls(stage.run_name, models / "sft_merged_model", models / stage.folder / "policy")
        if found.policy.is_dir() and found.base.is_dir():
            return found
        there = sorted(f"{one.parent.parent.name} {one.parent.name}" for one in models.glob("*/seed=*/policy"))
        raise UserError(
            f"no policy of {stage.run_name} at {found.policy}. Trained are: {', '.join(there) or 'none'}.\n"
            f"Train it by: kedro run --pipeline={method} --params seed={stage.seed}"
        )


class Conversation:
    """A policy that is loaded once and answers prompt after prompt."""

    def __init__(self, trained: Trained, parameters: Mapping[str, Any], temperature: float | None) -> None:
        from dataclasses import replace

        from gemma_alignment.pipelines.models import open_base, prepare

        self._name = trained.name
        settings = build(RolloutParameters, parameters["rollout"], "rollout")
        chosen = settings.temperature if temperature is None else temperature
        self._settings = replace(settings, temperature=chosen, weights="adapter")
        self._seed = int(parameters["seed"])
        device = prepare(parameters["runtime"])
        self._model, self._chat = open_base(str(trained.base), parameters["modeling"], device, self._seed)
        self._model.load("policy", str(trained.policy))
        self._asked = 0

    def answers(self, prompt: str, compare: bool) -> Iterator[tuple[str, str]]:
        """Who answers, and what; both with the same random numbers."""
        from gemma_alignment.rollout.experience import rollout
        from gemma_alignment.training.seeding import generator

        systems: list[tuple[str, Role]] = [(self._name, "policy"), ("sft", "reference")]
        for name, role in systems[: 2 if compare else 1]:
            random = generator(self._seed, "chat", self._asked)
            found = rollout(self._model, self._chat, [prompt], 1, self._settings, random, role)
            tokens = found.sequences.response_tokens[0][found.sequences.response_mask[0]]
            text = self._chat.decode_response(tokens.tolist())
            yield name, text if bool(found.ended[0]) else f"{text} […]"
        self._asked += 1


def talk(conversation: Conversation, prompts: Iterable[str], compare: bool) -> Iterator[str]:
    """A line for each answer; named where there are two. Empty prompts are passed over."""
    for prompt in prompts:
        if prompt.strip():
            for name, text in conversation.answers(prompt.strip(), compare):
                yield f"{name}: {text}" if compare else text
