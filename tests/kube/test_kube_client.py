"""The client against a real API server: the contract, and what only a real one does."""

import time

import pytest

from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import Forbidden, NotFound, Throttled, Unavailable
from dinoctl.cluster.resources import CONFIGMAPS, PODS, RAYJOBS, SERVICE_ACCOUNTS
from dinoctl.cluster.retry import Patience
from support.kube.apiserver import ApiServer
from support.kube.contract import ApiContract, config_map
from support.kube.faults import Fault, FaultProxy

FAST = Patience(timeout=2.0, tries=4, total=15.0, first=0.05, longest=0.2)


@pytest.fixture
def client(api: ApiServer) -> HttpApi:
    return connect(kubeconfig=api.kubeconfig)


@pytest.fixture
def faulty(proxy: FaultProxy) -> HttpApi:
    return connect(kubeconfig=proxy.kubeconfig(), patience=FAST)


class TestRealServer(ApiContract):
    @pytest.fixture
    def space(self, client: HttpApi, namespace: str) -> str:
        while True:  # pods need it, and a controller makes it
            try:
                client.get(SERVICE_ACCOUNTS, namespace, "default")
            except NotFound:
                time.sleep(0.1)
            else:
                return namespace

    @pytest.fixture
    def other(self, api: ApiServer) -> HttpApi:
        return connect(kubeconfig=api.kubeconfig, manager="other")


def test_what_a_deleted_object_owns_goes_with_it(client, namespace) -> None:
    owner = client.create(CONFIGMAPS, namespace, config_map("owner"))["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"], "controller": True}
    client.create(CONFIGMAPS, namespace, config_map("child", ownerReferences=[reference]))
    client.delete(CONFIGMAPS, namespace, "owner")
    end = time.monotonic() + 60
    while any(item["metadata"]["name"] == "child" for item in client.list(CONFIGMAPS, namespace)[0]):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_apply_leaves_to_others_what_is_theirs(client, api, namespace) -> None:
    """Kueue's webhook sets ``suspend``; an apply that doesn't name it must not take it back."""
    body = {"metadata": {"name": "j"}, "spec": {"entrypoint": "true", "rayClusterSpec": _cluster()}}
    client.apply(RAYJOBS, namespace, body)
    kueue = connect(kubeconfig=api.kubeconfig, manager="kueue")
    kueue.patch(RAYJOBS, namespace, "j", {"spec": {"suspend": True}})
    assert client.apply(RAYJOBS, namespace, body)["spec"]["suspend"] is True


def _cluster() -> dict:
    pod = {"spec": {"containers": [{"name": "ray-head", "image": "localhost/none:1"}]}}
    return {"headGroupSpec": {"rayStartParams": {}, "template": pod}}


def test_what_is_not_allowed_is_one_line(api, namespace) -> None:
    nobody = connect(kubeconfig=api.service_account_kubeconfig(namespace, "nobody"))
    with pytest.raises(Forbidden, match=r"^list pods test-\d+: .*cannot list resource") as caught:
        nobody.list(PODS, namespace)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused_by_name(client, namespace) -> None:
    with pytest.raises(Exception, match=r"\.dta: field not declared in schema|unknown field.*dta"):
        client.apply(CONFIGMAPS, namespace, {"metadata": {"name": "x"}, "dta": {}})


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", method="PATCH", value=500, first=2),
        Fault("status", method="PATCH", value=503, first=2, after=True),
        Fault("status", method="PATCH", value=429, first=1),
        Fault("reset", method="PATCH", first=2),
        Fault("reset", method="PATCH", first=2, after=True),
        Fault("hang", method="PATCH", first=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.value:g}-{fault.after}",
)
def test_passing_faults_are_got_over(faulty, proxy, client, namespace, fault) -> None:
    proxy.faults = [fault]
    faulty.apply(CONFIGMAPS, namespace, config_map("x", {"a": "1"}))
    assert fault.hits
    assert client.get(CONFIGMAPS, namespace, "x")["data"] == {"a": "1"}


def test_lasting_faults_end_in_one_line(faulty, proxy, namespace) -> None:
    proxy.faults = [Fault("status", value=429)]
    with pytest.raises(Throttled, match=r"^get ConfigMap .*/x: TooManyRequests"):
        faulty.get(CONFIGMAPS, namespace, "x")
    proxy.faults = [Fault("reset")]
    with pytest.raises(
        Unavailable, match=r"^get ConfigMap .*/x: the API server at https://127.0.0.1:\d+ does not answer"
    ):
        faulty.get(CONFIGMAPS, namespace, "x")
    assert len(proxy.requests) <= 2 * FAST.tries


def test_a_long_list_comes_in_pages(client, namespace, monkeypatch) -> None:
    monkeypatch.setattr("dinoctl.cluster.api.PAGE", 7)
    for number in range(20):
        client.create(CONFIGMAPS, namespace, config_map(f"c-{number:02d}", labels={"t": "pages"}))
    found, _ = client.list(CONFIGMAPS, namespace, labels="t=pages")
    assert [item["metadata"]["name"] for item in found] == [f"c-{number:02d}" for number in range(20)]
    assert all(item["kind"] == "ConfigMap" for item in found)
