"""The same JPEGs in every contestant's format, and the server that they are read from."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 64 * 2**20
BUCKET = "bench"
_UNIQUE = 400


def prepare(root: Path, samples: int) -> int:
    """Fills ``root``/bench unless it is filled already; returns the mean bytes of an image."""
    done = root / f"ready-{samples}.json"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        bucket = root / BUCKET
        bucket.mkdir(parents=True)
        images = root / "images"
        images.mkdir()
        mean = _draw(images, samples)
        _dinoctl(images, bucket)
        _mds(images, bucket)
        _litdata(images, bucket)
        shutil.rmtree(images)
        done.write_text(json.dumps({"mean": mean}))
    return int(json.loads(done.read_text())["mean"])


def _draw(folder: Path, samples: int) -> float:
    """Pictures with a natural spectrum (1/f); a comment makes those that repeat differ."""
    unique = [_jpeg(seed) for seed in range(min(_UNIQUE, samples))]
    total = 0
    for i in range(samples):
        comment = f"sample {i}".encode()
        data = unique[i % len(unique)]
        data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        (folder / f"{i:06d}.jpg").write_bytes(data)
        total += len(data)
    return total / samples


def _jpeg(seed: int, width: int = 500, height: int = 375) -> bytes:
    generator = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    scale = 1 / np.maximum(np.hypot(fy, fx), 1 / width)
    planes = []
    for _ in range(3):
        noise = generator.normal(size=(height, width // 2 + 1)) + 1j * generator.normal(size=(height, width // 2 + 1))
        plane = np.fft.irfft2(noise * scale, s=(height, width))
        planes.append(128 + 50 * plane / plane.std())
    pixels = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=85)
    return sink.getvalue()


def _dinoctl(images: Path, bucket: Path) -> None:
    """Also what WebDataset reads: plain tars."""
    from dinoctl.data.pack import pack

    pack(str(images), bucket / "dinoctl", shard_bytes=SHARD, verify=False, workers=1)


def _mds(images: Path, bucket: Path) -> None:
    from benchmarks.stream_contestants import streaming_library

    writer = streaming_library().MDSWriter(out=str(bucket / "mds"), columns={"jpg": "bytes"}, size_limit=SHARD)
    with writer:
        for path in sorted(images.iterdir()):
            writer.write({"jpg": path.read_bytes()})


def _litdata(images: Path, bucket: Path) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(bucket / "litdata"), chunk_bytes=SHARD)
    for i, path in enumerate(sorted(images.iterdir())):
        cache._add_item(i, path.read_bytes())
    cache.done()
    cache.merge(1)


@dataclass(frozen=True)
class Origin:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def stats(self) -> dict[str, int]:
        """Requests and bytes since this was last asked."""
        with urllib.request.urlopen(f"{self.url}/-/stats", timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AWS_ENDPOINT_URL": self.url,
            "S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "OMP_NUM_THREADS": "1",
        }


@contextmanager
def origin(root: Path, scratch: Path, latency_ms: float, rate: float, core: int | None) -> Iterator[Origin]:
    """The server, built now with Go, pinned to a core."""
    source, binary = Path(__file__).parent / "origin", scratch / "origin"
    if not binary.exists():
        subprocess.run(["go", "build", "-o", str(binary), "."], cwd=source, check=True, timeout=600)
    settings = ["-root", str(root), "-latency", f"{latency_ms}ms", "-rate", str(rate)]
    pin = ["taskset", "-c", str(core)] if core is not None else []
    process = subprocess.Popen([*pin, str(binary), *settings], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Origin(f"http://127.0.0.1:{int(process.stdout.readline())}", process)
    finally:
        process.kill()
        process.wait()
