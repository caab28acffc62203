"""Where the data of a study are: what is a folder, what is a bucket, and what is refused."""

import socket
from pathlib import Path

import pytest

from gemma_alignment.storage.address import check_address, folder_of, folder_under, is_bucket, plain, working_folder


@pytest.mark.parametrize(
    ("root", "expected"),
    [("data", "data"), ("/mnt/a", "/mnt/a"), ("file:///mnt/a", "/mnt/a"), ("s3://bucket/a/", "s3://bucket/a")],
)
def test_what_an_address_means(root, expected):
    check_address(root)
    assert plain(root) == expected
    assert is_bucket(root) == root.startswith("s3")


def test_a_folder_is_itself(tmp_path):
    assert folder_of("data/mine") == "data/mine"
    assert folder_under(tmp_path, "file:///mnt/a") == Path("/mnt/a")
    assert folder_under(tmp_path, "data") == tmp_path / "data"


def test_a_bucket_is_worked_on_under_the_cache_in_one_folder_for_each_address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, slash, other = (working_folder(f"s3://bucket/{name}") for name in ("a", "a/", "b"))
    assert one == slash != other
    assert one.parent == tmp_path / "cache" / "gemma-alignment" / socket.gethostname()
    assert one.name.startswith("bucket-a-")
    assert folder_of("s3://bucket/a") == str(folder_under(tmp_path, "s3://bucket/a")) == str(one)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert working_folder("s3://bucket/a").parent.parent == tmp_path / ".cache" / "gemma-alignment"
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert working_folder("s3://bucket/a").parent.name == "another"


@pytest.mark.parametrize(
    "address",
    ["s3://KEYOFUSER:SECRETOFUSER@bucket/a", "s3://bucket/a?secret=SECRETOFUSER", "gs://SECRETOFUSER@bucket/a",
     "s3://bucket:SECRETOFUSER/a", "s3://bucket/a#SECRETOFUSER"],
)  # fmt: skip
def test_credentials_in_an_address_are_refused_and_not_repeated(address):
    with pytest.raises(ValueError, match="Credentials are never part of it") as refused:
        check_address(address)
    assert "OFUSER" not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://", "s3:///", "s3://bucket/../a", "s3://bucket/%2e%2e/a", "s3://bucket//a"])
def test_an_address_without_a_bucket_or_that_climbs_is_refused(address):
    with pytest.raises(ValueError, match="must be s3://BUCKET/FOLDER"):
        check_address(address)


@pytest.mark.parametrize(
    "kind",
    ["http", "s4", "zip", "memory", "dir", "gist", "reference", "generic", "cached", "ftp", "sftp", "hdfs", "file+x"],
)
def test_what_is_no_object_store_that_all_processes_can_write_to_is_refused(kind):
    with pytest.raises(ValueError, match="is no storage to work on; give s3://, gs:// or a path"):
        check_address(f"{kind}://bucket/a")


@pytest.mark.parametrize("kind", ["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "local"])
def test_object_stores_are_taken(kind):
    check_address(f"{kind}://bucket/a")
    assert is_bucket(f"{kind}://bucket/a")


def test_an_address_of_a_folder_has_three_slashes():
    with pytest.raises(ValueError, match="file:///FOLDER"):
        check_address("file://mnt/a")
