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
from dinoctl.export.verify import DifferentFeaturesError
from dinoctl.spec.errors import UserError

OPSET = 18
_FILE = "model.onnx"
_ONE_FILE = 1_900_000_000
"""Bytes of weights up to which they fit in the file itself: protobuf ends at 2 GiB."""


def check_opset(opset: int) -> None:
    """Raises UserError for an opset below the one that the exporter writes, or above those that onnx knows."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise UserError(f"--opset {opset}: the ONNX export writes opsets {OPSET} to {newest}")


def _write(model: Model, directory: Path, opset: int | None) -> list[str]:
    check_classic(model.config, "the ONNX export", "cls_norm")
    module, size, opset = FixedSize(model).eval(), model.config.img_size, OPSET if opset is None else opset
    apart = sum(value.nbytes for value in module.state_dict().values()) > _ONE_FILE
    with _quiet():
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, size, size),),
            directory / _FILE,
            input_names=["images"],
            output_names=["cls", "patches"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=opset,
            external_data=apart,
            dynamo=True,
            verbose=False,
        )
    written = written_opset(directory)
    if written != opset:  # the exporter keeps what it has where it can't convert
        raise ValueError(f"torch {torch.__version__} writes ONNX opset {written}, not {opset}; leave --opset out")
    remark = f"opset {written}, images of {size} x {size} px, any batch"
    return [remark, f"weights are in {_FILE}.data beside it: ONNX files end at 2 GiB"] if apart else [remark]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress, and warns of its own insides."""
    limits = {"torch.onnx": logging.ERROR, "onnxscript": logging.CRITICAL}  # the latter logs what it can't convert
    before = {name: logging.getLogger(name).level for name in limits}
    for name, level in limits.items():
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def written_opset(directory: Path) -> int:
    """Of the default operators of the file in `directory`."""
    import onnx

    model = onnx.load(directory / _FILE, load_external_data=False)
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _read(directory: Path) -> Extract:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(directory / _FILE, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common parent
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DifferentFeaturesError(
            f"onnxruntime {onnxruntime.__version__} can't load opset {written_opset(directory)}, nothing was exported; "
            f"another --opset may do: {line}"
        ) from error

    def extract(images: Tensor) -> Features:
        cls, patches = session.run(["cls", "patches"], {"images": images.numpy()})
        return torch.from_numpy(cls), torch.from_numpy(patches)

    return extract


FORMAT = Format("onnxruntime", _write, _read, lambda _: None, 'onnxruntime.InferenceSession("{path}/model.onnx")')
