"""What Kedro-Viz needs to draw the layers: no layer may lead back to one before it."""

import inspect
import json
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import CatalogConfigResolver

from gemma_alignment.datasets.atomic import AtomicDataset, AtomicPlotDataset
from gemma_alignment.datasets.json_lines import JSONLinesDataset
from gemma_alignment.datasets.model_directory import ModelDirectoryDataset
from gemma_alignment.pipeline_registry import register_pipelines
from gemma_alignment.settings import CONFIG_LOADER_ARGS

NODES = sorted({node for made in register_pipelines().values() for node in made.nodes}, key=lambda node: node.name)
CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(scope="module")
def resolver():
    loader = OmegaConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)
    return CatalogConfigResolver(loader["catalog"], loader["credentials"])


@pytest.fixture(scope="module")
def layer(resolver):
    """Dataset name -> its layer, None where it has none."""

    def of(name):
        metadata = (resolver.resolve_pattern(name) or {}).get("metadata") or {}
        return metadata.get("kedro-viz", {}).get("layer")

    return of


@pytest.mark.parametrize("name", register_pipelines())
def test_the_layers_of_a_pipeline_have_an_order(layer, name):
    """As Kedro-Viz asks it: what lies between two layered datasets may be without a layer."""
    before = {}  # dataset -> the layers that it is made from, its own included
    edges = {}
    for node in register_pipelines()[name].nodes:  # in the order of their running
        sources = {found for read in node.inputs for found in before.get(read) or {layer(read)} if found}
        for made in node.outputs:
            own = layer(made)
            before[made] = {own} if own else sources
            if own:
                edges.setdefault(own, set()).update(sources - {own})
    assert edges
    assert tuple(TopologicalSorter(edges).static_order())


def test_every_dataset_of_every_pipeline_stands_in_the_catalog(resolver):
    names = {name for node in NODES for name in (*node.inputs, *node.outputs) if not name.startswith("param")}
    known = [pattern for pattern in resolver.list_patterns() if pattern != "{default}"]
    assert known
    stray = {n for n in names if n not in resolver.config and resolver.match_dataset_pattern(n) is None}
    assert stray == set()


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
def test_a_node_has_a_short_name_and_says_what_it_does(node):
    assert len(node.name) <= 24, node.name
    assert " " not in node.name
    assert len((node.func.__doc__ or "").strip().splitlines()[0]) > 20
    assert inspect.isfunction(node.func), "Kedro-Viz shows source and docstring of nothing else"
    source = inspect.getsource(inspect.unwrap(node.func))
    assert '"""' in source and "inputs" not in source.partition("\n")[0]


def test_rows_are_previewed_as_a_table_and_json_as_it_is(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "turns": [{"role": "user"}]}\n{"a": null, "b": "é"}\n', encoding="utf-8")
    shown = JSONLinesDataset(str(path)).preview()
    assert shown["columns"] == ["a", "turns", "b"]
    assert shown["data"] == [[1, '[{"role": "user"}]', None], [None, None, "é"]]
    numbers = AtomicDataset("json.JSONDataset", str(tmp_path / "numbers.json"))
    numbers.save({"d": 0.5})
    assert json.loads(numbers.preview()) == {"d": 0.5}


@pytest.mark.parametrize(
    ("dataset", "shown"),
    [
        (JSONLinesDataset("none.jsonl"), {"index": [], "columns": [], "data": []}),
        (ModelDirectoryDataset("none"), "{}"),
        (AtomicDataset("json.JSONDataset", "none.json"), "{}"),
        (AtomicPlotDataset("none.json"), {"data": [], "layout": {}}),
    ],
    ids=["rows", "model", "numbers", "figure"],
)
def test_what_is_not_made_yet_has_an_empty_preview_and_no_warning(dataset, shown):
    assert dataset.preview() == shown
