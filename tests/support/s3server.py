"""A real S3 server for tests: versitygw (Apache-2.0), built once from its Go module, on loopback, over a directory.

What is built is pinned by ``versitygw/go.mod`` and ``go.sum``; the binary is kept in the user's cache. The first build
downloads the modules through the ordinary Go proxy and takes a minute or two.
"""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = Path(__file__).parent / "versitygw"
VERSION = re.search(r"versity/versitygw (v\S+)", (MODULE / "go.mod").read_text())[1]  # type: ignore[index]
REGION, ACCESS, SECRET = "us-east-1", "dinoctl-tests", "not-a-secret-of-anybody"
_BUILD_S, _START_S = 900, 60


@dataclass(frozen=True)
class S3Server:
    """A running server. ``environment`` is what a client needs to find it by the standard AWS chain."""

    url: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.url)

    def bucket(self, name: str) -> str:
        """Makes a bucket unless it exists; returns ``s3://name``."""
        from botocore.exceptions import ClientError

        try:
            self.client().create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        return f"s3://{name}"

    def client(self) -> Any:
        """A plain boto3 client: the tests' own eye, beside the code under test."""
        import boto3
        from botocore.config import Config

        session = boto3.session.Session(ACCESS, SECRET, region_name=REGION)
        return session.client("s3", endpoint_url=self.url, config=Config(s3={"addressing_style": "path"}))


def environment(url: str) -> dict[str, str]:
    """Variables of the AWS chain for a server at ``url``; nothing of the machine's own configuration is read."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def binary() -> Path:
    """The server's executable, built now if it is not in the cache. Processes that come at once build it once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinoctl" / f"versitygw-{VERSION}"
    made = cache / "versitygw"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _build(cache / "partial")
            (cache / "partial").replace(made)
    return made


def _build(target: Path) -> None:
    if shutil.which("go") is None:
        raise RuntimeError("the S3 server of the tests is built with Go 1.25 or newer: install it (https://go.dev/dl)")
    command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(target)]
    done = subprocess.run(
        [*command, "github.com/versity/versitygw/cmd/versitygw"],
        cwd=MODULE,
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
    )
    if done.returncode:
        raise RuntimeError(f"versitygw {VERSION} can't be built: {done.stderr.strip()}")


@contextmanager
def serve(directory: Path) -> Iterator[S3Server]:
    """A server over ``directory`` for the time of a ``with`` block. Metadata lie beside the objects, not in xattrs."""
    root, sidecar, log = directory / "buckets", directory / "metadata", directory / "server.log"
    for path in (root, sidecar):
        path.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [str(binary()), "--port", f"127.0.0.1:{port}", "--health", "/healthy", "--keep-alive", "--quiet"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--region", REGION, "posix", "--sidecar", str(sidecar), str(root)],
            env={**os.environ, "ROOT_ACCESS_KEY_ID": ACCESS, "ROOT_SECRET_ACCESS_KEY": SECRET},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/healthy", process, log)
        yield S3Server(f"http://127.0.0.1:{port}", root)
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"versitygw did not start: {log.read_text()}") from None
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
