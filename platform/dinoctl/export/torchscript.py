"""A traced module: `torch.jit.load(...)(images)` gives cls (B, D) and patches (B, N, D), any batch, one image size.

It is read back by a fresh process that knows torch alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinoctl.export.base import Extract, Features, Format, Model, check_classic
from dinoctl.export.fixed import FixedSize
from dinoctl.export.verify import DifferentFeaturesError

_FILE = "model.pt"
_READER = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
model = torch.jit.load(sys.argv[1])
with torch.no_grad():
    cls, patches = model(load_file(sys.argv[2])["images"])
save_file({"cls": cls.contiguous(), "patches": patches.contiguous()}, sys.argv[3])
"""


@torch.no_grad()
def _write(model: Model, directory: Path, _: int | None) -> list[str]:
    check_classic(model.config, "the TorchScript export", "cls_norm")
    size = model.config.img_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated; who asks for it knows
        module = FixedSize(model).eval()
        traced = torch.jit.trace(module, torch.zeros(2, 3, size, size), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, directory / _FILE)
    return [f"images of {size} x {size} px, any batch"]


def _read(directory: Path) -> Extract:
    def extract(images: Tensor) -> Features:
        with tempfile.TemporaryDirectory(prefix="dinoctl-export-") as scratch:
            given, result = Path(scratch) / "images.safetensors", Path(scratch) / "features.safetensors"
            save_file({"images": images}, given)
            command = [sys.executable, "-c", _READER, *map(str, (directory / _FILE, given, result))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own code
            if done.returncode:
                line = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise DifferentFeaturesError(f"a fresh process could not run {_FILE}: {line}")
            features = load_file(result)
        return features["cls"], features["patches"]

    return extract


FORMAT = Format("torch.jit", _write, _read, lambda _: None, 'torch.jit.load("{path}/model.pt")')
