"""The node of the export."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.errors import UserError
from gemma_alignment.pipelines.models import Start, held_by, load_role, open_base, prepare


def export_policy(
    sft_merged_model: str, policy: str, history: Sequence[Mapping[str, Any]], run: Mapping[str, Any], method: str,
    seed: int, runtime: dict[str, Any], base_model: str, sft_adapter: str,
) -> Any:  # fmt: skip
    """The policy's adapter added to the base that it was trained on, as one model with tokenizer and card.

    How the base is held is read from the run's own record, not from today's configuration: what is
    exported is what was trained, with its quantisation error where the base was held in 4 bits.

    Raises:
        UserError: for a run that is not finished or of another method or seed, and for an adapter
            that does not belong to the base.
    """
    from gemma_alignment.modeling.card import model_card
    from gemma_alignment.modeling.saving import SavedModel

    _check(run, method, seed)
    modeling = held_by(run)
    base = Start(sft_merged_model, base_model, sft_adapter).base(modeling)
    model, chat = open_base(base, modeling, prepare(runtime), seed)
    load_role(model, "policy", policy, base, method)
    evaluated = [row for row in history if any(key.startswith("eval/") for key in row)]
    return SavedModel(
        model.merged("policy", model.model.dtype), chat.tokenizer, model_card(run, evaluated[-1] if evaluated else {})
    )


def _check(run: Mapping[str, Any], method: str, seed: int) -> None:
    again = f"kedro run --pipeline={method} --params seed={seed}"
    if run["status"] != "finished":
        raise UserError(f"The run of {method} with seed {seed} is {run['status']}: finish it with {again}")
    if (run["method"], run["seed"]) != (method, seed):
        raise UserError(
            f"The folder of {method} with seed {seed} holds a run of {run['method']} with seed {run['seed']}: "
            f"move it back where it belongs, and make this one with {again}"
        )
