"""Tests that a machine can't run: skipped where they may be, failed where they are required."""

import os

import pytest


def give_up(what: str, *reasons: str) -> None:
    """Skips the tests, loudly; with DINOCTL_REQUIRE_CLUSTER=1 a machine that can't run them is at fault."""
    if not reasons:
        return
    if os.environ.get("DINOCTL_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"{what} is required (DINOCTL_REQUIRE_CLUSTER=1), but {'; '.join(reasons)}")
    pytest.skip(f"NOT TESTED against {what}: {'; '.join(reasons)}")
