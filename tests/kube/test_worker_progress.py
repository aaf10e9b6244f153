"""A worker's progress at a real API server, with a token that may do nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dinoctl.handover.progress_map import ProgressMap, ReplacedError
from support.kube.apiserver import ApiServer

NAME, ACCOUNT = "train-progress", "train-worker"


def rights(namespace: str) -> list[dict[str, Any]]:
    meta = {"name": ACCOUNT, "namespace": namespace}
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get", "patch"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": [rule]}
    bound = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    to = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    binding = {**role, "kind": "RoleBinding", "roleRef": to, "subjects": [bound]}
    return [role, {key: value for key, value in binding.items() if key != "rules"}]


def progress_map(namespace: str) -> dict[str, Any]:
    """As the operator applies it, again and again: without data."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": namespace}}


def test_only_its_own_map_and_never_over_a_successor(
    api: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.apply(progress_map(namespace), *rights(namespace))
    who = api.service_account_kubeconfig(namespace, ACCOUNT)
    (tmp_path / "token").write_text(yaml.safe_load(who.read_text())["users"][0]["user"]["token"])
    (tmp_path / "ca.crt").write_bytes(Path(api.ca).read_bytes())
    place = urlsplit(api.url)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(place.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(place.port))

    def said() -> dict[str, Any]:
        found = json.loads(api.kubectl("get", "configmap", NAME, "-n", namespace, "-o", "json"))
        return json.loads(found["data"]["progress.json"])

    mine = ProgressMap(namespace, NAME, 2, tmp_path)
    mine.write({"attempt": 2, "step": 5})
    mine.write({"attempt": 2, "step": 6})
    api.kubectl("label", "configmap", NAME, "-n", namespace, "seen=yes")  # another version
    api.apply(progress_map(namespace))
    assert said() == {"attempt": 2, "step": 6}
    mine.write({"attempt": 2, "step": 7})
    assert said() == {"attempt": 2, "step": 7}
    ProgressMap(namespace, NAME, 3, tmp_path).write({"attempt": 3, "step": 1})
    with pytest.raises(ReplacedError):
        mine.write({"attempt": 2, "step": 8})
    assert said() == {"attempt": 3, "step": 1}
    with pytest.raises(OSError, match=r'403 .*cannot get resource "configmaps"'):
        ProgressMap(namespace, "other-progress", 2, tmp_path).write({"attempt": 2})
