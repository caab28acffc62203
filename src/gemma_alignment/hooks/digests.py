"""What a stage reads, as digests: the fingerprints of its record beside that of its parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline

from gemma_alignment.fingerprints import digest, digest_of_bytes
from gemma_alignment.hooks.checks import free_inputs, path_of
from gemma_alignment.hooks.given import files_given
from gemma_alignment.stages import CLOSING

INPUTS = {
    "data": ("genrm_train", "preferences_train", "preferences_eval", "prompts_train", "prompts_eval"),
    "base_model": ("base_model",),
    "sft": ("sft_merged_model",),
    "reward_model": ("rm_model_bt",),
}
"""Which datasets a fingerprint covers, where a stage reads them."""
RUNS = ("history.jsonl", "responses.jsonl")
"""Files of every run beside the folder of evaluation or report, which read them all."""


def digests(full: Pipeline, parameters: Mapping[str, Any], catalog: Any, stage: str, directory: Path) -> dict[str, str]:
    """Those of the inputs of a whole stage that stand still now; without a catalog, of files that parameters name."""
    read = free_inputs(full)
    found: dict[str, str] = {}
    for label, names in INPUTS.items() if catalog is not None else ():
        paths = [path_of(catalog.get(name)) for name in names if name in read]
        there = [path for path in paths if path is not None and path.exists()]
        if there and len(there) == len(paths):
            found[label] = digest(*there)
    if catalog is not None and stage in CLOSING:
        found["runs"] = digest(*sorted(path for name in RUNS for path in directory.parent.rglob(name)))
    given = files_given(read, parameters)
    return found | {label: digest_of_bytes(file) for label, file in given.items() if file.is_file()}


def without_made(fingerprints: Mapping[str, str], made: frozenset[str]) -> dict[str, str]:
    """The fingerprints without those of inputs that are about to be ``made`` anew."""
    changing = {label for label, names in INPUTS.items() if any(name in made for name in names)}
    return {key: value for key, value in fingerprints.items() if key not in changing}
