"""Caches and the lease against a real API server that drops, forgets, restarts and loses etcd."""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from dinoctl.cluster import projections
from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.cache import Cache
from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import ApiError, NotLeading
from dinoctl.cluster.lease import Lease, Terms
from dinoctl.cluster.resources import CONFIGMAPS, LEASES
from dinoctl.cluster.retry import Patience
from dinoctl.spec import names
from support.kube.apiserver import ApiServer
from support.kube.contract import config_map
from support.kube.faults import Fault, FaultProxy, fault_proxy

TERMS = Terms(duration=3.0, renew_deadline=2.0, retry=0.3)
HASTY = Patience(timeout=1.0, tries=1, total=1.0)


def eventually(true: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.02)


class Follower:
    """A cache of one namespace's ConfigMaps through ``kubeconfig``."""

    def __init__(self, kubeconfig, namespace: str) -> None:
        self.seen: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.cache = Cache(
            connect(kubeconfig=kubeconfig, counter=lambda verb, plural, code: self.requests.update([verb])),
            CONFIGMAPS,
            [namespace],
            lambda body: self.seen.append(body["data"].get("n", "")),
            labels=names.JOB,
            trim=projections.progress,
            restarted=lambda reason: self.reasons.update([reason]),
            patience=1.0,
        )
        self.cache.start()
        eventually(lambda: self.cache.synced)


@contextmanager
def bare_server(directory: Path) -> Iterator[ApiServer]:
    """One that may be broken, without the CRDs that cost so much time."""
    server = ApiServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(api: ApiServer) -> HttpApi:
    return connect(kubeconfig=api.kubeconfig)


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def new(kubeconfig, namespace: str) -> Follower:
        made.append(Follower(kubeconfig, namespace))
        return made[-1]

    yield new
    for follower in made:
        follower.cache.stop()


def write(client: HttpApi, namespace: str, n: str, name: str = "x") -> None:
    client.apply(CONFIGMAPS, namespace, config_map(name, {"n": n}, labels={names.JOB: "a"}))


def holds(follower: Follower, namespace: str, n: str) -> Callable[[], bool]:
    def check() -> bool:
        body = follower.cache.get(namespace, "x")
        return body is not None and body["data"] == {"n": n}

    return check


def test_cut_watches_lose_nothing(client, proxy: FaultProxy, namespace, follow) -> None:
    proxy.faults = [Fault("cut", method="WATCH", value=0.3)]
    follower = follow(proxy.kubeconfig(), namespace)
    for number in range(30):
        write(client, namespace, str(number))
        time.sleep(0.1)
    eventually(holds(follower, namespace, "29"))
    assert proxy.faults[0].hits > 3
    assert follower.requests["list"] == 1
    assert follower.seen == [str(number) for number in range(30)], "each state, in order, once"


def test_an_expired_watch_lists_again(client, proxy: FaultProxy, namespace, follow) -> None:
    proxy.faults = [Fault("expire", method="WATCH", value=0.3, first=2)]
    follower = follow(proxy.kubeconfig(), namespace)
    eventually(lambda: follower.reasons["expired"] == 2)
    write(client, namespace, "1")
    eventually(holds(follower, namespace, "1"))
    assert follower.requests["list"] == 3


def test_resuming_after_a_compaction(tmp_path, follow) -> None:
    """A version older than what the server's watch cache holds after a restart, and than etcd has kept: a real 410."""
    with bare_server(tmp_path) as server, fault_proxy(server) as proxy:
        client = connect(kubeconfig=server.kubeconfig)
        space = server.namespace()
        write(client, space, "1")
        write(client, space, "old", name="gone")
        follower = follow(proxy.kubeconfig(), space)
        proxy.faults = [Fault("reset", method="WATCH")]
        server.restart(kill=True)
        for number in range(30):
            write(client, space, str(number))
        client.delete(CONFIGMAPS, space, "gone")
        _compact(server, client.list(CONFIGMAPS, space)[1])
        server.restart(kill=True)
        proxy.faults = []
        eventually(holds(follower, space, "29"))
        eventually(lambda: (space, "gone") not in follower.cache)
        assert follower.reasons["expired"] >= 1
        assert follower.requests["list"] >= 2


def _compact(server: ApiServer, revision: str) -> None:
    """Through etcd's JSON gateway."""
    url = f"{server._etcd_url}/v3/kv/compaction"
    body = f'{{"revision": "{revision}", "physical": true}}'
    subprocess.run(["curl", "-sSf", "-X", "POST", "-d", body, url], check=True, capture_output=True)


def test_etcd_and_the_api_server_come_back(tmp_path, follow) -> None:
    with bare_server(tmp_path) as server:
        client = connect(kubeconfig=server.kubeconfig, patience=Patience(timeout=5, tries=20, total=90))
        space = server.namespace()
        write(client, space, "1")
        follower = follow(server.kubeconfig, space)
        lease = Lease(client.hurried(HASTY), space, "l", "a", terms=TERMS)
        fenced = connect(kubeconfig=server.kubeconfig, patience=HASTY).fenced(lease.check)
        lease.start()
        eventually(lease.held)
        server.stop_etcd()
        eventually(lambda: not lease.held())
        with pytest.raises(NotLeading):
            write(fenced, space, "forbidden")
        server.start_etcd()
        eventually(lease.held)
        write(client, space, "2")
        eventually(holds(follower, space, "2"))
        server.restart(kill=True)
        write(client, space, "3")
        eventually(holds(follower, space, "3"))
        eventually(lease.held)
        lease.stop()
        assert client.get(LEASES, space, "l")["spec"]["holderIdentity"] == ""


def test_two_replicas_one_lease(client, api: ApiServer, namespace) -> None:
    """Each leader in turn is cut off: no moment has two holders, and what both want to make is made once."""
    stop, overlaps, made = threading.Event(), [], Counter()

    def write_while_leading(lease: Lease) -> None:
        fenced = client.fenced(lease.check)
        while not stop.wait(0.02):
            for number in range(5):
                with suppress(ApiError):
                    fenced.create(CONFIGMAPS, namespace, config_map(f"name-{number}"))
                    made[number] += 1

    def look(leases: list[Lease]) -> None:
        while not stop.wait(0.002):
            if all(lease.held() for lease in leases):
                overlaps.append(time.monotonic())

    with ExitStack() as stack:
        proxies = [stack.enter_context(fault_proxy(api)) for _ in range(2)]
        leases = [_lease(proxy, namespace, name) for proxy, name in zip(proxies, "ab", strict=True)]
        threads = [threading.Thread(target=write_while_leading, args=(lease,)) for lease in leases]
        threads.append(threading.Thread(target=look, args=(leases,)))
        for lease in leases:
            stack.callback(lease.stop)
            lease.start()
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        eventually(lambda: any(lease.held() for lease in leases))
        for _ in range(3):
            leader = 0 if leases[0].held() else 1
            proxies[leader].faults = [Fault("hang", path="/leases")]
            eventually(leases[1 - leader].held)
            proxies[leader].faults = []
    assert overlaps == []
    assert made == Counter(range(5))


def _lease(proxy: FaultProxy, namespace: str, name: str) -> Lease:
    return Lease(connect(kubeconfig=proxy.kubeconfig(), patience=HASTY), namespace, "two", name, terms=TERMS)
