"""The image of the test cluster, made without a container engine and without copying a file.

It is what ``image/Containerfile`` builds, but for its base: in place of that a view of this machine, an overlay over
its root in which everything but the system under /usr and Python is masked. The layers above are the ones that the
image's own script has made (``layers``), and settings are read from the Containerfile. containerd imports layers that
hold a marker each; view and layers are then mounted over what it has unpacked. So pods run the code under test with
no volume, and a pod that may not mount the node's folders (restricted pod security) runs too.
"""

import hashlib
import io
import json
import os
import shlex
import shutil
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.kube.shell import call

NAME = "localhost/dinoctl"
IMAGE, PAUSE = f"{NAME}:test", "localhost/pause:test"
USER = 1000
_MARKER = "layer-"
_PASSWD = f"root:x:0:0:root:/root:/bin/sh\ndinoctl:x:{USER}:{USER}:dinoctl:/tmp:/bin/sh\n"
_GROUP = f"root:x:0:\ndinoctl:x:{USER}:\n"


@dataclass(frozen=True)
class View:
    """A folder of this machine as a layer: its root is the image's, and only ``kept`` of it is seen (nothing: all)."""

    root: Path
    kept: tuple[Path, ...] = ()


def views(python: Path, layers: Iterable[Path]) -> list[View]:
    """Lowest first."""
    links = [
        path
        for path in Path("/").iterdir()
        if path.is_symlink() and path.name in ("bin", "sbin", "lib", "lib32", "lib64")
    ]
    return [View(Path("/"), (Path("/usr"), python, *links)), *map(View, layers)]


def settings(containerfile: Path) -> dict[str, Any]:
    """What a Containerfile says of the processes of its image."""
    lines = containerfile.read_text().splitlines()
    said = {word: rest for word, _, rest in (line.partition(" ") for line in lines)}
    return {
        "Env": shlex.split(said["ENV"]),
        "User": said["USER"],
        "WorkingDir": said["WORKDIR"],
        "Cmd": json.loads(said["CMD"]),
    }


def archive(target: Path, count: int, config: Mapping[str, Any]) -> None:
    """A docker archive of both images: the same ``count`` layers of a marker each, another command."""
    layers = [_layer(f"{_MARKER}{number}") for number in range(count)]
    images = {IMAGE: config, PAUSE: {"User": "65535:65535", "Cmd": ["/usr/bin/sleep", "infinity"]}}
    blobs = {f"{_digest(layer)}/layer.tar": layer for layer in layers}
    manifest = []
    for reference, one in images.items():
        content = _config(one, layers)
        blobs[f"{_digest(content)}.json"] = content
        names = [f"{_digest(layer)}/layer.tar" for layer in layers]
        manifest.append({"Config": f"{_digest(content)}.json", "RepoTags": [reference], "Layers": names})
    blobs["manifest.json"] = json.dumps(manifest).encode()
    target.write_bytes(_tar(blobs))


def _config(config: object, layers: Sequence[bytes]) -> bytes:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}" for layer in layers]},
        "history": [{"created_by": "tests"} for _ in layers],
    }
    return json.dumps(document).encode()


def _layer(marker: str) -> bytes:
    return _tar({marker: b""})


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def mount(shown: Iterable[View], containerd: Path, work: Path) -> None:
    """Mounts the views over the layers that containerd has unpacked under its root folder."""
    unpacked = containerd / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", work)  # a mask may not lie in what it masks
    for number, view in enumerate(shown):
        found = [path.parent for path in unpacked.glob(f"*/fs/{_MARKER}{number}")]
        assert len(found) == 1, f"containerd has unpacked layer {number} at {found}"
        if not view.kept:
            call("mount", "--bind", "-o", "ro", view.root, found[0])
            continue
        mask = work / str(number)
        mask.mkdir()
        _hide(view.root, view.kept, mask)
        _own_files(mask)
        call("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={mask}:{view.root}", found[0])


def _hide(folder: Path, kept: Sequence[Path], mask: Path) -> None:
    """A whiteout for every entry that is not kept, nor above one; folders above are open to everybody."""
    for entry in folder.iterdir():
        if entry in kept:
            _same_disk(entry, folder)
        elif any(path.is_relative_to(entry) for path in kept) and not entry.is_symlink():
            (mask / entry.name).mkdir(mode=0o755)
            _hide(entry, kept, mask / entry.name)
        else:
            os.mknod(mask / entry.name, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def _same_disk(entry: Path, folder: Path) -> None:
    if entry.lstat().st_dev != folder.lstat().st_dev:
        raise RuntimeError(f"{entry} is on a file system of its own: an overlay does not see into it")


def _own_files(mask: Path) -> None:
    """What an image needs beside the system's programs, in place of this machine's."""
    for name, mode in {
        "tmp": 0o1777,
        "etc": 0o755,
        "proc": 0o755,
        "sys": 0o755,
        "dev": 0o755,
        "run": 0o755,
        "var": 0o755,
    }.items():
        _empty(mask / name, mode)
    (mask / "var/tmp").mkdir()
    (mask / "var/tmp").chmod(0o1777)
    for name, text in {"passwd": _PASSWD, "group": _GROUP, "nsswitch.conf": "hosts: files dns\n"}.items():
        (mask / "etc" / name).write_text(text)
    shutil.copy("/etc/ld.so.cache", mask / "etc")
    if Path("/etc/alternatives").is_dir():
        shutil.copytree("/etc/alternatives", mask / "etc/alternatives", symlinks=True)


def _empty(folder: Path, mode: int) -> None:
    """A folder that shows nothing of the one below it."""
    if folder.is_char_device():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    os.setxattr(folder, "trusted.overlay.opaque", b"y")
