"""Containerfiles built for real, without a registry and without a daemon: buildah, in a folder of its own, as root.

The base is made of packages of this machine's own Debian, from its own mirror. Storage is the folder of
``with builder(folder) as made:``, and ends with the block.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("buildah", "mmdebstrap")
BASE = "localhost/base"
_LIMIT_S = 1800
_INSIDE = """
set -e
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot --userspec="$user" --groups="${user##*:}" "$root" "$@"
"""


def obstacles() -> list[str]:
    """Why nothing can be built here."""
    found = [] if os.geteuid() == 0 else ["needs root"]
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    return found + ([f"apt-get install {' '.join(missing)}"] if missing else [])


@dataclass(frozen=True)
class Image:
    """A built image, mounted."""

    root: Path
    config: Mapping[str, Any]
    """As the image format names it: Env, User, WorkingDir, Cmd."""

    def run(self, *command: str, given: str = "", limit_s: float = 300) -> "subprocess.CompletedProcess[str]":
        """Runs a command as a restricted pod would: as the image's user, on a read-only root, with a ``/tmp``."""
        inside = ["env", "-i", "-C", self.config["WorkingDir"], *self.config["Env"], *command]
        words = ["unshare", "--mount", "sh", "-c", _INSIDE, "sh", str(self.root), self.config["User"], *inside]
        return subprocess.run(words, input=given, capture_output=True, text=True, timeout=limit_s)


class Builder:
    """buildah with all of its state in one folder, and what this machine's pip knows of the world."""

    def __init__(self, folder: Path) -> None:
        self._storage = ("--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "overlay")
        self._machine = folder / "machine"

    def __call__(self, command: str, *words: str | Path) -> str:
        return _call("buildah", *self._storage, command, *words)

    def base(self, *packages: str) -> None:
        """A small Debian with some packages."""
        archive = self._machine.with_name("base.tar")
        mirror, release = _debian()
        include = f"--include={','.join(packages)}"
        _call("mmdebstrap", "--variant=minbase", include, release, archive, mirror)
        container = self("from", "scratch").strip()
        self("add", "--quiet", container, archive, "/")
        self("commit", "--quiet", "--rm", container, BASE)
        archive.unlink()

    def build(self, containerfile: Path, context: Path, **arguments: str) -> Image:
        """Builds on :attr:`BASE`."""
        given = [f"--build-arg={name}={value}" for name, value in {"BASE": BASE, **arguments}.items()]
        pip = _pip(self._machine)
        machine = [f"--volume={path}:{place}:ro" for place, path in pip.items()]
        self(
            "bud",
            "--quiet",
            "--isolation=chroot",
            *given,
            *machine,
            "--tag=localhost/made",
            f"--file={containerfile}",
            context,
        )
        container = self("from", "localhost/made").strip()
        config = json.loads(self("inspect", "--type=image", "localhost/made"))["OCIv1"]["config"]
        return Image(Path(self("mount", container).strip()), config)


@contextmanager
def builder(folder: Path) -> Iterator[Builder]:
    (folder / "machine").mkdir(parents=True)
    made = Builder(folder)
    try:
        yield made
    finally:
        made("umount", "--all")
        made("rm", "--all")
        shutil.rmtree(folder)


def _debian() -> tuple[str, str]:
    """This machine's mirror and release."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release["VERSION_CODENAME"].strip('"')
    filters = ("Created-By: Packages", "Origin: Debian", f"Codename: {codename}")
    found = _call("apt-get", "indextargets", "--format", "$(REPO_URI)", *filters).split()
    return found[0], codename


def _pip(folder: Path) -> dict[str, Path]:
    """pip's configuration on this machine, as files by their place in a container."""
    listed = _call(sys.executable, "-m", "pip", "config", "list").splitlines()
    known = {name.rpartition(".")[2]: value.strip("'") for name, _, value in (line.partition("=") for line in listed)}
    kept = {name: known[name] for name in ("index-url", "extra-index-url", "trusted-host", "timeout") if name in known}
    files = {}
    if certificates := known.get("cert"):
        kept["cert"] = "/etc/pip-certificates.crt"
        files[kept["cert"]] = Path(shutil.copy(certificates, folder / "certificates.crt"))
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items()))
    return {**files, "/etc/pip.conf": folder / "pip.conf"}


def _call(*words: str | Path) -> str:
    done = subprocess.run(list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr[-4000:] or done.stdout[-4000:]}"
    return done.stdout
