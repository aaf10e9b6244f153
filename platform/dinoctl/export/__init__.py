"""Models in the formats of other libraries, each checked by loading it there. One file a format; `run` does one export.

This module knows the formats by name, and imports nothing, so that the command line starts fast.
"""

import importlib.util
from typing import NamedTuple


class Libraries(NamedTuple):
    """The packages that writing and checking a format need."""

    write: tuple[str, ...]
    verify: tuple[str, ...]


FORMATS: dict[str, Libraries] = {
    "safetensors": Libraries((), ()),
    "hf": Libraries((), ("transformers",)),
    "timm": Libraries((), ("timm",)),
    "onnx": Libraries(("onnx", "onnxscript"), ("onnxruntime",)),
    "torchscript": Libraries((), ()),
}


def missing(to: str, *, verify: bool) -> list[str]:
    """The packages that an export needs and that are not installed."""
    needed = ("torch", "safetensors", *FORMATS[to].write, *(FORMATS[to].verify if verify else ()))
    return [name for name in needed if importlib.util.find_spec(name) is None]
