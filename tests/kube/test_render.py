"""What is rendered, on a real API server with KubeRay's definition: taken as it is, and nothing of it dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.kube.apiserver import ApiServer
from support.rendering import PROFILES, attempt, cases, elsewhere, jobs, rendered

CASES = dict(cases())
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.mark.parametrize("name", CASES)
def test_every_object_is_made_as_rendered(api: ApiServer, namespace: str, name: str) -> None:
    objects = elsewhere(CASES[name], namespace)
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    api.kubectl("create", "--validate=strict", "-f", "-", input=listed)
    made = api.get("rayjob", objects[-1]["metadata"]["name"], "-n", namespace)
    _contains(made["spec"], objects[-1]["spec"], "spec")
    api.apply(*objects)  # again, as the operator does after a restart
    assert api.get("rayjob", made["metadata"]["name"], "-n", namespace)["metadata"]["generation"] == 1


def _contains(made: Any, asked: Any, where: str) -> None:
    """Everything that was asked for is there; defaults may have come."""
    if isinstance(asked, dict):
        for key, value in asked.items():
            assert key in made, f"{where}.{key} was dropped"
            _contains(made[key], value, f"{where}.{key}")
    elif isinstance(asked, list):
        assert len(made) == len(asked), where
        for index, value in enumerate(asked):
            _contains(made[index], value, f"{where}[{index}]")
    else:
        assert made == asked, where


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "fabric"])
def test_pods_run_where_restricted_is_enforced(api: ApiServer, name: str) -> None:
    where = api.namespace(labels=RESTRICTED)
    for template in _templates(rendered(attempt(jobs("vitg_pretrain.yaml")[0]), PROFILES[name])):
        _dry_run(api, where, template)


def test_the_api_server_refuses_the_capability_of_rdma_there(api: ApiServer) -> None:
    where = api.namespace(labels=RESTRICTED)
    worker = _templates(rendered(attempt(jobs("vitg_pretrain.yaml")[0]), PROFILES["fabric"]))[2]
    with pytest.raises(Exception, match="IPC_LOCK"):
        _dry_run(api, where, worker)


def _templates(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = objects[-1]["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [spec["submitterPodTemplate"], *(group["template"] for group in groups)]


def _dry_run(api: ApiServer, namespace: str, template: dict[str, Any]) -> None:
    metadata = {**template["metadata"], "name": "pod", "namespace": namespace}
    spec = {**template["spec"], "serviceAccountName": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    api.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))
