"""Builds the programs of the test clusters from the Go module proxy: ``python -m support.kube.build [NAME...]``.

Needs nothing but Go and the standard library, so CI can start it before the environment is there. Any number of
processes may build at once: each program has a lock, and appears in the cache whole or not at all.
"""

import argparse
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from support import s3server
from support.kube.tools import TOOLS, Tool, cache

_LIMIT_S = 3600


class BuildFailed(Exception):
    """A program can't be built here."""


def build(names: Iterable[str] = tuple(TOOLS)) -> None:
    """Builds what is not in the cache."""
    for name in names:
        _build_once(TOOLS[name])


def _build_once(tool: Tool) -> None:
    if tool.built:
        return
    if shutil.which("go") is None:
        raise BuildFailed(f"{tool.name} is built with Go 1.26 or newer: install it (https://go.dev/dl)")
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{tool.home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tool.built:  # by whoever held the lock
            return
        started, cpu = time.monotonic(), _cpu_s()
        print(f"{tool.name} {tool.version}: building", flush=True)
        partial = tool.home.with_name(f"{tool.home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (_compile if tool.package else _copy)(tool, partial)
        partial.rename(tool.home)
        spent = f"{time.monotonic() - started:.0f} s, {_cpu_s() - cpu:.0f} s of CPU time"
        print(f"{tool.name} {tool.version}: built in {spent}", flush=True)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _compile(tool: Tool, target: Path) -> None:
    # Without -pgo=off the profile that Kubernetes ships would have every dependency compiled anew for each program.
    _go(tool, "build", "-trimpath", "-pgo=off", f"-ldflags={tool.linker}", "-o", str(target / tool.name), tool.package)


def _copy(tool: Tool, target: Path) -> None:
    _go(tool, "mod", "download", tool.module)
    source = Path(_go(tool, "list", "-m", "-f", "{{.Dir}}", tool.module).strip())
    for there, here in tool.files:
        shutil.copytree(source / there, target / here, copy_function=shutil.copyfile)
        (target / here).chmod(0o755)  # folders of the module cache are read-only


def _go(tool: Tool, *arguments: str) -> str:
    environment = {"CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(
        ["go", *arguments],
        cwd=tool.source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    if done.returncode:
        raise BuildFailed(f"{tool.name} {tool.version}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m support.kube.build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(TOOLS)} (default: all)")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(TOOLS)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(TOOLS)}")
    try:
        build(names or TOOLS)
        if not names:
            s3server.binary()
    except (BuildFailed, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"all there: {cache()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
