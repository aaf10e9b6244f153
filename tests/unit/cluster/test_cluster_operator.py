"""The operator around a small reconciler that keeps one ConfigMap a job: sync, lease, failures, exit."""

import logging
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dinoctl.cluster.caches import Caches
from dinoctl.cluster.errors import Conflict, Exists, Forbidden, NotLeading, Throttled, Unavailable
from dinoctl.cluster.http import Server
from dinoctl.cluster.lease import Terms
from dinoctl.cluster.metrics import Metrics
from dinoctl.cluster.operator import LEASE, Operator
from dinoctl.cluster.protocol import Api
from dinoctl.cluster.resources import CONFIGMAPS, DINOJOBS, LEASES, RAYJOBS
from dinoctl.spec import names
from dinoctl.spec.profile import OperatorConfig
from support.kube.contract import SPACE, config_map
from support.kube.memory import Call, MemoryApi, MemoryServer

TERMS = Terms(duration=1.2, renew_deadline=0.8, retry=0.1)
CONFIG = OperatorConfig.model_validate(
    {
        "profiles": {"p": {"image": "x", "allowTags": True, "storage": "s3://b/p", "trackingUri": "http://m"}},
        "workers": 3,
    }
)


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.01)


class Keeper:
    """Creates a ConfigMap a job. ``trouble`` is raised for jobs of that name, once each entry."""

    def __init__(self, api: Api, caches: Caches) -> None:
        self.api, self.caches = api, caches
        self.looks: Counter[str] = Counter()
        self.trouble: dict[str, list[Exception]] = {}
        self.leads = 0
        self.closed = False

    def lead(self) -> None:
        self.leads += 1

    def reconcile(self, key: tuple[str, str]) -> float | None:
        self.looks[key[1]] += 1
        if self.trouble.get(key[1]):
            raise self.trouble[key[1]].pop()
        job = self.caches.jobs.get(*key)
        if job is not None:
            with suppress(Exists):
                self.api.create(CONFIGMAPS, key[0], config_map(f"{key[1]}-made", labels={names.JOB: key[1]}))
        return None

    def children(self, namespace: str, job: str) -> list[str]:
        return ["child"] if job == "parent" else []

    def close(self) -> None:
        self.closed = True


class Replica:
    def __init__(self, server: MemoryServer, name: str, config: OperatorConfig = CONFIG) -> None:
        self.down = False
        self.refused = ""
        self.writes: list[str] = []
        self.stop = threading.Event()
        self.metrics = Metrics()
        self.keeper: Keeper

        def make(api: Api, caches: Caches, config: OperatorConfig, metrics: Metrics) -> Keeper:
            self.keeper = Keeper(api, caches)
            return self.keeper

        api = MemoryApi(server, self._hook)
        self.operator = Operator(api, config, make, namespace=SPACE, identity=name, metrics=self.metrics, terms=TERMS)
        self.thread = threading.Thread(target=self.operator.run, args=(self.stop,))

    def _hook(self, call: Call) -> None:
        if self.down and call.when == "before":
            raise Unavailable(call.verb, "down")
        if self.refused and call.namespace == self.refused and call.when == "before" and call.resource != DINOJOBS:
            raise Forbidden(f"list {call.resource.plural}", "is forbidden", 403, "Forbidden")
        if call.writes and call.when == "before" and call.resource != LEASES:
            self.writes.append(call.name)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def start(server) -> Iterator[Callable[[str], Replica]]:
    made: list[Replica] = []

    def new(name: str = "a", config: OperatorConfig = CONFIG, refused: str = "") -> Replica:
        made.append(Replica(server, name, config))
        made[-1].refused = refused
        made[-1].thread.start()
        return made[-1]

    yield new
    for replica in made:
        replica.end()


def submit(server: MemoryServer, name: str) -> None:
    MemoryApi(server).create(DINOJOBS, SPACE, {"metadata": {"name": name}, "spec": {}})


def made(server: MemoryServer) -> set[str]:
    return {key[2].removesuffix("-made") for key in server.objects if key[0] == CONFIGMAPS}


def test_jobs_before_and_after_the_start_are_looked_at(server, start) -> None:
    submit(server, "early")
    replica = start()
    eventually(lambda: made(server) == {"early"})
    submit(server, "late")
    eventually(lambda: made(server) == {"early", "late"})
    assert replica.operator.unwell() == replica.operator.unready() == ""


