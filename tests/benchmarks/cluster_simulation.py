"""Plays KubeRay, the garbage collector and the workers for many RayJobs on an API server, as a process of its own.

Every RayJob that appears is made to run at once; its workers then report progress, each job once a period, spread
evenly. A RayJob that is to be deleted goes at once. Prints one JSON line a second: what runs, and reports a second.

    python -m benchmarks.cluster_simulation KUBECONFIG NAMESPACE PERIOD_S
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import CONFIGMAPS, RAYJOBS
from dinoctl.spec import names

STEPS = 625_000


class Simulation:
    """``running``: job to (RayJob, attempt, since)."""

    def __init__(self, kubeconfig: str, namespace: str, period_s: float) -> None:
        self.api, self.namespace, self.period_s = connect(kubeconfig=kubeconfig), namespace, period_s
        self.running: dict[str, tuple[str, int, float]] = {}
        self.lock = threading.Lock()
        self.reports = self.failed = 0
        self.starters = ThreadPoolExecutor(4)

    def follow(self) -> None:
        """KubeRay."""
        items, since = self.api.list(RAYJOBS, self.namespace)
        for body in items:
            self._seen("ADDED", body)
        while True:
            try:
                for kind, body in self.api.watch(RAYJOBS, self.namespace, since=since):
                    since = body["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        self._seen(kind, body)
            except ApiError:
                time.sleep(0.2)

    def _seen(self, kind: str, body: Object) -> None:
        meta = body["metadata"]
        job = meta["labels"][names.JOB]
        if kind == "DELETED" or "deletionTimestamp" in meta:
            with self.lock:
                if self.running.get(job, ("",))[0] == meta["name"]:
                    del self.running[job]
            if kind != "DELETED" and meta.get("finalizers"):
                self.starters.submit(self._release, meta["name"])
        elif not body.get("status"):
            self.starters.submit(self._start, job, meta["name"], int(meta["labels"][names.ATTEMPT]))

    def _release(self, name: str) -> None:
        self._try(lambda: self.api.patch(RAYJOBS, self.namespace, name, {"metadata": {"finalizers": None}}))

    def _start(self, job: str, name: str, attempt: int) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {
            "jobDeploymentStatus": "Running",
            "jobStatus": "RUNNING",
            "startTime": now,
            "jobId": name,
            "rayClusterName": name,
        }
        body = {"status": status}
        if self._try(lambda: self.api.patch(RAYJOBS, self.namespace, name, body, subresource="status")):
            with self.lock:
                self.running[job] = (name, attempt, time.time())

    def report(self, shares: int, share: int) -> None:
        """The workers of every ``shares``-th job, for ever."""
        while True:
            begin = time.monotonic()
            with self.lock:
                mine = sorted(self.running)[share::shares]
            for number, job in enumerate(mine):
                due = begin + self.period_s * number / len(mine)
                time.sleep(max(0.0, due - time.monotonic()))
                self._report(job)
            time.sleep(max(0.0, begin + self.period_s - time.monotonic()))

    def _report(self, job: str) -> None:
        with self.lock:
            name, attempt, since = self.running.get(job, ("", 0, 0.0))
        if not name:
            return
        step = int((time.time() - since) * 2)
        report: dict[str, Any] = {
            "attempt": attempt,
            "at": time.time(),
            "step": step,
            "steps": STEPS,
            "images_per_s": 6000 + random.random() * 100,
            "eta_s": (STEPS - step) / 2,
            "checkpoint_step": step // 500 * 500,
            "loss": 8.0 - step / STEPS,
            "phase": "train",
            "warning": "",
            "head": None,
            "nodes": [f"gpu-{number:04d}" for number in range(8)],
        }
        body = {"data": {"progress.json": json.dumps(report)}}
        self._try(lambda: self.api.patch(CONFIGMAPS, self.namespace, names.progress_name(job), body))
        self.reports += 1

    def _try(self, call: Any) -> bool:
        try:
            call()
        except ApiError:
            self.failed += 1
            return False
        return True


def main() -> None:
    kubeconfig, namespace, period = sys.argv[1:]
    simulation = Simulation(kubeconfig, namespace, float(period))
    threads = 8
    for share in range(threads):
        threading.Thread(target=simulation.report, args=(threads, share), daemon=True).start()
    threading.Thread(target=simulation.follow, daemon=True).start()
    before = 0
    while True:
        time.sleep(1.0)
        reports, before = simulation.reports - before, simulation.reports
        line = {"running": len(simulation.running), "reports": reports, "failed": simulation.failed}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
