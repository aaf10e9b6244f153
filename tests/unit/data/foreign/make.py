"""Makes the sets of this folder with the libraries themselves: mosaicml-streaming 0.13.0 and litdata 0.2.76.

    python make.py

Needs both packages without their dependencies, and catalogue, tqdm, brotli, python-snappy, cramjam, zstd, xxhash,
obstore, lightning-utilities, numpy, pillow, torch, pyarrow.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from litdata.streaming.writer import BinaryWriter
from PIL import Image
from streaming.base.format.mds.writer import MDSWriter

COUNT = 5


def jpeg(number: int) -> bytes:
    pixels = np.full((12 + number, 16, 3), number * 20, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=20)
    return buffer.getvalue()


def mds(root: Path, **settings: object) -> None:
    columns = {"image": "jpeg", "label": "int", "caption": "str"}
    with MDSWriter(columns=columns, out=str(root), size_limit=2500, **settings) as out:
        for number in range(COUNT):
            out.write({"image": jpeg(number), "label": number % 3, "caption": f"number {number}"})


def litdata(root: Path, *, opened: bool, **settings: object) -> None:
    """Opened images are written as leaves, bytes in a dictionary as Arrow data."""
    root.mkdir(parents=True)
    writer = BinaryWriter(str(root), chunk_size=3, **settings)
    with tempfile.TemporaryDirectory() as files:
        for number in range(COUNT):
            path = Path(files) / f"{number}.jpg"
            path.write_bytes(jpeg(number))
            image = Image.open(path) if opened else jpeg(number)
            writer[number] = {"caption": f"number {number}", "image": image, "label": number % 3}
        writer.done()
        writer.merge()


if __name__ == "__main__":
    here = Path(__file__).parent
    for name in ("mds", "mds-zstd", "litdata-arrow", "litdata-leaves", "litdata-zstd"):
        shutil.rmtree(here / name, ignore_errors=True)
    mds(here / "mds")
    mds(here / "mds-zstd", compression="zstd")
    litdata(here / "litdata-arrow", opened=False)
    litdata(here / "litdata-leaves", opened=True)
    litdata(here / "litdata-zstd", opened=True, compression="zstd")
    sys.stdout.write(f"made with {COUNT} samples each\n")