def test_what_happens_to_a_jobs_objects_is_looked_at(server, start) -> None:
    submit(server, "job")
    replica = start()
    eventually(lambda: made(server) == {"job"})
    api = MemoryApi(server)
    looks = replica.keeper.looks["job"]
    body = {"metadata": {"name": "job-1", "labels": {names.JOB: "job"}}, "spec": {"suspend": True}}
    ray_job = api.create(RAYJOBS, SPACE, body)
    eventually(lambda: replica.keeper.looks["job"] > looks)
    eventually(lambda: replica.operator.queue.depth == 0)
    looks = replica.keeper.looks["job"]
    api.patch(RAYJOBS, SPACE, "job-1", {"spec": {"suspend": False}})
    eventually(lambda: replica.keeper.looks["job"] > looks)
    assert ray_job["metadata"]["name"] == "job-1"


def test_children_are_told_of_their_parent(server, start) -> None:
    submit(server, "child")
    replica = start()
    eventually(lambda: replica.keeper.looks["child"] > 0)
    looks = replica.keeper.looks["child"]
    submit(server, "parent")
    eventually(lambda: replica.keeper.looks["child"] > looks)
    eventually(lambda: replica.operator.queue.depth == 0)
    looks, parents = replica.keeper.looks["child"], replica.keeper.looks["parent"]
    api = MemoryApi(server)
    api.patch(DINOJOBS, SPACE, "parent", {"status": {"step": 7}}, subresource="status")
    eventually(lambda: replica.keeper.looks["parent"] > parents)
    assert replica.keeper.looks["child"] == looks, "steps are no news to children"
    parents = replica.keeper.looks["parent"]
    with server.changed:
        done = api.patch(DINOJOBS, SPACE, "parent", {"status": {"state": "Complete"}}, subresource="status")
        replica.keeper.caches.jobs.observe(done)
    eventually(lambda: replica.keeper.looks["child"] > looks)
    assert replica.keeper.looks["parent"] == parents, "what the operator wrote itself is no news to it"
    eventually(lambda: replica.metrics.registry.get_sample_value("dinoctl_jobs", {"state": "Complete"}) == 1)


