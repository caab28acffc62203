"""The recipes of CONTRIBUTING.md, applied block by block to a copy of the project, and what came of them."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = r'(?: (?:after|old)="((?:[^"\\]|\\.)*)")?'
BLOCK = re.compile(r"```(?:python|yaml) (file|add|replace)=(\S+)" + WORDS + r"\n(.*?)```", re.DOTALL)
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = BLOCK.findall(TEXT)


def applied(root):
    """Every block done to ``root``, as a reader would by hand."""
    for kind, name, words, text in RECIPES:
        path, sought = root / name, words.replace('\\"', '"')
        if kind == "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        places = [i for i, line in enumerate(lines) if sought in line]
        assert len(places) == 1, f"{name}: {len(places)} lines hold {sought!r}"
        (place,) = places
        lines[place : place + 1] = [text] if kind == "replace" else [lines[place], text]
        path.write_text("".join(lines), encoding="utf-8")


def test_every_block_finds_its_place(tmp_path):
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    applied(tmp_path)
    assert len(RECIPES) == TEXT.count("```python ") + TEXT.count("```yaml ") == 18
    for path in {tmp_path / name for _, name, _, _ in RECIPES if name.endswith(".py")}:
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.slow
@pytest.mark.pipeline
def test_what_the_recipes_make_runs(toy_study, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(toy_study.root, root, ignore=shutil.ignore_patterns("mlruns", "build"))
    applied(root)
    project = type(toy_study)(root, {**toy_study.environment({}), "PYTHONPATH": str(root / "src")})

    def run(pipeline, params):
        words = ("kedro", "run", f"--pipeline={pipeline}", "--env=test", "--params", params)
        code, text = project.command(*words, timeout=900)
        assert code == 0, text

    run("batch_mean", "data_root=data")
    run("evaluation", "data_root=data,judge.kind=longer")
    run("reporting", "data_root=data")
    card = (root / "data" / "07_model_output" / "judge_card.json").read_text(encoding="utf-8")
    assert '"kind": "longer"' in card
    assert "BATCH_MEAN" in (root / "data" / "08_reporting" / "report.html").read_text(encoding="utf-8")
    folder = root / "pairs"
    folder.mkdir()
    shutil.copy(root / "data" / "01_raw" / "preferences.jsonl", folder / "a.jsonl")
    run("data_processing", f"data_root=data/mine,preferences.source=folder,preferences.path={folder}")
