"""JSON lines: every byte kept, rows read one at a time, writes whole or not there."""

import json

import pytest

from gemma_alignment.datasets.json_lines import JSONLinesDataset
from gemma_alignment.errors import UserError


def test_rows_come_back_in_order_with_their_keys(tmp_path) -> None:
    data = JSONLinesDataset(str(tmp_path / "a" / "rows.jsonl"))
    rows = [{"b": 1, "a": "é\n"}, {"a": [1, {"c": None}]}]
    data.save(iter(rows))
    found = data.load()
    assert list(found) == rows
    assert [list(row) for row in found] == [["b", "a"], ["a"]]
    assert found[1] == found[-1] == rows[1]
    assert found[:5] == rows
    assert len(found) == 2


def test_blank_lines_are_no_rows_and_one_that_is_not_json_is_named_when_read(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n\n\xff\xfe not text\n  \n{"a":2}')
    found = JSONLinesDataset(str(path)).load()
    assert len(found) == 3
    assert found[2] == {"a": 2}
    with pytest.raises(UserError, match=r"Row 2 of .* is not JSON"):
        found[1]


def test_a_failed_save_leaves_the_old_file(tmp_path) -> None:
    data = JSONLinesDataset(str(tmp_path / "rows.jsonl"))
    data.save([{"a": 1}])

    def broken():
        yield {"a": 2}
        raise RuntimeError("stopped")

    with pytest.raises(Exception, match="stopped"):
        data.save(broken())
    assert list(data.load()) == [{"a": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_lone_surrogates_can_be_written_and_read(tmp_path) -> None:
    data = JSONLinesDataset(str(tmp_path / "rows.jsonl"))
    data.save([{"a": json.loads('"\\ud800x"')}])
    assert data.load()[0]["a"].endswith("x")
