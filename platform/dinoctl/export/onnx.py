"""One ONNX file: `images` (batch, 3, S, S) to `cls` (batch, D) and `patches` (batch, N, D), any batch, one image size.

Positions are folded in for that size, because ONNX has no bicubic resizing with the antialias of the original.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dinoctl.export.base import Extract, Features, Format, Model, check_classic
from dinoctl.export.fixed import FixedSize

OPSET = 18
_FILE = "model.onnx"
_ONE_FILE = 1_900_000_000
"""Bytes of weights up to which they fit in the file itself: protobuf ends at 2 GiB."""


def _write(model: Model, directory: Path, opset: int | None) -> list[str]:
    check_classic(model.config, "the ONNX export", "cls_norm")
    module, size = FixedSize(model).eval(), model.config.img_size
    apart = sum(value.nbytes for value in module.state_dict().values()) > _ONE_FILE
    with _quiet():
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, size, size),),
            directory / _FILE,
            input_names=["images"],
            output_names=["cls", "patches"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=opset or OPSET,
            external_data=apart,
            dynamo=True,
            verbose=False,
        )
    remark = f"opset {written_opset(directory)}, images of {size} x {size} px, any batch"
    return [remark, f"weights are in {_FILE}.data beside it: ONNX files end at 2 GiB"] if apart else [remark]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress, and warns of its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def written_opset(directory: Path) -> int:
    """Of the default operators of the file in `directory`."""
    import onnx

    model = onnx.load(directory / _FILE, load_external_data=False)
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _read(directory: Path) -> Extract:
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / _FILE, providers=["CPUExecutionProvider"])

    def extract(images: Tensor) -> Features:
        cls, patches = session.run(["cls", "patches"], {"images": images.numpy()})
        return torch.from_numpy(cls), torch.from_numpy(patches)

    return extract


FORMAT = Format("onnxruntime", _write, _read, lambda _: None, 'onnxruntime.InferenceSession("{path}/model.onnx")')
