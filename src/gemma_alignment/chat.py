"""``chat``: prompts answered by a trained policy, and by the SFT model that it started from."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.modeling.protocols import Role
from gemma_alignment.parameters.rollout import RolloutParameters
from gemma_alignment.stages import ARMS, Stage, unknown_method
from gemma_alignment.storage.address import folder_under, is_bucket
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.storage.names import RECORD

MODELS, OUTPUT = "06_models", "07_model_output"


@dataclass(frozen=True)
class Trained:
    """A policy on disk: where it is, the models that it may belong to, and the record of its run."""

    name: str
    """``grpo-seed777``."""
    method: str
    models: Path
    policy: Path
    record: Path

    @classmethod
    def find(cls, project: Path, method: str, parameters: Mapping[str, Any]) -> Self:
        """The policy of ``method`` for the seed and variant of ``parameters``.

        Raises:
            UserError: when there is none, with those that there are and the command that trains it.
        """
        if method not in ARMS:
            raise UserError(unknown_method(method) or f"method {method}: give the variant as --params variant=NAME")
        stage = Stage.of(method, parameters)
        root = folder_under(project, parameters["data_root"])
        models, record = root / MODELS, root / OUTPUT / stage.folder / RECORD
        if is_bucket(address := str(parameters["data_root"])):
            Mirror(address, root).pull(lambda name: name.startswith(f"{MODELS}/") or root / name == record)
        found = cls(stage.run_name, method, models, models / stage.folder / "policy", record)
        if found.policy.is_dir() and (models / "sft_merged_model").is_dir():
            return found
        there = sorted(f"{one.parent.parent.name} {one.parent.name}" for one in models.glob("*/seed=*/policy"))
        raise UserError(
            f"no policy of {stage.run_name} at {found.policy}. Trained are: {', '.join(there) or 'none'}.\n"
            f"Train it by: kedro run --pipeline={method} --params seed={stage.seed}"
            + (f",variant={stage.variant}" if stage.variant else "")
        )

    def modeling(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """How its base was held when it was trained; as it is configured now, where the run left no record."""
        from gemma_alignment.pipelines.models import held_by

        try:
            return held_by(json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError):
            return held_by({"parameters": parameters})


class Conversation:
    """A policy that is loaded once and answers prompt after prompt."""

    def __init__(self, trained: Trained, parameters: Mapping[str, Any], temperature: float | None) -> None:
        from dataclasses import replace

        from gemma_alignment.pipelines.models import Start, load_role, open_start, prepare

        self._name = trained.name
        settings = build(RolloutParameters, parameters["rollout"], "rollout")
        chosen = settings.temperature if temperature is None else temperature
        plain: dict[str, Any] = {"engine": "transformers", "weights": "adapter", "precision": "as_held"}  # no copy
        self._settings = replace(settings, temperature=chosen, **plain)
        self._seed = int(parameters["seed"])
        device = prepare(parameters["runtime"])
        names = ("sft_merged_model", "base_model", "sft_adapter")
        start, modeling = Start(*(str(trained.models / name) for name in names)), trained.modeling(parameters)
        self._model, self._chat = open_start(start, modeling, device, self._seed)
        load_role(self._model, "policy", str(trained.policy), start.base(modeling), trained.method)
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
