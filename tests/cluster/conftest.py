"""One real cluster for all tests of this folder; needs root."""

from collections.abc import Iterator

import pytest

from support.kube import layers
from support.kube.cluster import Cluster, cluster, obstacles
from support.kube.required import give_up
from support.kube.tools import lacking


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """Skips everything where no cluster can run; fails where one is required."""
    give_up("a real cluster", *lacking(), *obstacles(), *layers.lacking())


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Iterator[Cluster]:
    """The cluster."""
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def namespace(kube: Cluster) -> Iterator[str]:
    """A fresh one in which restricted pod security is enforced; emptied afterwards, so that its pods leave the node."""
    name = kube.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    kube.kubectl("delete", "namespace", name, "--wait=false")
