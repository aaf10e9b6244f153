"""Driving the real ``dinoctl`` in a process of its own, and killing parts of it."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dinoctl.data.pack import pack

PACK = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: pack}
spec: {pack: {source: "builtin://digits", splits: {val: 500}, shardSize: 1MiB}}
"""

TRAIN = """
---
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {name: train}
spec:
  compute: {workers: 2, gpusPerWorker: 0, loaderWorkers: 0, precision: fp32}
  pretrain:
    data: {source: {job: pack}}
    model: {arch: custom, embedDim: 24, depth: 2, numHeads: 2, patchSize: 4, registers: 1, dropPath: 0.2}
    steps: 60
    globalBatch: 16
    crops: {global: {size: 16}, local: {count: 2, size: 8}}
    heads: {dino: {prototypes: 32, hidden: 32, bottleneck: 16}, ibot: {prototypes: 32, hidden: 32, bottleneck: 16}}
    schedules: {learningRate: {base: 1.0e-3, scaling: none, warmupSteps: 10}}
    logEvery: 2
  policy: {checkpoint: {everySteps: 5, keep: 2}}
"""


def trained_on(folder: Path, text: str = TRAIN) -> str:
    """``text`` on what `PACK` would pack, packed in ``folder`` now: for tests that are not about packing."""
    if not folder.exists():
        pack("builtin://digits", folder, splits={"val": 500}, shard_bytes=2**20)
    return text.replace("{job: pack}", str(folder))


@dataclass
class Runs:
    """One YAML file, one state directory, and any number of ``dinoctl run`` processes one after the other."""

    root: Path
    text: str
    limit_s: float = 420.0
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    output: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.write(self.text)

    @property
    def file(self) -> Path:
        return self.root / "jobs.yaml"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        command = [*DINOCTL, "run", str(self.file), "--state-dir", str(self.state), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.root, **popen
        )
        return self.process

    def finish(self) -> tuple[int, str]:
        """Exit code and output of the process that was started."""
        assert self.process is not None
        try:
            output, _ = self.process.communicate(timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
            raise AssertionError(f"dinoctl run took over {self.limit_s} s:\n{output}\n{self.log('train')}") from None
        return self.process.returncode, output

    def run(self, *arguments: str, **popen: Any) -> tuple[int, str]:
        self.start(*arguments, **popen)
        return self.finish()

    def call(self, *arguments: str) -> tuple[int, str]:
        """Another command on the same state directory."""
        done = subprocess.run(
            [*DINOCTL, *arguments, "--state-dir", str(self.state)], capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr

    def status(self, job: str) -> dict[str, Any]:
        path = self.state / "jobs" / job / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def story(self, job: str) -> str:
        """How each attempt ended, and the end of what it said: for a test's complaint."""
        lines = []
        for attempt in self.status(job).get("attempts", []):
            lines.append(" ".join(f"{key}={value}" for key, value in attempt.items() if key != "specHash"))
            log = self.state / "jobs" / job / "attempts" / f"{attempt['number']:04d}" / "worker.log"
            lines.append(log.read_text(errors="replace")[-1500:] if log.exists() else f"no {log}")
        return "\n".join(lines)

    def attempts(self, job: str) -> list[Path]:
        return sorted((self.state / "jobs" / job / "attempts").glob("*"))

    def step(self, job: str) -> int:
        """Step of the newest attempt, -1 before its first report."""
        attempts = self.attempts(job)
        path = attempts[-1] / "progress.json" if attempts else None
        try:
            return int(json.loads(path.read_text())["step"]) if path else -1
        except FileNotFoundError:
            return -1

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {self.limit_s} s for {what}\n{self.log('train')}")
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"dinoctl run ended while waiting for {what}: {self.process.communicate()[0]}")
            time.sleep(0.02)

    def log(self, job: str) -> str:
        attempts = self.attempts(job)
        path = attempts[-1] / "worker.log" if attempts else None
        return path.read_text(errors="replace")[-4000:] if path and path.exists() else ""

    def worker(self, job: str) -> psutil.Process:
        """The worker (driver) process of the newest attempt."""
        claim = json.loads((self.attempts(job)[-1] / "claim.json").read_text())
        return psutil.Process(claim["pid"])

    def ranks(self, job: str) -> list[psutil.Process]:
        """The training processes of the newest attempt."""
        children = self.worker(job).children(recursive=True)
        return [p for p in children if "RayTrainWorker" in " ".join(p.cmdline()) or "RayTrainWorker" in p.name()]

    def export_hash(self, job: str) -> str:
        """sha256 over the exported weights."""
        export = next((self.state / "jobs" / job).glob("run-*/export"))
        files = sorted(export.glob("*.safetensors"))
        return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()

    def close(self) -> None:
        """Ends what a failed test has left."""
        for attempt in (self.state / "jobs").glob("*/attempts/*/claim.json"):
            claim = json.loads(attempt.read_text())
            if psutil.pid_exists(claim["pid"]):
                process = psutil.Process(claim["pid"])
                if abs(process.create_time() - claim["created"]) < 1:
                    for member in [*process.children(recursive=True), process]:
                        member.kill()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


DINOCTL = [sys.executable, "-c", "from dinoctl.cli.main import main; main()"]
