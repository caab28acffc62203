"""The verbs of a bucket, on every kind of store, and the errors of one that cannot be used."""

import sys

import pytest

from gemma_alignment.errors import RunInterrupted, UserError
from gemma_alignment.storage.bucket import Away, Bucket, Unreachable


def test_what_is_written_is_read_listed_and_removed(bucket, tmp_path):
    assert (bucket.listing(), bucket.read("a/b"), bucket.written("a/b")) == ({}, None, None)
    bucket.write("a/b", b"1")
    (tmp_path / "c").write_bytes(b"22")
    sent = bucket.send("a/c.txt", tmp_path / "c")
    assert bucket.send("a/none", tmp_path / "none") is None
    assert bucket.read("a/b") == b"1"
    found = bucket.listing()
    assert set(found) == {"a/b", "a/c.txt"}
    assert found["a/c.txt"] == sent
    assert bucket.fetch("a/c.txt", tmp_path / "d") and not bucket.fetch("a/none", tmp_path / "e")
    assert (tmp_path / "d").read_bytes() == b"22"
    bucket.remove(["a/b", "a/none"])
    assert set(bucket.listing()) == {"a/c.txt"}


def test_another_content_is_another_version(bucket):
    bucket.write("a", b"1")
    first = bucket.listing()["a"]
    assert bucket.listing()["a"] == first
    bucket.write("a", b"2")
    assert bucket.listing()["a"].version != first.version


def test_a_thing_is_created_once(bucket):
    assert bucket.create("lock", b"mine")
    assert not bucket.create("lock", b"yours")
    assert bucket.read("lock") == b"mine"
    bucket.remove(["lock"])
    assert bucket.create("lock", b"yours")


def test_a_store_with_all_rights_is_taken_and_left_as_it_was(bucket):
    bucket.check()
    assert bucket.listing() == {}
    assert abs(bucket.skew) < 5


def test_a_large_file_is_whole(bucket, tmp_path):
    content = bytes(range(256)) * 4 * 10240  # above the parts in which s3fs and others send
    (tmp_path / "large").write_bytes(content)
    bucket.send("large", tmp_path / "large")
    bucket.fetch("large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content


@pytest.mark.parametrize(("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs")])
def test_without_the_extra_the_error_names_it(monkeypatch, scheme, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(UserError, match=rf"needs packages that are not installed: pip install '.*\[{extra}\]'"):
        Bucket(f"{scheme}://bucket/a")


class NoCredentialsError(Exception):
    """As botocore calls it."""


@pytest.mark.parametrize("scheme", ["dir", "gist", "reference", "nobodys"])
def test_a_store_that_cannot_even_be_opened_is_one_message(scheme):
    with pytest.raises(UserError, match=rf"^{scheme}://a/b cannot be opened \(\w+: .*and data_root$"):
        Bucket(f"{scheme}://a/b")


def test_a_store_that_looks_for_credentials_when_it_is_opened_says_so_and_no_secret(monkeypatch):
    import fsspec

    def refuse(*words, **more):
        raise NoCredentialsError("a-secret-of-a-user")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-a-user")
    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(UserError, match="cannot be opened: there are no credentials") as refused:
        Bucket("gs://a/b")
    assert "a-secret" not in str(refused.value)
    for name in ("AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_KEY"):
        assert name in str(refused.value), "each kind of store that is taken reads its own"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), "needs the right to list, read, write and delete"),
        (FileNotFoundError("NoSuchBucket"), "there is no such bucket. Make it first"),
        (NoCredentialsError("Unable to locate credentials"), "there are no credentials. Give them by the environment"),
        (ConnectionError("no route to host"), r"\(ConnectionError: no route to host\). Check the network"),
        (NotImplementedError("read only"), r"cannot be written \(NotImplementedError"),
    ],
)
def test_what_a_store_refuses_is_one_message(monkeypatch, tmp_path, error, message):
    bucket = Bucket(f"local://{tmp_path}/a")

    def refuse(*words, **more):
        raise error

    monkeypatch.setattr(bucket._fs, "pipe_file", refuse)
    with pytest.raises(Unreachable, match=f"local://{tmp_path}/a cannot be written.*{message}|{message}") as refused:
        bucket.check()
    assert isinstance(refused.value, Away) == ("Check the network" in str(refused.value))


def test_what_asks_the_run_to_stop_is_no_fault_of_the_store(monkeypatch, tmp_path):
    bucket = Bucket(f"local://{tmp_path}/a")
    stop = RunInterrupted(15)

    def interrupted(*words, **more):
        raise ConnectionError("wrapped by a library") from stop

    monkeypatch.setattr(bucket._fs, "pipe_file", interrupted)
    with pytest.raises(RunInterrupted):
        bucket.write("a", b"1")


def test_a_secret_that_a_library_repeats_is_not_in_the_message(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-a-user")
    bucket = Bucket(f"local://{tmp_path}/a")

    def refuse(*words, **more):
        raise PermissionError("SignatureDoesNotMatch for a-secret-of-a-user")

    monkeypatch.setattr(bucket._fs, "pipe_file", refuse)
    with pytest.raises(Unreachable) as refused:
        bucket.check()
    assert "a-secret" not in str(refused.value) and refused.value.__cause__ is None


def test_a_bucket_that_is_not_there_is_said(s3_server):
    with pytest.raises(Unreachable, match=r"s3://nobodys/a cannot be .*there is no such bucket"):
        Bucket("s3://nobodys/a").check()
    with pytest.raises(Unreachable, match="s3://nobodys/a cannot be listed: there is no such bucket"):
        Bucket("s3://nobodys/a").listing()


def test_no_credentials_are_said(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(Unreachable, match="there are no credentials"):
        Bucket("s3://studies/a").check()


def test_a_server_that_does_not_answer_is_said(s3_server, monkeypatch, free_port):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    with pytest.raises(Away, match="Check the network, AWS_ENDPOINT_URL"):
        Bucket("s3://studies/a").check()
