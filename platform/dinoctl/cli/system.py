"""``doctor``: whether this machine can run jobs, and what to do where it can't."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from dinoctl.cli.options import STATE_DEFAULT, Format, Output, State

_TRAIN = ("torch", "ray", "deepspeed", "mlflow", "boto3", "pyarrow", "safetensors", "PIL", "sklearn", "matplotlib")
_DISK_GB, _MEMORY_GB = 5, 4


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(doctor)


@dataclass(frozen=True)
class Finding:
    """One check. ``fix`` is empty when all is well."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def doctor(
    state_dir: State = STATE_DEFAULT,
    output: Output = Format.TABLE,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Verify this packed or indexed dataset instead.", metavar="URI")
    ] = None,
    shards: Annotated[bool, typer.Option("--shards", help="Of the dataset: read all shards too.")] = False,
) -> None:
    """Check this machine: packages, disk, memory, shared memory, ports, accelerators, storage credentials."""
    if shards and dataset is None:
        from dinoctl.spec.errors import UserError

        raise UserError("--shards needs --dataset: say whose shards to read")
    if dataset is not None:
        from dinoctl.cli.bar import counted
        from dinoctl.data.verify import verify

        with counted("reading", "bytes") as progress:
            findings = [Finding("dataset", True, verify(dataset, shards=shards, progress=progress))]
    else:
        findings = [check(state_dir) for check in _CHECKS]
    if output is Format.JSON:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = typer.style("ok", fg="green") if finding.ok else typer.style("!!", fg="red")
            typer.echo(f"{mark}  {finding.name:<14} {finding.found}")
            if not finding.ok:
                typer.echo(f"    {'':<14} → {finding.fix}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(3)


def _python(_: Path) -> Finding:
    version = sys.version.split()[0]
    return Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _packages(_: Path) -> Finding:
    missing = [name for name in _TRAIN if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("packages", False, f"missing: {', '.join(missing)}", "pip install 'dinoctl[train]'")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "deepspeed", "mlflow"))
    return Finding("packages", True, versions)


def _disk(state: Path) -> Finding:
    place = next(parent for parent in [state.absolute(), *state.absolute().parents] if parent.exists())
    free = shutil.disk_usage(place).free / 1e9
    return Finding("disk", free > _DISK_GB, f"{free:.0f} GB free at {place}", "free space, or give --state-dir")


def _writable(state: Path) -> Finding:
    place = next(parent for parent in [state.absolute(), *state.absolute().parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding("state", True, f"{state} can be written")
    except OSError as error:
        return Finding("state", False, f"{place}: {error.strerror}", "give --state-dir a directory that you own")


def _memory(_: Path) -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    found = f"{free:.0f} GB available, {os.cpu_count()} cores"
    return Finding("memory", free > _MEMORY_GB, found, f"close other programs; {_MEMORY_GB} GB are needed")


def _shared_memory(_: Path) -> Finding:
    place = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    free = shutil.disk_usage(place).free / 1e9 if place.exists() else 0.0
    return Finding("shared memory", free > 0.25, f"{free:.1f} GB at {place}", "mount /dev/shm with at least 1 GB")


def _ports(_: Path) -> Finding:
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return Finding("ports", True, "loopback ports can be opened")
    except OSError as error:
        return Finding("ports", False, f"{error.strerror}", "allow connections on 127.0.0.1")


def _accelerators(_: Path) -> Finding:
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return Finding("accelerators", True, f"{count} GPUs" if count else "no GPU: use gpusPerWorker: 0")


def _kernels(_: Path) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("cpu kernels", True, "torch is not installed")
    ask = "from dinoctl.model.native.build import why_not; print(why_not() or '')"  # in a child: it imports torch
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603 - our own code
    reason = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    told = f"none, steps on CPUs are about a fifth slower: {reason[-1]}" if reason else "compiled here"
    return Finding("cpu kernels", True, told)


def _credentials(_: Path) -> Finding:
    if importlib.util.find_spec("botocore") is None:
        return Finding("s3", True, "boto3 is not installed")
    from botocore.session import Session

    found = Session().get_credentials()
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "the default endpoint")
    return Finding("s3", True, f"credentials by {found.method}, {endpoint}" if found else "no credentials: local only")


_CHECKS: tuple[Callable[[Path], Finding], ...] = (
    _python,
    _packages,
    _disk,
    _writable,
    _memory,
    _shared_memory,
    _ports,
    _accelerators,
    _kernels,
    _credentials,
)
