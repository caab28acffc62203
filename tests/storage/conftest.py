"""Stores to mirror with: one in memory, a folder behind another protocol, and a server that speaks S3."""

import uuid

import pytest
from s3 import served

from gemma_alignment.storage.bucket import Bucket


@pytest.fixture(params=["memory", "local", "s3"])
def address(request, tmp_path):
    """An empty place of each kind."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    return {"memory": f"memory://{name}/a", "local": f"local://{tmp_path}/store/a", "s3": "s3://studies/" + name}[
        request.param
    ]


@pytest.fixture(scope="session")
def s3_server():
    """A server that speaks S3, with an empty bucket ``studies``; what this process sees is set."""
    with served("studies") as variables, pytest.MonkeyPatch.context() as patch:
        for key, value in variables.items():
            patch.setenv(key, value)
        yield variables


@pytest.fixture
def bucket(address):
    return Bucket(address)
