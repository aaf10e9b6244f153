"""What the other tests of this folder take for granted of their API server."""

from pathlib import Path

import pytest

from support.kube.access import KubectlFailed
from support.kube.apiserver import ApiServer, api_server
from support.waiting import within


def _pod(name: str, **container: object) -> dict[str, object]:
    containers = [{"name": "main", "image": "nothing", **container}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}}


def test_serviceaccounts_may_do_what_they_are_given_and_no_more(api: ApiServer, namespace: str) -> None:
    kubeconfig = api.service_account_kubeconfig(namespace, "reader")
    with pytest.raises(KubectlFailed, match="cannot list resource"):
        api.kubectl("get", "configmaps", kubeconfig=kubeconfig)
    api.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps", "-n", namespace)
    api.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", "-n", namespace
    )
    assert "kube-root-ca.crt" in api.kubectl("get", "configmaps", "-o", "name", kubeconfig=kubeconfig)


def test_a_restricted_namespace_refuses_a_pod_that_may_be_root(api: ApiServer) -> None:
    namespace = api.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    pod = _pod("root")
    pod["metadata"] = {"name": "root", "namespace": namespace}
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        api.apply(pod)


def test_what_belongs_to_a_deleted_object_is_collected(api: ApiServer, namespace: str) -> None:
    api.kubectl("create", "configmap", "owner", "-n", namespace)
    uid = api.get("configmap", "owner", "-n", namespace)["metadata"]["uid"]
    owners = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]
    owned = {"name": "owned", "namespace": namespace, "ownerReferences": owners}
    api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": owned})
    api.kubectl("delete", "configmap", "owner", "-n", namespace)
    assert within(30, lambda: "owned" not in api.kubectl("get", "configmaps", "-o", "name", "-n", namespace))


def test_a_deleted_namespace_ends(api: ApiServer, namespace: str) -> None:
    api.kubectl("delete", "namespace", namespace, "--timeout=60s")
    assert f"namespace/{namespace}" not in api.kubectl("get", "namespaces", "-o", "name").split()


def test_kuberay_and_kueue_validate(api: ApiServer, namespace: str) -> None:
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a", "namespace": namespace}}
    with pytest.raises(KubectlFailed, match="rayClusterSpec"):
        api.apply({**job, "spec": {"rayClusterSpec": {"workerGroupSpecs": []}}})
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue"}
    api.apply({**queue, "metadata": {"name": "q", "namespace": namespace}, "spec": {"clusterQueue": "c"}})
    assert api.get("localqueue", "q", "-n", namespace)["spec"]["clusterQueue"] == "c"


def test_objects_outlive_the_server_and_etcd(tmp_path: Path) -> None:
    with api_server(tmp_path / "own") as own:
        own.kubectl("create", "configmap", "kept")
        own.restart(kill=True)
        own.stop_etcd()
        with pytest.raises(KubectlFailed):
            own.kubectl("create", "configmap", "lost", "--request-timeout=3s")
        own.start_etcd()
        assert within(30, lambda: _creates(own, "after"))
        assert {"configmap/kept", "configmap/after"} <= set(own.kubectl("get", "configmaps", "-o", "name").split())


def _creates(api: ApiServer, name: str) -> bool:
    try:
        api.kubectl("create", "configmap", name, "--request-timeout=3s")
    except KubectlFailed:
        return False
    return True
