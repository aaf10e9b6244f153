"""The layers of the image above its base, made by the image's own script: ``python -m support.kube.layers``, as root.

``image/install.sh`` runs as in the Containerfile: step by step, into ``/opt/dinoctl``, in a mount namespace where
``/opt`` is an overlay, whose upper folder becomes the layer. Layers lie in the cache by what they are made of: a new
lock is minutes of installing, changed code is seconds. Needs nothing but the standard library.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
EXTRAS = "train,operator"
PREFIX = Path("/opt/dinoctl")
_SCRIPTS = ("image/install.sh", "image/needed.py")
_SOURCES = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE")
_PYTHON = Path(sys.base_prefix) / "bin/python3"
_AT = PREFIX.parent.relative_to("/")
_OVERLAY = f'mount -t overlay overlay -o "$1" /{_AT} && shift && exec "$@"'
_KEPT_S, _LIMIT_S = 24 * 3600, 3600


class InstallFailed(Exception):
    """The script said no."""


@dataclass(frozen=True)
class Layer:
    """What one step of the script adds to the root of the image."""

    step: str
    key: str

    @property
    def root(self) -> Path:
        return cache() / f"{self.step}-{self.key}"

    @property
    def made(self) -> bool:
        return self.root.is_dir()


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinoctl-image"


def packages() -> Layer:
    """What the lock says for the extras, on this Python."""
    wanted = subprocess.run(
        [sys.executable, *(CHECKOUT / name for name in (_SCRIPTS[1], "requirements.lock", "pyproject.toml")), EXTRAS],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return Layer("packages", _key(wanted.stdout, _content(CHECKOUT / name for name in _SCRIPTS), sys.version.encode()))


def project() -> Layer:
    """dinoctl, with the kernels for this processor."""
    sources = (path for path in (CHECKOUT / "platform").rglob("*") if path.is_file() and path.suffix != ".pyc")
    content = _content([*(CHECKOUT / name for name in _SOURCES), *sources])
    return Layer("project", _key(packages().key.encode(), content, _processor()))


def lacking() -> list[str]:
    """What takes minutes and is not there: nothing, or one line."""
    return [] if packages().made else ["the image's packages are not installed (make test-image does it)"]


def make() -> list[Path]:
    """Makes what is not in the cache. Returns the layers' roots, lowest first."""
    below: list[Path] = []
    with _alone():
        for layer in (packages(), project()):
            if not layer.made:
                _install(layer, below)
            os.utime(layer.root)
            below.append(layer.root)
        _forget(below)
    return below


def _install(layer: Layer, below: list[Path]) -> None:
    """In a folder of another name until it is whole."""
    started = time.monotonic()
    print(f"image: installing {layer.step}", file=sys.stderr, flush=True)
    partial, work = (cache() / f"{kind}-{layer.step}" for kind in ("partial", "work"))
    for folder in (partial, work):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
    (partial / _AT).mkdir(mode=0o755)
    # The machine's own folder stays to be seen: its Python may live there.
    lower = ":".join(str(root / _AT) for root in [*reversed(below), Path("/")])
    options = f"lowerdir={lower},upperdir={partial / _AT},workdir={work}"
    script = [str(CHECKOUT / _SCRIPTS[0]), str(PREFIX), EXTRAS, layer.step]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _OVERLAY, "sh", options, *script],
        env={**os.environ, "PYTHON": str(_PYTHON)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
    )
    if done.returncode:
        raise InstallFailed(f"{' '.join(script)}: {done.stdout.strip()}")
    shutil.rmtree(work)
    partial.rename(layer.root)
    print(f"image: {layer.step} installed in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _alone() -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget(used: list[Path]) -> None:
    """Layers that nobody has asked for since yesterday: no cluster that still shows them lives so long."""
    for path in cache().iterdir():
        if path.is_dir() and path not in used and path.stat().st_mtime < time.time() - _KEPT_S:
            shutil.rmtree(path)


def _content(paths: Iterable[Path]) -> bytes:
    parts = (f"{path.relative_to(CHECKOUT)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(paths))
    return "\n".join(parts).encode()


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _processor() -> bytes:
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def main() -> int:
    if os.geteuid():
        print("error: the layers are made by mounting: needs root", file=sys.stderr)
        return 3
    try:
        print(*make(), sep="\n")
    except InstallFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
