"""Preference rows of a hub on the loopback: a pinned revision, fetched once, a sample that ``prepare_seed`` draws."""

import io
import json
import random

import pandas as pd
import pytest

from gemma_alignment.world.preferences import generate_rows
from tests.hub import REVISION, dataset_hub

pytestmark = [pytest.mark.pipeline, pytest.mark.cli]

CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train_prefs
    path: data/train_prefs-*
---
Pairs.
"""
ROWS, SAMPLE = 90, 60


@pytest.fixture(scope="module")
def table():
    """Rows of the schema as a hub keeps them: Parquet, more than are sampled, each with its number."""
    rows = list(generate_rows(ROWS, 0.8, 0.7, 0.0, 5, 0))
    return [{**row, "number": number} for number, row in enumerate(rows)]


@pytest.fixture
def files(table):
    parquet = io.BytesIO()
    pd.DataFrame(table).to_parquet(parquet)
    return {"README.md": CARD, "data/train_prefs-00000-of-00001.parquet": parquet.getvalue()}


def fetch(project, home, address, **params):
    given = {
        "preferences.source": "huggingface", "preferences.repository": "org/pairs", "preferences.revision": REVISION,
        "preferences.sample_size": SAMPLE, "overwrite": "true", **params,
    }  # fmt: skip
    listed = ",".join(f"{key}={value}" for key, value in given.items())
    return project.command(
        "kedro", "run", "--env=test", "--pipeline=data_processing", "--params", listed,
        HF_ENDPOINT=address, HF_HOME=str(home), HF_HUB_OFFLINE="0",
    )  # fmt: skip


def sampled(project):
    lines = (project.data / "01_raw" / "preferences.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_pinned_revision_is_fetched_once_and_sampled_with_the_seed_of_the_preparation(
    real_project, tmp_path, files, table
):
    home = tmp_path / "cache"
    with dataset_hub("org/pairs", files) as (address, asked):
        code, output = fetch(real_project, home, address)
        assert code == 0, output
        assert all(REVISION in request for request in asked if "/resolve/" in request or "/tree/" in request), asked
        assert sum(request.startswith("GET") and request.endswith(".parquet") for request in asked) == 1
    expected = sorted(random.Random(42).sample(range(ROWS), SAMPLE))
    assert sampled(real_project) == [table[number] for number in expected]

    code, output = fetch(real_project, home, address, prepare_seed=7)  # the hub is gone, its rows are here
    assert code == 0, output
    assert "does not answer" in output
    other = sorted(random.Random(7).sample(range(ROWS), SAMPLE))
    assert sampled(real_project) == [table[number] for number in other] != [table[number] for number in expected]


def test_a_hub_without_the_data_set_and_no_hub_are_one_message_each(real_project, tmp_path, files):
    with dataset_hub("org/other", files) as (address, _):
        code, output = fetch(real_project, tmp_path / "empty", address)
    assert code == 1
    wrong = output.strip().splitlines()
    code, output = fetch(real_project, tmp_path / "empty", address)
    assert code == 1
    gone = output.strip().splitlines()
    for lines in (wrong, gone):
        assert "Traceback" not in "\n".join(lines)
        assert any(f"Cannot fetch org/pairs at {REVISION}" in line for line in lines)
        assert "preferences.source=jsonl" in lines[-1]
    assert not (real_project.data / "01_raw").exists()
