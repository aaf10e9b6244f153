"""The proxy does to clients what a test asks of it; kubectl is the client."""

import subprocess
import time

import pytest

from support.kube.access import KubectlFailed
from support.kube.apiserver import ApiServer
from support.kube.faults import Fault, FaultProxy
from support.kube.tools import TOOLS
from support.waiting import within


def _kubectl(proxy: FaultProxy, *arguments: str) -> str:
    return proxy.api.kubectl(*arguments, kubeconfig=proxy.kubeconfig())


def _names(api: ApiServer, namespace: str) -> set[str]:
    return set(api.kubectl("get", "configmaps", "-o", "name", "-n", namespace).split())


@pytest.mark.parametrize(("code", "said"), [(409, "Conflict"), (500, "InternalError"), (403, "Forbidden")])
def test_it_refuses_before_the_server_sees_it(
    api: ApiServer, proxy: FaultProxy, namespace: str, code: int, said: str
) -> None:
    proxy.faults = [Fault("status", method="POST", path="/configmaps", value=code)]
    with pytest.raises(KubectlFailed, match=said):
        _kubectl(proxy, "create", "configmap", "a", "-n", namespace)
    assert "configmap/a" not in _names(api, namespace)


def test_the_server_has_done_what_is_refused_after(api: ApiServer, proxy: FaultProxy, namespace: str) -> None:
    proxy.faults = [Fault("status", method="POST", path="/configmaps", value=500, after=True)]
    with pytest.raises(KubectlFailed, match="InternalError"):
        _kubectl(proxy, "create", "configmap", "a", "-n", namespace)
    assert "configmap/a" in _names(api, namespace)


def test_a_client_that_is_told_to_wait_comes_again(api: ApiServer, proxy: FaultProxy, namespace: str) -> None:
    proxy.faults = [Fault("status", method="POST", path="/configmaps", value=429, first=2)]
    _kubectl(proxy, "create", "configmap", "a", "-n", namespace)
    assert proxy.faults[0].hits == 2
    assert "configmap/a" in _names(api, namespace)


def test_a_broken_connection_is_seen_as_one(proxy: FaultProxy, namespace: str) -> None:
    proxy.faults = [Fault("reset", method="POST", path="/configmaps")]
    with pytest.raises(KubectlFailed, match=r"EOF|reset"):
        _kubectl(proxy, "create", "configmap", "a", "-n", namespace)


@pytest.mark.parametrize("after", [False, True])
def test_a_client_can_be_killed_at_a_write(api: ApiServer, proxy: FaultProxy, namespace: str, after: bool) -> None:
    fault = Fault("hang", method="POST", path="/configmaps", after=after)
    proxy.faults = [fault]
    command = [
        str(TOOLS["kubectl"].path),
        "--kubeconfig",
        str(proxy.kubeconfig()),
        "create",
        "configmap",
        "a",
        "-n",
        namespace,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        assert within(20, lambda: fault.hits == 1)
        time.sleep(0.5)
        assert client.poll() is None
        client.kill()
    assert ("configmap/a" in _names(api, namespace)) == after


def _watch(proxy: FaultProxy, namespace: str, output: str) -> list[str]:
    place = ["--kubeconfig", str(proxy.kubeconfig()), "-n", namespace]
    return [str(TOOLS["kubectl"].path), "get", "configmaps", *place, "--watch", "-o", output]


def test_watches_pass_and_can_be_cut(api: ApiServer, proxy: FaultProxy, namespace: str) -> None:
    proxy.faults = [Fault("cut", method="WATCH", path="/configmaps", value=3, first=1)]
    with subprocess.Popen(_watch(proxy, namespace, "name"), stdout=subprocess.PIPE, text=True) as client:
        assert within(20, lambda: proxy.counts()["WATCH"] == 1)
        started = time.monotonic()
        api.kubectl("create", "configmap", "seen", "-n", namespace)
        output, _ = client.communicate(timeout=20)
    assert "configmap/seen" in output
    assert time.monotonic() - started > 2


def test_a_watch_can_expire(proxy: FaultProxy, namespace: str) -> None:
    proxy.faults = [Fault("expire", method="WATCH", path="/configmaps", value=0.2, first=1)]
    done = subprocess.run(_watch(proxy, namespace, "json"), capture_output=True, text=True, timeout=30)
    assert "Expired: as the test wants it" in done.stdout
