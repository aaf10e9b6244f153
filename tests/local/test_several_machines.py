"""An attempt whose driver and ranks share nothing but a bucket: a rank is killed, the same attempt is begun again, the
machines are taken away, the job goes on and ends. What others see of it meanwhile: outcome, output, progress, metrics.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from dinoctl.data.storage import open_storage
from dinoctl.handover.attempt import Attempt, Cluster
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.handover.output import read_output
from dinoctl.handover.runs import run_key
from dinoctl.handover.spools import ship_kept
from dinoctl.spec.load import load
from dinoctl.spec.pin import pin
from dinoctl.spec.resolve import resolve
from support import configmap_server
from support.configmap_server import ConfigMap
from support.pods import VOLUME, Pod, pods
from support.runs import PACK, TRAIN

pytestmark = pytest.mark.timeout(1500)

SECRET = "a-secret-of-the-profile"
JOBS = PACK + TRAIN.replace("steps: 60", "steps: 200").replace("everySteps: 5", "everySteps: 20")
LIMIT_S = 480
NOTHING_LISTENS = 9


@dataclass
class Site:
    """The machines, and what they share."""

    root: Path
    bucket: str
    progress: ConfigMap
    head: Pod
    workers: list[Pod]
    ray: str
    drivers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def attempt(self, name: str, number: int, tracking: str) -> Path:
        """The file of an attempt, whose scratch and spool are new on every machine, as a pod's are."""
        jobs = {job.name: job for job in resolve(load([str(self.root / "jobs.yaml")]))}
        job = jobs[name]
        volume = VOLUME / f"{name}-{number}"
        made = Attempt(
            name=name,
            spec=pin(job.spec, {"pack": f"{self.bucket}/pack"}),
            spec_hash=job.spec_hash,
            number=number,
            storage_uri=f"{self.bucket}/{name}",
            scratch=volume / "attempt",
            spool=volume / "spool",
            tracking_uri=tracking,
            cluster=Cluster("vision", "1f-2e", "train-progress", "a-life", 1, ("TEAM_NOTE",)),
        )
        path = self.root / f"{name}-{number}.json"
        made.write(path)
        return path

    def start(self, path: Path) -> "subprocess.Popen[bytes]":
        """The driver, on the head, as Ray starts that of a RayJob."""
        command = self.head.command(sys.executable, "-m", "dinoctl.worker", "--job", str(path))
        environment = {**self.head.environment, "RAY_ADDRESS": self.ray}
        with path.with_suffix(".log").open("ab") as log:
            driver = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.drivers.append(driver)
        return driver

    def store(self, name: str, number: int) -> AttemptStore:
        return AttemptStore(open_storage(f"{self.bucket}/{name}"), number)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text(errors="replace")[-6000:] for path in self.root.glob("*.log"))
                raise AssertionError(f"waited {LIMIT_S} s for {what}\n{logs}")
            time.sleep(0.1)


@pytest.fixture
def site(tmp_path: Path, s3: str, s3_server: object) -> Iterator[Site]:
    (tmp_path / "jobs.yaml").write_text(JOBS)
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "DINOCTL_CACHE_DIR": str(VOLUME / "cache"),
        "TEAM_NOTE": SECRET,
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with configmap_server.serve(tmp_path / "credentials", "vision", "train-progress") as progress:
        environment |= progress.environment
        with pods(tmp_path, progress.credentials, environment, workers=2) as (head, workers, ray):
            made = Site(tmp_path, s3, progress, head, workers, ray)
            yield made
            for driver in made.drivers:
                if driver.poll() is None:
                    for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
                        process.kill()
                driver.wait()


def ended(driver: "subprocess.Popen[bytes]", code: int, path: Path) -> None:
    """As it should, in time."""
    log = path.with_suffix(".log")
    try:
        assert driver.wait(LIMIT_S) == code, log.read_text(errors="replace")[-6000:]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still there after {LIMIT_S} s:\n{log.read_text(errors='replace')[-6000:]}") from None


