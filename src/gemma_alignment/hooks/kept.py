"""What a run in MLflow keeps beside its numbers: the data it read, its adapter, a sample of the judge's calls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_alignment.datasets.json_lines import JSONLinesDataset
from gemma_alignment.datasets.model_directory import ModelDirectoryDataset
from gemma_alignment.fingerprints import digest
from gemma_alignment.hooks.checks import path_of
from gemma_alignment.hooks.tracking import Tracking

DIGEST = 36
"""MLflow keeps so many characters of a digest."""
CALLS = 12
"""Calls of the judge that are kept as traces: a page of them, at a few hundredths of a second each."""
USES = {"train": "training", "eval": "evaluation"}

Row = Mapping[str, Any]


def dataset_input(name: str, path: Path) -> Any:
    """A file of JSON lines as MLflow's input of a run: its digest, where it stands, how many rows it has."""
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    with path.open("rb") as lines:
        rows = sum(1 for line in lines if line.strip())
    entity = Dataset(
        name=name,
        digest=digest(path)[:DIGEST],
        source_type="local",
        source=json.dumps({"uri": str(path)}),
        profile=json.dumps({"num_rows": rows}),
    )
    use = USES.get(name.rpartition("_")[2], "input")
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", use)])


def inputs_of(names: Iterable[str], catalog: Any) -> list[Any]:
    """Those of ``names`` that are files of JSON lines and are there."""
    found = [(name, catalog.get(name)) for name in names]
    paths = [(name, path_of(dataset)) for name, dataset in found if isinstance(dataset, JSONLinesDataset)]
    return [dataset_input(name, path) for name, path in paths if path is not None and path.is_file()]


def adapter(dataset: Any) -> Path | None:
    """The directory of a dataset that holds an adapter; None for anything else, whole models too."""
    path = path_of(dataset) if isinstance(dataset, ModelDirectoryDataset) else None
    return path if path is not None and (path / "adapter_config.json").is_file() else None


def sample(judgements: Sequence[Row], pairs: Sequence[Row]) -> list[dict[str, Any]]:
    """Evenly spaced judgements, each with the two answers in the order in which the judge read them."""
    if not pairs:
        return []
    texts = {(p["system_a"], p["system_b"], p["prompt_id"]): p for p in pairs}
    step = max(1, len(judgements) // CALLS) | 1  # odd: the two orders of a pair stand one after the other
    return [
        _call(row, texts[key])
        for row in judgements[::step][:CALLS]
        if (key := (row["system_a"], row["system_b"], row["prompt_id"])) in texts
    ]


def _call(row: Row, pair: Row) -> dict[str, Any]:
    first, second = ("a", "b") if row["order"] == "ab" else ("b", "a")
    asked = {
        "prompt": pair["prompt"],
        "first answer": pair[f"answer_{first}"],
        "second answer": pair[f"answer_{second}"],
    }
    shown = {"first": pair[f"system_{first}"], "second": pair[f"system_{second}"], "order": row["order"]}
    return {
        "inputs": asked,
        "outputs": {"verdict": row["verdict"], "reply": row["reply"], **shown},
        "tags": {"prompt_id": str(row["prompt_id"]), "model": str(row["model"]), **shown},
    }


def log_calls(calls: Iterable[Mapping[str, Any]], experiment_id: str, run_id: str) -> None:
    """Keep calls as traces of a run."""
    import mlflow

    for call in calls:
        span = mlflow.start_span_no_context(
            "judge",
            span_type="LLM",
            inputs=call["inputs"],
            tags=dict(call["tags"]),
            metadata={"mlflow.sourceRun": run_id},
            experiment_id=experiment_id,
        )
        span.end(outputs=call["outputs"])
    mlflow.flush_trace_async_logging()


class Shelf:
    """Puts things beside the numbers of the runs of a session."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def log_metrics(self, metrics: Mapping[str, Any], run_id: str | None) -> None:
        """Keep single numbers with a run, those that it does not hold already; None is skipped."""
        numbers = {key: float(value) for key, value in metrics.items() if value is not None}

        def log(run: str) -> None:
            there = self._tracking.client.get_run(run).data.metrics
            for key, value in numbers.items():
                if there.get(key) != value:
                    self._tracking.client.log_metric(run, key, value)

        if numbers:
            self._keep(run_id, log)

    def log_artifact(self, path: Path, run_id: str | None) -> None:
        """Keep a file or a folder with a run."""
        if path.is_dir():
            self._keep(run_id, lambda run: self._tracking.client.log_artifacts(run, str(path), path.name))
        elif path.is_file():
            self._keep(run_id, lambda run: self._tracking.client.log_artifact(run, str(path)))

    def log_inputs(self, run_id: str | None, datasets: Sequence[Any]) -> None:
        """Keep what a run read."""
        if datasets:
            self._keep(run_id, lambda run: self._tracking.client.log_inputs(run, datasets))

    def log_calls(self, calls: Sequence[Mapping[str, Any]], run_id: str | None) -> None:
        """Keep calls of the judge as traces of a run."""
        if calls:
            self._keep(run_id, lambda run: log_calls(calls, self._tracking.client.get_run(run).info.experiment_id, run))

    def _keep(self, run_id: str | None, log: Callable[[str], object]) -> None:
        """What a run holds beside its numbers must not end it: a store that refuses is given up."""
        if not self._tracking.is_on or run_id is None:
            return
        try:
            log(run_id)
        except Exception as error:
            self._tracking.lose(error)
