"""The operator with many jobs on a real etcd and kube-apiserver: memory, time from event to action, requests.

    cluster_scale.py --jobs 10000 --running 1000 --seconds 180 --period 15

``running`` jobs train (``cluster_simulation`` plays KubeRay and the workers), the others wait for one of them as their
parent. When each has been looked at, for ``seconds``: the operator's memory and CPU; its requests, from its own
metrics; and probes from outside, each of a running job: suspended until its RayJob is being deleted, resumed until
there is a new one; and a new job until it has a RayJob, once created by a request, once by a process `dinoctl submit`
whose own start counts. Needs `make kube-tools`.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "platform")]

import psutil

from benchmarks.figures import percentile, quantiles, scrape
from dinoctl.cluster.api import HttpApi
from dinoctl.cluster.connect import connect
from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import DINOJOBS, NAMESPACES, RAYJOBS
from dinoctl.spec import names
from support.kube.apiserver import api_server
from support.kube.processes import free_port

SPACE = "scale"
ENTRY = "from dinoctl.cli.main import main; main()"
PATH = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}


def document(name: str, parent: str | None = None) -> Object:
    data, model = {"source": "s3://datasets/lvd-142m/"}, {"arch": "vit_large"}
    stage: Object = {"pretrain": {"data": data, "model": model, "steps": 625_000, "globalBatch": 3072}}
    if parent is not None:
        stage = {"highres": {"from": {"job": parent}, "data": data, "model": model}}
    gate = {"min": 0.8, "dataset": "s3://datasets/imagenet1k/", "promote": {"model": "vision"}}
    compute = {"workers": 64, "gpusPerWorker": 1}
    spec = {"compute": compute, **stage, "gate": gate, "policy": {"deadline": "30d"}}
    return {"apiVersion": DINOJOBS.api_version, "kind": "DinoJob", "metadata": {"name": name}, "spec": spec}


class Seen:
    """RayJobs as an onlooker sees them: when one of a job appeared, and when it was to go."""

    def __init__(self, api: HttpApi) -> None:
        self.api = api
        self.count = 0
        self.waiting: dict[tuple[str, str], queue.Queue[float]] = defaultdict(queue.Queue)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        since = self.api.list(RAYJOBS, SPACE)[1]
        told: set[tuple[str, str]] = set()
        while True:
            try:
                for kind, body in self.api.watch(RAYJOBS, SPACE, since=since):
                    now, meta = time.monotonic(), body["metadata"]
                    since = meta["resourceVersion"]
                    if kind == "BOOKMARK":
                        continue
                    going = kind == "DELETED" or "deletionTimestamp" in meta
                    word = "gone" if going else "made"
                    if (meta["uid"], word) in told:
                        continue
                    told.add((meta["uid"], word))
                    self.count += 1 if word == "made" else -1
                    self.waiting[(meta["labels"][names.JOB], word)].put(now)
            except ApiError:
                time.sleep(0.1)

    def wait(self, job: str, word: str) -> float:
        return self.waiting[(job, word)].get(timeout=120)


@contextmanager
def process(name: str, log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        running = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, env=PATH)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(60)


def until(what: str, true: Any, limit_s: float = 1800.0) -> float:
    begin = time.monotonic()
    told = begin
    while not true():
        if time.monotonic() - begin > limit_s:
            raise TimeoutError(what)
        if time.monotonic() - told > 15:
            told = time.monotonic()
            say(f"waiting: {what}")
        time.sleep(0.5)
    return time.monotonic() - begin


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def fill(api: HttpApi, jobs: int, running: int) -> float:
    begin = time.monotonic()
    bodies = [document(f"run-{number:05d}") for number in range(running)]
    bodies += [document(f"wait-{number:05d}", f"run-{number % running:05d}") for number in range(jobs - running)]
    with ThreadPoolExecutor(8) as pool:
        for done in pool.map(lambda body: api.create(DINOJOBS, SPACE, body), bodies):
            assert done["metadata"]["uid"]
    return time.monotonic() - begin


def probe(
    api: HttpApi, seen: Seen, running: int, seconds: float, environment: dict[str, str], times: dict[str, list[float]]
) -> None:
    """One after the other; each waits for the last one's end. Time begins when the request is sent."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        job, number = f"run-{random.randrange(running):05d}", number + 1
        for suspend, word, name in ((True, "gone", "suspend"), (False, "made", "resume")):
            seen.waiting[(job, word)] = queue.Queue()
            begin = time.monotonic()
            api.patch(DINOJOBS, SPACE, job, {"spec": {"suspend": suspend}})
            times[name].append(seen.wait(job, word) - begin)
            time.sleep(0.5)
        begin, name = time.monotonic(), f"new-{number:05d}"
        api.create(DINOJOBS, SPACE, document(name))
        times["create"].append(seen.wait(name, "made") - begin)
        time.sleep(0.5)
        times["submit"].append(submit(seen, f"sent-{number:05d}", environment))
        time.sleep(0.5)


