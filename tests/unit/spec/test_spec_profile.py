"""Profiles: what an administrator's mistakes are answered with."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dinoctl.spec.profile import OperatorConfig, Profile

GOOD = {
    "image": "registry.example/dinoctl@sha256:" + "0" * 64,
    "storage": "s3://outputs/",
    "trackingUri": "http://mlflow",
}


def test_a_short_profile_is_enough() -> None:
    assert Profile.model_validate(GOOD, by_alias=True).workers_per_pod == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "registry.example/dinoctl:latest"}, "has no digest"),
        ({"pools": [{"name": "a", "maxWorkers": 12}]}, "maxWorkers 12 is no multiple of workersPerPod 8"),
        ({"pools": [{"name": "a"}, {"name": "b"}]}, "only the last pool may be without maxWorkers"),
        ({"pools": [{"name": "a", "maxWorkers": 8}, {"name": "a"}]}, "different names"),
        ({"pools": [{"name": "head"}]}, "'head' is taken"),
        ({"pools": [{"name": "a-rest"}]}, "'a-rest' is taken"),
        ({"pools": [{"name": f"p{i}", "maxWorkers": 8} for i in range(6)]}, "at most 5"),
        ({"env": {"RAY_ADDRESS": "x"}}, "'RAY_ADDRESS'"),
        ({"env": {"A B": "x"}}, "String should match"),
        ({"env": {"A": "x"}, "secretEnv": {"A": {"secret": "s", "key": "k"}}}, "'A' stands in env and in secretEnv"),
        ({"labels": {"team": "has space"}}, "String should match"),
        ({"nodeSelector": {"a b": "c"}}, "String should match"),
        ({"memoryPerWorker": "4gi"}, "String should match"),
        ({"network": {"rdmaResource": "rdma/hca"}}, "set security: rdma"),
        ({"drain": {"worker": "80s"}}, "drain times must grow"),
        ({"runAs": 0}, "greater than or equal to 1"),
        ({"queu": "vision"}, "queu"),
    ],
)
def test_mistakes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Profile.model_validate(GOOD | fields, by_alias=True)


def test_the_default_profile_must_be_there() -> None:
    with pytest.raises(ValidationError, match="defaultProfile 'b' is not among the profiles: a"):
        OperatorConfig.model_validate({"profiles": {"a": GOOD}, "defaultProfile": "b"}, by_alias=True)
