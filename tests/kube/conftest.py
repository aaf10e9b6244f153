"""Fixtures of the tests against a real API server: no root, no node."""

from collections.abc import Iterator

import pytest

from support.kube.apiserver import ApiServer, api_server
from support.kube.faults import FaultProxy, fault_proxy
from support.kube.required import give_up
from support.kube.tools import API_SERVER, lacking


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """Skips everything where the programs are not built; fails where they are required."""
    give_up("a real API server", *lacking(API_SERVER))


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Iterator[ApiServer]:
    """One API server with controllers for all tests that leave it running."""
    with api_server(tmp_path_factory.mktemp("api"), controllers=True) as server:
        yield server


@pytest.fixture
def namespace(api: ApiServer) -> str:
    """A fresh one."""
    return api.namespace()


@pytest.fixture
def proxy(api: ApiServer) -> Iterator[FaultProxy]:
    """Faults in front of ``api``."""
    with fault_proxy(api) as running:
        yield running
