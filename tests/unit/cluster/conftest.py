"""What tests of the operator begin with."""

from pathlib import Path

import pytest

from support.kube.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A cluster without queues."""
    return World(tmp_path)