def rank_of(path: Path, number: int) -> psutil.Process:
    """The process of a rank: its companion knows."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(path) in words and f"rank-{number:05d}" in words:
            return psutil.Process(int(words[words.index("--parent") + 1]))
    raise AssertionError(f"rank {number} has no companion")


def test_killed_begun_again_preempted_and_done(site: Site, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{NOTHING_LISTENS}"
    path = site.attempt("pack", 1, "")
    ended(site.start(path), 0, path)
    assert site.store("pack", 1).sources() == ["driver"]
    assert site.progress.said["phase"] == "pack"
    assert site.progress.said["nodes"] == ["node-of-head"]
    site.progress.data.clear()

    killed_rank(site, nowhere)
    begun_again(site)
    tracking = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    run_key("vision", "train", "a-life").ensure(tracking)  # making the store's tables takes seconds
    stopped = preempted(site, tracking)
    done(site, tracking, stopped)
    every_point_once(site, tracking)
    assert [said["attempt"] for _, said in site.progress.patches] == sorted(
        said["attempt"] for _, said in site.progress.patches
    )


def killed_rank(site: Site, tracking: str) -> None:
    """SIGKILL to one rank: nothing of what it said is lost, the driver learns of it, MLflow is down all the time."""
    path = site.attempt("train", 1, tracking)
    driver = site.start(path)
    ledger = Ledger(open_storage(f"{site.bucket}/train/{CHECKPOINTS}"))
    site.wait(ledger.steps, "a checkpoint")
    site.wait(lambda: site.progress.said.get("head"), "progress with a checkpoint")
    assert site.progress.said["nodes"] == ["node-of-worker-0", "node-of-worker-1"]
    rank = rank_of(path, 1)
    alive = {pod.name: {process.pid for process in pod.processes()} for pod in site.workers}
    with Path(f"/proc/{rank.pid}/fd/2").open("ab", buffering=0) as output:
        output.write(f"last words of rank 1, and {SECRET}\n".encode())
    rank.send_signal(signal.SIGKILL)
    ended(driver, 1, path)
    store = site.store("train", 1)
    outcome = store.outcome()
    assert outcome is not None
    assert (outcome.phase, outcome.cause) == ("failed", "Infrastructure"), outcome
    where = next(pod.environment["DINOCTL_NODE"] for pod in site.workers if rank.pid in alive[pod.name])
    assert (outcome.message, outcome.node) == (f"rank 1 on {where} was killed, or its machine is gone", where)
    assert store.claimed() == {"pod": "head", "node": "node-of-head"}
    assert (store.document() or {})["attempt"] == 1
    assert store.sources() == ["driver", "rank-00000", "rank-00001"]
    site.wait(lambda: "last words of rank 1, and ***" in store.logs("rank-00001"), "what the killed rank said")
    site.wait(lambda: open_storage(site.bucket).exists("train/attempts/0001/spool.jsonl"), "the points to be kept")
    assert store.metrics()[-1]["metrics"]["loss"] > 0
    assert list(store.logs("driver")), "the driver's own output"
    for source in store.sources():
        assert SECRET not in "\n".join(store.logs(source))


def begun_again(site: Site) -> None:
    """Kueue admits the same RayJob again: it runs nothing, and leaves the first run's outcome alone."""
    store = site.store("train", 1)
    before, steps = store.outcome(), Ledger(open_storage(f"{site.bucket}/train/{CHECKPOINTS}")).steps()
    ended(site.start(site.root / "train-1.json"), 1, site.root / "train-1.json")
    assert store.outcome() == before
    assert "attempt 1 was begun by pod head already" in (site.root / "train-1.log").read_text()
    assert Ledger(open_storage(f"{site.bucket}/train/{CHECKPOINTS}")).steps() == steps


def preempted(site: Site, tracking: str) -> int:
    """The preStop hook of one pod: a checkpoint, and an end that is no success. Returns its step."""
    resumed = Ledger(open_storage(f"{site.bucket}/train/{CHECKPOINTS}")).steps()[-1]
    path = site.attempt("train", 2, tracking)
    driver = site.start(path)
    site.wait(lambda: site.progress.said.get("attempt") == 2 and site.progress.said["step"] > resumed, "attempt 2")
    site.workers[1].run('echo preempted > "$1"', f"{VOLUME}/train-2/attempt/stop")
    ended(driver, 1, path)  # which is not taken for success
    outcome = site.store("train", 2).outcome()
    assert outcome is not None
    assert (outcome.phase, outcome.cause) == ("stopped", "Preempted"), outcome
    assert outcome.step > resumed
    assert " before the end" in outcome.message
    assert Ledger(open_storage(f"{site.bucket}/train/{CHECKPOINTS}")).steps()[-1] == outcome.step
    head = site.progress.said["head"]
    assert (head["step"], head["attempt"]) == (outcome.step, 2), "the last report tells of the last checkpoint"
    return outcome.step


def done(site: Site, tracking: str, resumed: int) -> None:
    path = site.attempt("train", 3, tracking)
    ended(site.start(path), 0, path)
    outcome = site.store("train", 3).outcome()
    assert outcome is not None
    assert (outcome.phase, outcome.step) == ("succeeded", 200)
    output = read_output(open_storage(f"{site.bucket}/train"))
    assert output is not None
    assert output.attempt == 3
    first = min(point["step"] for point in site.store("train", 3).metrics())
    assert resumed < first <= resumed + 2
    assert site.progress.said["step"] == 200
    assert site.progress.said["runId"]


def every_point_once(site: Site, tracking: str) -> None:
    """In MLflow: of three attempts on new disks, the first of which ran while it was down."""
    from dinoctl.tracking.client import connect

    run = run_key("vision", "train", "a-life").ensure(tracking)
    assert run == site.progress.said["runId"]
    assert ship_kept(tracking, run, open_storage(f"{site.bucket}/train"), 1, 3).complete
    client = connect(tracking)
    steps = Counter(metric.step for metric in client.get_metric_history(run, "loss"))
    assert set(steps.values()) == {1}, "no point twice"
    assert {1, 200} <= set(steps)
    assert set(range(2, 201, 2)) <= set(steps), sorted(set(range(2, 201, 2)) - set(steps))
