"""Streaming of images from a bucket, beside MosaicML Streaming, LitData and WebDataset on the same JPEGs and server.

    streaming.py --samples 12000 --rounds 5 --modes bytes decode --latency 30 --rate 90e6

Contestants take turns in every round; each run is a process of its own, pinned to one core, with a cold cache, the
server on the other. Needs Go, taskset and the packages of requirements-streaming.txt (`make benchmark-streaming`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent  # not on the path: streaming.py here is not the package of that name
sys.path[:] = [str(HERE.parent), str(HERE.parents[1] / "platform"), *(p for p in sys.path if Path(p).resolve() != HERE)]

import psutil

from benchmarks.stream_data import Origin, origin, prepare

SETTINGS: dict[str, dict[str, Any]] = {
    "dinoctl": {},
    "litdata": {"workers": 1, "max_pre_download": 8},
    "mosaic": {"workers": 1, "predownload": 4096},
    "webdataset": {"workers": 1, "buffer": 1000},
}
"""LitData's and MosaicML's best of those tried; WebDataset is faster with 4 workers and takes more memory
(docs/benchmarks.md). Others by ``--only NAME --settings JSON``.
"""


_PATIENCE_S = 240.0


def tree_pss(pid: int) -> int:
    """Proportional set size of a process and its descendants, bytes."""
    total = 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in family:
        try:
            text = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    return total


def run(
    name: str, mode: str, server: Origin, start: float, settings: dict[str, Any], shards: list[str]
) -> dict[str, Any]:
    scratch = Path(tempfile.mkdtemp(prefix="stream-"))
    log = (scratch / "log").open("w+")
    core = ["taskset", "-c", str((os.cpu_count() or 1) - 1)]
    program = [sys.executable, str(Path(__file__).with_name("stream_contestants.py"))]
    environment = {
        **server.environment,
        "BENCH_SHARDS": json.dumps(shards),
        "DINOCTL_CACHE_DIR": str(scratch / "index"),
    }
    server.stats()
    try:
        process = subprocess.Popen(
            [*core, *program, name, mode, str(scratch), str(start), json.dumps(settings)],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # all is imported
        idle, until = tree_pss(process.pid), time.monotonic() + _PATIENCE_S
        peak = idle
        while process.poll() is None and time.monotonic() < until:
            peak = max(peak, tree_pss(process.pid))
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers and download processes too
        output, _ = process.communicate()
        log.seek(0)
        errors = log.read()
        log.close()
        disk = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{name} failed: {errors[-2000:]}")
    result: dict[str, Any] = {
        **json.loads(lines[-1]),
        **server.stats(),
        "pss": peak,
        "added": peak - idle,
        "disk": disk,
        "load": os.getloadavg()[0],
    }
    if "--verbose" in sys.argv:
        print(name, mode, settings, {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()})
        print("   ", errors[-300:].strip())
    return result


def table(results: dict[str, list[dict[str, Any]]], mean: int) -> None:
    columns = ["contestant", "steady img/s (range)", "with start", "first batch s", "CPU s / 1,000"]
    columns += ["memory added MB (peak in all)", "disk MB", "GETs", "bytes", "load"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, runs in results.items():

        def mid(key: str, runs: list[dict[str, Any]] = runs) -> float:
            return statistics.median(one[key] for one in runs)

        speeds = [one["steady"] for one in runs]
        whole = statistics.median(one["samples"] / one["total_s"] for one in runs)
        cpu = statistics.median(1000 * one["cpu_s"] / one["samples"] for one in runs)
        print(
            f"| {name} | {mid('steady'):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | {whole:,.0f} "
            f"| {mid('first_s'):.2f} | {cpu:.2f} | {mid('added') / 1e6:.0f} ({mid('pss') / 1e6:.0f}) "
            f"| {mid('disk') / 1e6:.0f} | {mid('gets'):,.0f} | {mid('bytes') / (mid('samples') * mean):.2f}x "
            f"| {min(one['load'] for one in runs):.0f} to {max(one['load'] for one in runs):.0f} |"
        )


def resumed(results: dict[str, list[dict[str, Any]]]) -> None:
    """What a start in the middle takes until its first batch."""
    columns = ["contestant", "first batch s (range)", "CPU s", "GETs", "fetched MB", "memory added MB", "load"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, runs in results.items():
        firsts, cpu, gets, fetched, added = (
            [one[key] for one in runs] for key in ("first_s", "cpu_s", "gets", "bytes", "added")
        )
        print(
            f"| {name} | {statistics.median(firsts):.2f} ({min(firsts):.2f} to {max(firsts):.2f}) "
            f"| {statistics.median(cpu):.2f} | {statistics.median(gets):,.0f} "
            f"| {statistics.median(fetched) / 1e6:.0f} | {statistics.median(added) / 1e6:.0f} "
            f"| {min(one['load'] for one in runs):.0f} to {max(one['load'] for one in runs):.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", default=["bytes", "decode"])
    parser.add_argument("--only", nargs="+", default=list(SETTINGS))
    parser.add_argument("--settings", default="{}", help="JSON: knobs in place of the chosen ones, for tuning")
    parser.add_argument("--latency", type=float, default=30.0, help="ms to the first byte, median")
    parser.add_argument("--rate", type=float, default=90e6, help="bytes a second of a connection")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "dinoctl-benchmark-streaming")
    parser.add_argument("--resume", action="store_true", help="first batch after a start in the middle, alone")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    mean = prepare(options.data / "data", options.samples)
    manifest = json.loads((options.data / "data" / "bench" / "dinoctl" / "dataset.json").read_text())
    shards = [shard["path"] for shard in manifest["splits"]["train"]["shards"]]
    with origin(options.data / "data", options.data, options.latency, options.rate, core=0) as server:
        for mode in options.modes:
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
            for _ in range(options.rounds):
                for name in options.only:
                    if options.resume and name == "webdataset":
                        continue  # it can't
                    settings = {**SETTINGS[name], **json.loads(options.settings)}
                    results[name].append(run(name, mode, server, 0.5 if options.resume else 0.0, settings, shards))
            print(f"\n{mode}: {options.samples} JPEGs of {mean / 1e3:.1f} KB, {options.latency:g} ms, "
                  f"{options.rate / 1e6:g} MB/s a connection, {options.rounds} rounds\n")  # fmt: skip
            if options.resume:
                resumed({name: runs for name, runs in results.items() if runs})
            else:
                table(results, mean)


if __name__ == "__main__":
    main()
