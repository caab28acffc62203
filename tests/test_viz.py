"""What Kedro-Viz needs to draw the layers: no layer may lead back to one before it."""

from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import CatalogConfigResolver

from gemma_alignment.pipeline_registry import register_pipelines
from gemma_alignment.settings import CONFIG_LOADER_ARGS

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(scope="module")
def layer():
    """Dataset name -> its layer, None where it has none."""
    loader = OmegaConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)
    resolver = CatalogConfigResolver(loader["catalog"], loader["credentials"])

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
