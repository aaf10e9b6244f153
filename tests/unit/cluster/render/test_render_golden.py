"""What is rendered for the jobs of jobs/, and for sizes beyond them, is what the golden files say (``make golden``)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dinoctl.cluster.render import RAY_VERSION
from dinoctl.handover.attempt import Attempt
from dinoctl.spec.names import MAX_RAYJOB
from support.rendering import GOLDEN, ROOT, attempt, cases, jobs, shown

CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    assert (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8") == shown(CASES[name])


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_names_and_sizes_are_within_limits(name: str) -> None:
    for one in CASES[name]:
        assert len(one["metadata"]["name"]) <= (MAX_RAYJOB if one["kind"] == "RayJob" else 63)
        assert len(json.dumps(one)) < 2**20


def test_the_mounted_document_is_the_attempt(tmp_path: Any) -> None:
    job = jobs("vitg_pretrain.yaml")[0]
    data = CASES["vitg-pretrain"][4]["data"]
    (tmp_path / "attempt.json").write_text(data["attempt.json"])
    assert Attempt.read(tmp_path / "attempt.json") == attempt(job)


def test_ray_is_the_one_of_the_lock() -> None:
    assert f"\nray=={RAY_VERSION}" in (ROOT / "requirements.lock").read_text(encoding="utf-8")
