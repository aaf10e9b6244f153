"""Fixtures that tests of several rooms share; a conftest imports those that it wants."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faults import Proxy, proxied
from support.s3server import S3Server, serve


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; the environment of the session's processes does not point to it (see ``s3``)."""
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """``s3://bucket`` of a bucket of this test alone, found by this process through its environment.

    What a node keeps of it lies in a directory of the test, not in the user's cache.
    """
    monkeypatch.setenv("DINOCTL_CACHE_DIR", str(tmp_path / "node-cache"))
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.bucket(f"test-{uuid.uuid4().hex[:20]}")


@pytest.fixture
def s3_faults(s3_server: S3Server, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A fault proxy between this process and the server; ``s3`` is the bucket."""
    with proxied(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