def submit(seen: Seen, name: str, environment: dict[str, str]) -> float:
    """From the start of the command to the RayJob."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(document(name), file)
        file.flush()
        command = [sys.executable, "-c", ENTRY, "submit", file.name, "-n", SPACE]
        begin = time.monotonic()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return seen.wait(name, "made") - begin


def measure(
    api: HttpApi, seen: Seen, port: int, operator: psutil.Process, options: argparse.Namespace
) -> dict[str, Any]:
    times: dict[str, list[float]] = defaultdict(list)
    before, used, begin = scrape(port), sum(operator.cpu_times()[:2]), time.monotonic()
    prober = threading.Thread(
        target=probe, args=(api, seen, options.running, options.seconds, options.environment, times)
    )
    prober.start()
    memory = []
    while prober.is_alive():
        memory.append(operator.memory_info().rss)
        prober.join(1.0)
    after, spent = scrape(port), time.monotonic() - begin
    requests: dict[str, float] = defaultdict(float)
    for key, value in after.items():
        if key.startswith("dinoctl_api_requests_total"):
            verb, resource = (re.search(f'{label}="([^"]*)"', key)[1] for label in ("verb", "resource"))  # type: ignore[index]
            requests[f"{verb} {resource}"] += value - before.get(key, 0.0)
    latency = "dinoctl_event_to_action_seconds"
    minutes = spent / 60
    return {
        "seconds": round(spent),
        "memory_mb": round(max(memory) / 1e6),
        "cpu_cores": round((sum(operator.cpu_times()[:2]) - used) / spent, 2),
        "looks_per_s": round(
            (after["dinoctl_reconcile_seconds_count"] - before["dinoctl_reconcile_seconds_count"]) / spent, 1
        ),
        "event_to_action_p50_below_s": percentile(before, after, latency, 0.5),
        "event_to_action_p99_below_s": percentile(before, after, latency, 0.99),
        "requests_per_job_minute": round(sum(requests.values()) / minutes / options.jobs, 4),
        "requests_per_running_job_minute": round(sum(requests.values()) / minutes / options.running, 3),
        "requests": {key: round(value) for key, value in sorted(requests.items()) if value},
        "suspend_to_deletion_s": quantiles(times["suspend"]),
        "resume_to_rayjob_s": quantiles(times["resume"]),
        "created_to_rayjob_s": quantiles(times["create"]),
        "dinoctl_submit_to_rayjob_s": quantiles(times["submit"]),
    }


def last_line(log: Path) -> dict[str, Any]:
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def run(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    config = directory / "operator.yaml"
    profile = {"image": "localhost/none:1", "allowTags": True, "storage": f"file://{directory}/storage"}
    profile["trackingUri"] = "http://127.0.0.1:9"
    config.write_text(json.dumps({"profiles": {"p": profile}, "defaultProfile": "p", "namespaces": [SPACE]}))
    port = free_port()
    with api_server(directory / "api", crds=[ROOT / "manifests" / "crd.yaml"]) as server:
        api = connect(kubeconfig=server.kubeconfig, manager="benchmark")
        api.create(NAMESPACES, None, {"metadata": {"name": SPACE}})
        say(f"creating {options.jobs} jobs")
        filled = fill(api, options.jobs, options.running)
        say(f"created in {filled:.0f} s")
        seen, kubeconfig = Seen(api), str(server.kubeconfig)
        options.environment = {**PATH, "KUBECONFIG": kubeconfig}
        simulation = ("-m", "benchmarks.cluster_simulation", kubeconfig, SPACE, str(options.period))
        ports = ["--metrics-port", str(port), "--health-port", str(port)]
        command = [
            "-c",
            ENTRY,
            "operator",
            "--config",
            str(config),
            "--namespace",
            SPACE,
            "--kubeconfig",
            kubeconfig,
            *ports,
        ]
        logs = directory / "simulation.log", directory / "operator.log"
        with process("simulation", logs[0], *simulation), process("operator", logs[1], *command) as operator:
            started = until("RayJobs", lambda: seen.count >= options.running)
            say(f"{options.running} RayJobs after {started:.0f} s")
            until("they run", lambda: last_line(logs[0]).get("running", 0) >= options.running)
            swept = started + until("the queue is empty", lambda: scrape(port)["dinoctl_queue_depth"] < 10)
            time.sleep(options.settle)
            say("measuring")
            result = measure(api, seen, port, psutil.Process(operator.pid), options)
            lines = [json.loads(line) for line in logs[0].read_text().splitlines()[-options.seconds :]]
            reports = sum(line["reports"] for line in lines) / len(lines)
            return (
                {"jobs": options.jobs, "running": options.running, "all_started_s": round(started)}
                | {"all_looked_at_s": round(swept)}
                | result
                | {"reports_per_s": round(reports, 1), "load": [round(value, 1) for value in psutil.getloadavg()]}
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--running", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=180, help="of measurement")
    parser.add_argument("--settle", type=int, default=30, help="seconds between the start of all jobs and measurement")
    parser.add_argument("--period", type=float, default=15.0, help="seconds between two reports of a job")
    parser.add_argument("--keep", type=Path, help="directory for logs and data")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no servers behind
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(options, options.keep.resolve()), indent=1))
        return
    with tempfile.TemporaryDirectory(prefix="dinoctl-scale-") as directory:
        print(json.dumps(run(options, Path(directory)), indent=1))


if __name__ == "__main__":
    main()