@pytest.mark.parametrize(
    "error",
    [Conflict("x", "y", 409), Unavailable("x", "y"), Throttled("x", "y", 429, "", 0.3), ValueError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_a_look_that_fails_is_tried_again(server, start, error, caplog) -> None:
    caplog.set_level(logging.INFO)
    replica = start()
    eventually(replica.operator.lease.held)
    replica.keeper.trouble["job"] = [error, error]
    submit(server, "job")
    eventually(lambda: made(server) == {"job"})
    assert replica.keeper.looks["job"] >= 3
    value = replica.metrics.registry.get_sample_value("dinoctl_reconcile_errors_total", {"kind": type(error).__name__})
    assert value == 2
    assert ("could not be looked at" in caplog.text) == isinstance(error, ValueError)


def test_one_of_two_replicas_works_and_the_other_takes_over(server, start) -> None:
    first = start("a")
    eventually(first.operator.lease.held)
    second = start("b")
    submit(server, "one")
    eventually(lambda: made(server) == {"one"})
    assert second.writes == []
    first.end()
    assert first.keeper.closed
    submit(server, "two")
    eventually(lambda: made(server) == {"one", "two"})
    assert "two-made" in second.writes


def test_a_leader_that_cannot_reach_the_server_stops_and_takes_up_again(server, start) -> None:
    replica = start()
    eventually(replica.operator.lease.held)
    replica.down = True
    server.drop_watches()
    eventually(lambda: not replica.operator.lease.held())
    eventually(lambda: replica.metrics.registry.get_sample_value("dinoctl_leader") == 0)
    submit(server, "job")
    with pytest.raises(NotLeading):
        replica.keeper.api.create(CONFIGMAPS, SPACE, config_map("forbidden"))
    replica.down = False
    eventually(lambda: made(server) == {"job"})
    assert replica.keeper.leads == 2


def test_both_believe_they_lead(server, start, monkeypatch) -> None:
    """A frozen process may wake up after its deadline, between check and write. Then names keep twins away."""
    first, second = start("a"), start("b")
    for replica in (first, second):
        monkeypatch.setattr(replica.operator.lease, "held", lambda: True)
        monkeypatch.setattr(replica.operator.lease, "_deadline", float("inf"))
    for number in range(30):
        submit(server, f"job-{number}")
    expected = {f"job-{number}" for number in range(30)}
    eventually(lambda: made(server) == expected)
    eventually(lambda: first.operator.queue.depth == second.operator.queue.depth == 0)
    assert len(made(server)) == 30


def test_nothing_is_done_before_the_caches_know_the_cluster(server, start) -> None:
    submit(server, "job")
    replica = Replica(server, "a")
    replica.down = True
    replica.thread.start()
    time.sleep(0.5)
    assert "down" in replica.operator.unready()
    assert replica.keeper.looks == {}
    assert not replica.operator.lease.held()
    replica.end()


@pytest.mark.parametrize("others", [[], [SPACE]], ids=["the only one", "one of two"])
def test_a_namespace_that_may_not_be_watched(server, start, monkeypatch, caplog, others) -> None:
    """It was deleted while no operator ran, or its Role was: of its jobs only what is going can be seen to."""
    monkeypatch.setattr("dinoctl.cluster.operator.LOST_S", 0.4)
    api = MemoryApi(server)
    for name, more in (("left", {}), ("going", {"finalizers": ["x/y"]})):
        api.create(DINOJOBS, "lost", {"metadata": {"name": name, **more}, "spec": {}})
    api.delete(DINOJOBS, "lost", "going")
    if others:
        submit(server, "job")
    replica = start("a", CONFIG.model_copy(update={"namespaces": [*others, "lost"]}), "lost")
    eventually(lambda: replica.keeper.looks["going"] > 0)
    eventually(lambda: made(server) == ({"job"} if others else set()))
    assert "namespace lost may not be watched" in caplog.text
    assert replica.metrics.registry.get_sample_value("dinoctl_namespaces_unlisted") == 1
    assert replica.keeper.looks["left"] == 0
    assert bool(replica.operator.unready()) != bool(others)
    replica.refused = ""
    eventually(lambda: {"left", "going"} <= made(server))
    assert replica.operator.unready() == ""


def test_a_server_that_is_only_slow_is_waited_for(server, start, monkeypatch) -> None:
    monkeypatch.setattr("dinoctl.cluster.operator.LOST_S", 0.1)
    replica = Replica(server, "a")
    replica.down = True
    replica.thread.start()
    time.sleep(0.6)
    assert not replica.operator.lease.thread.is_alive()
    replica.end()


def test_exit_gives_the_lease_back(server, start) -> None:
    replica = start()
    eventually(replica.operator.lease.held)
    replica.end()
    assert MemoryApi(server).get(LEASES, SPACE, LEASE)["spec"]["holderIdentity"] == ""
    assert not any(thread.name.startswith(("look-", "watch-", "lease")) for thread in threading.enumerate())


def test_a_missing_definition_is_said(server, start) -> None:
    server.missing.add(DINOJOBS)
    replica = start()
    eventually(lambda: "CRD" in replica.operator.unready())
    server.missing.clear()


def test_a_stuck_look_is_unwell(server, start, monkeypatch) -> None:
    replica = start()
    eventually(replica.operator.lease.held)
    assert replica.operator.unwell() == ""
    gate = threading.Event()
    monkeypatch.setattr("dinoctl.cluster.operator.STUCK", 0.05)
    monkeypatch.setattr(replica.keeper, "reconcile", lambda key: gate.wait(30) and None)
    submit(server, "job")
    eventually(lambda: "stuck" in replica.operator.unwell())
    gate.set()
    eventually(lambda: replica.operator.unwell() == "")


def test_pages(server, start) -> None:
    from prometheus_client import generate_latest

    replica = start()
    submit(server, "job")
    api = MemoryApi(server)
    status = {"state": "Running", "attempt": 2, "waste": {"queueSeconds": 7}, "failures": {"preemptions": 1}}
    api.patch(DINOJOBS, SPACE, "job", {"status": status}, subresource="status")
    eventually(lambda: replica.keeper.caches.jobs.get(SPACE, "job") is not None)
    checks = {"/healthz": replica.operator.unwell, "/readyz": replica.operator.unready}
    http = Server(0, {"/metrics": lambda: generate_latest(replica.metrics.registry)}, checks)
    try:
        assert urllib.request.urlopen(f"http://127.0.0.1:{http.port}/healthz", timeout=10).read() == b"ok\n"
        eventually(lambda: replica.metrics.registry.get_sample_value("dinoctl_jobs", {"state": "Running"}) == 1)
        text = urllib.request.urlopen(f"http://127.0.0.1:{http.port}/metrics", timeout=10).read().decode()
        for line in (
            'dinoctl_jobs{state="Running"} 1.0',
            'dinoctl_waste_seconds{kind="queue"} 7.0',
            'dinoctl_failures{cause="preemptions"} 1.0',
            f'dinoctl_attempts{{job="job",namespace="{SPACE}"}} 2.0',
            'dinoctl_cache_objects{resource="dinojobs"} 1.0',
        ):
            assert line in text, line
        api.delete(DINOJOBS, SPACE, "job")
        eventually(lambda: replica.metrics.registry.get_sample_value("dinoctl_jobs", {"state": "Running"}) is None)
        replica.operator._looks["look-0"] = -1e9
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://127.0.0.1:{http.port}/healthz", timeout=10)
        replica.operator._looks.clear()
    finally:
        http.close()
