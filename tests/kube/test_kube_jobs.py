"""Whole lives of jobs: the operator as it is, against a real API server and its garbage collector, while a script plays
KubeRay, Kueue, kubelets and workers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import NotFound
from dinoctl.cluster.lease import Terms
from dinoctl.cluster.metrics import Metrics
from dinoctl.cluster.operator import Operator
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.reconcile import Reconciler
from dinoctl.cluster.resources import DINOJOBS, EVENTS, LOCAL_QUEUES, PODS, RAYJOBS, ROLE_BINDINGS, Resource
from dinoctl.handover.outcome import Outcome
from dinoctl.spec.yamldoc import read_yaml
from support.chart import CI, template
from support.kube.apiserver import ApiServer
from support.kube.faults import Fault, FaultProxy
from support.kube.tools import TOOLS
from support.kube.world import World

ROOT = Path(__file__).parents[2]
TRAIN: dict[str, Any] = {
    "pretrain": {"data": {"source": "s3://bucket/d"}, "steps": 100, "globalBatch": 8, "model": {"arch": "vit_small"}},
    "compute": {"gpusPerWorker": 0, "engine": {"name": "ddp"}, "precision": "fp32"},
}


class RealWorld(World):
    """The same cluster around a real API server; its clock is the real one."""

    def __post_init__(self) -> None:
        if self.queue:
            self.create(LOCAL_QUEUES, {"metadata": {"name": self.queue}, "spec": {"clusterQueue": "all"}})

    def objects(self, resource: Resource) -> list[Object]:
        return self.api.list(resource, self.space)[0]

    def end_pod(self, name: str) -> None:
        self.api.delete(PODS, self.space, name, grace=0)

    def stamp(self) -> str:
        return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def tick(self, seconds: float = 0.3) -> None:
        time.sleep(seconds)
        super().tick(0.0)
        self.now = time.time()

    def _workload(self, rayjob: Object) -> None:
        """Its words are of interest in tests/cluster, where Kueue makes it."""

    def pod_spec(self, role: str, attempt: int) -> dict[str, Any]:
        """Bound to no node, or it would be taken for a pod of a node that was lost."""
        image = {"name": "ray", "image": "localhost/none"}
        return {"containers": [image], "terminationGracePeriodSeconds": 30, "automountServiceAccountToken": False}


class Running:
    """The operator in threads of this process."""

    def __init__(self, world: RealWorld, kubeconfig: Path, name: str = "one", home: str = "") -> None:
        api = connect(kubeconfig=kubeconfig, connections=24)
        self._stop, self.world = threading.Event(), world

        def make(api: Any, caches: Any, config: Any, metrics: Any) -> Reconciler:
            return Reconciler(api, caches, config, metrics, tracking=world.registry.at)  # type: ignore[arg-type]

        self.operator = Operator(
            api,
            world.config(namespaces=[world.space]),
            make,
            namespace=home or world.space,
            identity=name,
            metrics=Metrics(),
            terms=Terms(duration=12.0, renew_deadline=9.0, retry=1.0),
        )
        self._thread = threading.Thread(target=self.operator.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module", autouse=True)
def definition(api: ApiServer) -> None:
    api.apply_crds(ROOT / "manifests" / "crd.yaml")


@pytest.fixture
def world(api: ApiServer, namespace: str, tmp_path: Path) -> RealWorld:
    world = RealWorld.__new__(RealWorld)
    world.api = connect(kubeconfig=api.kubeconfig, manager="world")
    RealWorld.__init__(world, tmp_path, queue="gpus", space=namespace)
    return world


@pytest.fixture
def run(world: RealWorld) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(kubeconfig: Path, name: str = "one", home: str = "") -> Running:
        made.append(Running(world, kubeconfig, name, home))
        return made[-1]

    yield start
    for one in made:
        one.end()


def until(world: RealWorld, true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, [(one["metadata"]["name"], one.get("status")) for one in world.objects(DINOJOBS)]
        world.tick()


def in_state(world: RealWorld, *names: str, state: str = "Complete") -> Callable[[], bool]:
    return lambda: all(world.state(name) == state for name in names)


def gone(world: RealWorld, name: str) -> bool:
    try:
        world.job(name)
    except NotFound:
        return True
    return False


def test_the_digits_from_pack_to_evaluation(api: ApiServer, world: RealWorld, run: Any) -> None:
    documents = [one.data for one in read_yaml((ROOT / "jobs" / "digits.yaml").read_text(), "digits.yaml")]
    for document in reversed(documents):
        world.api.create(DINOJOBS, world.space, document)
    run(api.kubeconfig)
    until(world, in_state(world, *(one["metadata"]["name"] for one in documents)), 180)
    assert world.registry.alias_moves == 3
    assert set(world.registry.runs.values()) == {"FINISHED"}
    table = api.kubectl("get", "dinojobs", "-n", world.space)
    assert table.count("Complete") == len(documents), table
    told = {event["reason"] for event in world.objects(EVENTS)}
    assert {"AttemptCreated", "AttemptStarted", "AttemptSucceeded", "Complete", "Promoted"} <= told
    world.api.delete(DINOJOBS, world.space, "digits-evaluate")
    until(world, lambda: gone(world, "digits-evaluate"), 20)
    until(world, lambda: not [r for r in world.rayjobs() if r["metadata"]["name"].startswith("digits-eva")], 60)


def test_preempted_suspended_resumed_restarted_deleted(api: ApiServer, world: RealWorld, run: Any) -> None:
    world.steps = 1000
    world.submit("a", TRAIN)
    run(api.kubeconfig)
    until(world, lambda: (world.job("a").get("status") or {}).get("checkpointStep", 0) > 10)
    world.preempt(world.rayjobs()[0]["metadata"]["name"])
    until(world, lambda: world.job("a")["status"]["failures"]["preemptions"] == 1)
    until(world, in_state(world, "a", state="Running"))
    world.edit("a", {"suspend": True})
    until(world, in_state(world, "a", state="Suspended"))
    world.edit("a", {"compute": {"workers": 2}})
    world.edit("a", {"suspend": False})
    until(world, in_state(world, "a", state="Running"))
    status = world.job("a")["status"]
    assert status["workers"] == 2
    assert status["lifecycle"]["attempts"][-1]["startStep"] > 10
    assert status["failures"] == {"infrastructure": 0, "application": 0, "preemptions": 1}
    world.api.delete(DINOJOBS, world.space, "a")
    until(world, lambda: gone(world, "a"))
    until(world, lambda: not world.rayjobs())
    assert list(world.registry.runs.values()) == ["FAILED"]


def test_cancelled_and_restarted(api: ApiServer, world: RealWorld, run: Any) -> None:
    world.steps = 1000
    world.submit("a", TRAIN)
    run(api.kubeconfig)
    until(world, in_state(world, "a", state="Running"))
    world.edit("a", cancel="true")
    until(world, in_state(world, "a", state="Cancelled"))
    world.steps = 3
    world.edit("a", cancel=None, restart="1")
    until(world, in_state(world, "a"))
    assert world.job("a")["status"]["storage"].endswith("run-0002")


def test_failures_of_the_api_server_on_the_way(api: ApiServer, world: RealWorld, run: Any, proxy: FaultProxy) -> None:
    """Refusals, lost answers and cut watches; another replica stands by, and takes over in the middle."""
    world.fail = {1: Outcome(1, "failed", "Infrastructure", "node lost", node="n1")}
    proxy.faults = [
        Fault("status", method="PATCH|POST", path="/rayjobs", value=500, first=2),
        Fault("status", method="PATCH", path="/dinojobs", value=409, skip=2, first=3),
        Fault("status", method="PATCH|POST", path="/configmaps", value=429, first=3),
        Fault("reset", method="POST", path="/rayjobs", after=True, skip=2, first=1),
        Fault("reset", method="PATCH", path="/dinojobs", after=True, skip=8, first=2),
        Fault("cut", method="WATCH", value=2.0),
    ]
    for name in ("a", "b", "c"):
        world.submit(name, TRAIN)
    first = run(proxy.kubeconfig(), "first")
    run(proxy.kubeconfig(), "second")
    until(world, lambda: bool(world.rayjobs()))
    first._stop.set()
    until(world, in_state(world, "a", "b", "c"), 240)
    for name in ("a", "b", "c"):
        assert world.job(name)["status"]["failures"]["infrastructure"] == 1
    assert len(world.registry.runs) == 3


@pytest.mark.parametrize("restarted", [False, True])
def test_namespace_deleted_in_mid_run(api: ApiServer, world: RealWorld, run: Any, restarted: bool) -> None:
    """With the chart's roles, of which the namespace's own go before its jobs do."""
    home = api.namespace()
    made = template(
        TOOLS["helm"].path, CI / "small.yaml", f"operator.config.namespaces={{{world.space}}}", namespace=home
    )
    kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    api.apply(*(one for one in yaml.safe_load_all(made) if one and one["kind"] in kinds))
    token = api.service_account_kubeconfig(home, "dinoctl-operator")
    world.steps = 1000
    world.submit("a", TRAIN)
    first = run(token, home=home)
    until(world, in_state(world, "a", state="Running"))
    if restarted:
        first.end()
    api.kubectl("delete", "namespace", world.space, "--wait=false")
    if restarted:
        until(world, lambda: not world.objects(ROLE_BINDINGS))
        run(token, "two", home=home)
    until(world, lambda: gone(world, "a"))
    until(world, lambda: not world.objects(RAYJOBS))
    until(world, lambda: f"namespace/{world.space}" not in api.kubectl("get", "namespaces", "-o", "name").split(), 60)
