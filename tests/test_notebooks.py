"""The notebooks: nothing is defined in them, nothing is left in them, and they run on a finished study."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="comes with the test extra")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PARAMETRIZE = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["01_data", "02_training", "03_results"]


@PARAMETRIZE
def test_outputs_are_stripped_and_the_format_is_valid(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in code(path):
        assert cell.outputs == []
        assert cell.execution_count is None


@PARAMETRIZE
def test_it_loads_from_the_catalog_and_defines_nothing(path):
    text = "\n".join(line for cell in code(path) for line in cell.source.splitlines() if not line.startswith("%"))
    tree = ast.parse(text)
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert [node.name for node in ast.walk(tree) if isinstance(node, defined)] == []
    assert "catalog.load(" in text
    assert not any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open" for node in ast.walk(tree))


@pytest.mark.pipeline
@PARAMETRIZE
def test_it_runs_from_top_to_bottom_on_a_finished_study(path, toy_study, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="comes with the test extra")
    pytest.importorskip("ipykernel", reason="comes with the test extra")
    for name in ("MLFLOW_TRACKING_URI", "KEDRO_ENV"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(toy_study.root / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    shown = [output.output_type for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "error" not in shown
    assert len(shown) >= 5
    _, *later = [cell for cell in notebook.cells if cell.cell_type == "code"]  # the first loads Kedro, which says so
    assert "Loading data from" not in str([cell.outputs for cell in later])
