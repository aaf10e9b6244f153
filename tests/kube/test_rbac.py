"""What the tokens of the operator, a worker and a user may do, and that it is all: the API server's list, and real
refusals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoctl.cluster.connect import connect
from dinoctl.cluster.resources import RAYJOBS, resource_of
from support.chart import CI, ROOT, template
from support.commands import typed
from support.kube.access import KubectlFailed
from support.kube.apiserver import ApiServer
from support.kube.tools import TOOLS
from support.rendering import PROFILES, attempt, jobs, rendered

Rule = tuple[str, str, str, str]
"""Group, resource, name ("" is any), verb."""
OPERATOR = {
    "dinoctl.io dinojobs": "get list watch patch",
    "dinoctl.io dinojobs/status": "patch",
    "dinoctl.io dinojobs/finalizers": "update",
    "ray.io rayjobs": "get list watch create delete",
    "kueue.x-k8s.io workloads": "list watch",
    "kueue.x-k8s.io localqueues": "get",
    " configmaps": "get list watch create patch delete",
    " pods": "list watch delete",
    " events": "list create",
    " serviceaccounts": "create patch",
    "policy poddisruptionbudgets": "create patch delete",
    "rbac.authorization.k8s.io roles": "create patch",
    "rbac.authorization.k8s.io rolebindings": "create patch",
}
EVERYWHERE = {
    "dinoctl.io dinojobs": "get list watch patch",
    "dinoctl.io dinojobs/status": "patch",
}
_READ = "get list watch"
USER = {
    "dinoctl.io dinojobs": f"{_READ} create patch delete",
    "ray.io rayjobs": _READ,
    "ray.io rayclusters": _READ,
    "kueue.x-k8s.io workloads": _READ,
    " pods": _READ,
    " events": _READ,
    " pods/log": "get",
}
EVERYBODY = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", "", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "", "create"),
    ("authentication.k8s.io", "selfsubjectreviews", "", "create"),
}


def _expected(table: dict[str, str]) -> set[Rule]:
    split = ((*key.split(" "), verbs.split()) for key, verbs in table.items())
    return {(group, resource, "", verb) for group, resource, verbs in split for verb in verbs} | EVERYBODY


def _rules(api: ApiServer, who: Path, namespace: str) -> set[Rule]:
    """Everything that the API server says ``who`` may do in ``namespace``."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "metadata": {"name": "x"},
        "spec": {"namespace": namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    told = json.loads(api.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(review), kubeconfig=who))
    assert not told["status"]["incomplete"]
    return {
        (group, resource, name, verb)
        for rule in told["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
    }


def _refused(api: ApiServer, who: Path, *arguments: str, document: dict[str, Any] | None = None) -> None:
    with pytest.raises(KubectlFailed, match=r"[Ff]orbidden"):
        api.kubectl(*arguments, kubeconfig=who, input=None if document is None else json.dumps(document))


@pytest.fixture(scope="module")
def watched(api: ApiServer) -> tuple[str, str]:
    """The operator's namespace, and one that it watches; the chart's roles are in both."""
    api.apply_crds(ROOT / "manifests" / "crd.yaml")
    own, jobs_ = api.namespace(), api.namespace()
    settings = [f"operator.config.namespaces={{{jobs_}}}"]
    person = {"kind": "ServiceAccount", "name": "person", "namespace": jobs_}
    settings += [f"rbac.users[0].{key}={value}" for key, value in person.items()]
    text = template(TOOLS["helm"].path, CI / "small.yaml", *settings, namespace=own)
    made = [one for one in yaml.safe_load_all(text) if one]
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    api.apply(*(one for one in made if one["kind"] in kinds))
    return own, jobs_


@pytest.fixture(scope="module")
def operator(api: ApiServer, watched: tuple[str, str]) -> Path:
    return api.service_account_kubeconfig(watched[0], "dinoctl-operator")


def test_the_operators_list_is_all(api: ApiServer, watched: tuple[str, str], operator: Path) -> None:
    own, where = watched
    assert _rules(api, operator, where) == _expected(OPERATOR)
    lease = {("coordination.k8s.io", "leases", "dinoctl-operator", verb) for verb in ("get", "patch")}
    lease |= {("coordination.k8s.io", "leases", "", "create")}
    assert _rules(api, operator, own) == _expected(EVERYWHERE) | lease
    assert _rules(api, operator, "kube-system") == _expected(EVERYWHERE)


def test_the_operator_is_refused(api: ApiServer, watched: tuple[str, str], operator: Path) -> None:
    _, where = watched
    for verb in (["get", "secrets"], ["get", "secret", "x"], ["delete", "serviceaccount", "default"]):
        _refused(api, operator, *verb, "-n", where)
    for verb in (
        ["get", "nodes"],
        ["get", "crds"],
        ["get", "rayjobs", "-A"],
        ["get", "configmaps", "-n", "kube-system"],
    ):
        _refused(api, operator, *verb)
    for rules in ([_rule("secrets", "get")], [_rule("pods", "create")], [_rule("*", "*")]):
        _refused(api, operator, "create", "-f", "-", document=_role(where, rules))
    _refused(api, operator, "create", "-f", "-", document=_binding(where, "ClusterRole", "admin"))
    _refused(api, operator, "delete", "dinojob", "x", "-n", where)


def test_the_operator_makes_what_it_renders(api: ApiServer, watched: tuple[str, str], operator: Path) -> None:
    """Also the worker's Role: it has itself what that gives."""
    job = jobs("digits.yaml")[1]
    *before, rayjob = _moved(rendered(attempt(job), PROFILES["cpu"]), watched[1])
    client = connect(kubeconfig=operator)
    for one in before:
        client.apply(resource_of(one), watched[1], one)
        client.apply(resource_of(one), watched[1], one)
    client.create(RAYJOBS, watched[1], rayjob)


def test_the_workers_list_is_all(api: ApiServer, watched: tuple[str, str]) -> None:
    _, where = watched
    for job in jobs("digits.yaml")[1:3]:
        api.apply(*_moved(rendered(attempt(job), PROFILES["cpu"]), where))
    worker = api.service_account_kubeconfig(where, "dinojob-digits-pretrain-worker")
    mine = {("", "configmaps", "dinojob-digits-pretrain-progress", verb) for verb in ("get", "patch")}
    assert _rules(api, worker, where) == EVERYBODY | mine
    assert _rules(api, worker, "default") == EVERYBODY
    patch = ["patch", "configmap", "-n", where, "--type=merge", "-p", '{"data": {"progress.json": "{}"}}']
    api.kubectl(*patch, "dinojob-digits-pretrain-progress", kubeconfig=worker)
    _refused(api, worker, *patch, "dinojob-digits-highres-progress")
    _refused(api, worker, "get", "configmaps", "-n", where)
    _refused(api, worker, "get", "secrets", "-n", where)
    _refused(api, worker, "delete", "configmap", "dinojob-digits-pretrain-progress", "-n", where)


def test_a_users_list_is_all_and_enough_for_the_command_line(
    api: ApiServer,
    watched: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    _, where = watched
    person = api.service_account_kubeconfig(where, "person")
    assert _rules(api, person, where) == _expected(USER)
    assert _rules(api, person, "default") == EVERYBODY

    monkeypatch.chdir(tmp_path)
    run, at = typed(monkeypatch, capsys), ("-n", where, "--kubeconfig", str(person))
    for command in (
        ("submit", str(ROOT / "jobs" / "digits.yaml")),
        ("diff", str(ROOT / "jobs" / "digits.yaml")),
        ("status",),
        ("events", "digits-pack"),
        ("suspend", "digits-pack"),
        ("resume", "digits-pack"),
        ("cancel", "digits-pack"),
        ("delete", "digits-pack"),
    ):
        said = run(*command, *at)
        assert said.code == 0, (command, said.err)
    patch = ("patch", "dinojob", "digits-pretrain", "-n", where, "--type=merge", "--subresource=status")
    _refused(api, person, *patch, "-p", '{"status": {"state": "Complete"}}')
    _refused(api, person, "get", "secrets", "-n", where)
    _refused(api, person, "delete", "pod", "x", "-n", where)


def _moved(objects: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    moved: list[dict[str, Any]] = json.loads(json.dumps(objects).replace('"vision"', f'"{namespace}"'))
    for one in moved:
        del one["metadata"]["ownerReferences"]
    return moved


def _rule(resource: str, verb: str) -> dict[str, Any]:
    return {"apiGroups": ["*" if resource == "*" else ""], "resources": [resource], "verbs": [verb]}


def _role(namespace: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role"}
    return {**kind, "metadata": {"name": "more", "namespace": namespace}, "rules": rules}


def _binding(namespace: str, kind: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "more", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
