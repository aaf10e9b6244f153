"""One training step of dinoctl side by side with lightly-train's DINOv2 method, on the CPU in fp32.

    make benchmark
    python tests/benchmarks/step.py --config small --drop-path 0.3 --steps 12

The two alternate step by step in one process, with a 2048^3 matrix product before every step: it tells how fast the
machine was at that moment. Peak memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "platform")]

import torch

from benchmarks import contenders
from benchmarks.settings import CONFIGS, Settings
from benchmarks.shares import shares

GEMM = 2048
NAMES = ("dinoctl", "lightly-train")


def main() -> None:
    """Prints a table, or with --json one line of JSON."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(_memory(arguments)))
        return
    names = [name for name in NAMES if arguments.only in (None, name)]
    steps = {name: _build(name, arguments) for name in names}
    result = _times(steps, CONFIGS[arguments.config], arguments.steps)
    if arguments.profile:
        for name, step in steps.items():
            result[name]["shares"] = shares(step, 1000)
    if not arguments.no_memory:
        for name in names:
            result[name]["memory"] = _memory_elsewhere(name)
    result["settings"] = {"config": arguments.config, "drop_path": arguments.drop_path, "threads": arguments.threads}
    print(json.dumps(result) if arguments.json else _table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="small")
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=10, help="steps of each that count; one more warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=NAMES, help="one of the two alone")
    parser.add_argument("--compute", type=json.loads, default={}, help="JSON: fields of dinoctl's compute section")
    parser.add_argument("--profile", action="store_true", help="also the shares of a step")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measure out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _build(name: str, arguments: argparse.Namespace) -> contenders.Step:
    settings = CONFIGS[arguments.config]
    if name == "dinoctl":
        return contenders.dinoctl(settings, arguments.drop_path, arguments.compute)
    return contenders.lightly_train(settings, arguments.drop_path)


def _times(steps: dict[str, contenders.Step], settings: Settings, count: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    machine: dict[str, list[float]] = {name: [] for name in steps}
    losses = {name: step(0) for name, step in steps.items()}
    for number in range(1, count + 1):
        # Who goes first changes, so that neither always follows the other.
        for name in list(steps)[:: 1 if number % 2 else -1]:
            machine[name].append(_gemm())
            began = time.perf_counter()
            losses[name] = steps[name](number)
            seconds[name].append(time.perf_counter() - began)
    return {name: _summary(settings, seconds[name], machine[name], losses[name]) for name in steps} | _ratio(seconds)


def _summary(settings: Settings, seconds: list[float], machine: list[float], loss: float) -> dict[str, Any]:
    efficiency = [settings.flops() / s / m for s, m in zip(seconds, machine, strict=True)]
    return {
        "seconds": statistics.median(seconds),
        "images_per_s": settings.batch / statistics.median(seconds),
        "efficiency": statistics.median(efficiency),
        "gemm_gflops": statistics.median(machine) / 1e9,
        "all_seconds": seconds,
        "loss": loss,
    }


def _ratio(seconds: dict[str, list[float]]) -> dict[str, Any]:
    if len(seconds) < 2:
        return {}
    ours, theirs = (seconds[name] for name in NAMES)
    return {
        "speedup_of_medians": statistics.median(theirs) / statistics.median(ours),
        "median_of_paired_speedups": statistics.median(t / o for o, t in zip(ours, theirs, strict=True)),
    }


def _gemm() -> float:
    """FLOP/s of a square matrix product, the better of two."""
    a, b = torch.ones(GEMM, GEMM), torch.ones(GEMM, GEMM)
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return float(2 * GEMM**3 / best)


def _memory(arguments: argparse.Namespace) -> dict[str, float]:
    _imports(arguments.memory_of)
    baseline = _peak()
    step = _build(arguments.memory_of, arguments)
    for number in range(3):
        step(number)
    return {"baseline_gib": baseline, "peak_gib": _peak()}


def _imports(name: str) -> None:
    """All that the contender imports, so that its code counts as baseline: one step of next to nothing."""
    little = Settings(dim=16, heads=1, global_size=28, local_size=14, prototypes=8, depth=1, hidden=8, bottleneck=8)
    (contenders.dinoctl(little, 0.0, {}) if name == "dinoctl" else contenders.lightly_train(little, 0.0))(0)


def _peak() -> float:
    # Not getrusage: its maximum survives exec, so a child would start with its parent's.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


def _memory_elsewhere(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def _table(result: dict[str, Any]) -> str:
    rows = [
        "| | s/step | images/s | efficiency | GEMM GFLOP/s | peak GiB (above baseline) |",
        "|---|---|---|---|---|---|",
    ]
    names = [name for name in NAMES if name in result]
    for name in names:
        r = result[name]
        m = r.get("memory")
        memory = f"{m['peak_gib']:.2f} ({m['peak_gib'] - m['baseline_gib']:.2f})" if m else ""
        rows.append(
            f"| {name} | {r['seconds']:.3f} | {r['images_per_s']:.2f} | {r['efficiency']:.3f} "
            f"| {r['gemm_gflops']:.0f} | {memory} |"
        )
    lines = [str(result["settings"]), "", *rows]
    if "speedup_of_medians" in result:
        lines += ["", f"ratio of medians {result['speedup_of_medians']:.3f}, "]
        lines[-1] += f"median of paired ratios {result['median_of_paired_speedups']:.3f}"
    if any("shares" in result[name] for name in names):
        lines += ["", "| share of self CPU time | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for kind in result[names[0]]["shares"]:
            values = [result[name]["shares"][kind] for name in names]
            form = "{:.2f}" if kind == "seconds" else "{:.1%}"
            lines.append(f"| {kind} | " + " | ".join(form.format(value) for value in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
