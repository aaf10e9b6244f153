"""The golden vectors of `tests/golden`: outputs of the official DINOv2 code on weights and inputs made by rule.

case["name"] ...                what a case is: an entry of cases.json
inputs.vit(case)                its inputs; inputs.weights_of(case) its weights, numpy arrays by official name
expected(case["kind"], name)    its outputs
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dinoctl.model import ViTConfig

FOLDER = Path(__file__).resolve().parent.parent / "golden"
Case = dict[str, Any]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


weights = _load("weights")
# `inputs` imports `weights` by its plain name, too general a one to leave in sys.modules.
sys.modules["weights"] = weights
inputs = _load("inputs")
del sys.modules["weights"]


@functools.cache
def _all_cases() -> tuple[Case, ...]:
    return tuple(json.loads((FOLDER / "cases.json").read_text()))


@functools.cache
def _outputs(kind: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{kind}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def cases(kind: str) -> list[Case]:
    """The cases of a kind, for `pytest.mark.parametrize("case", cases(kind), ids=name_of)`."""
    return [case for case in _all_cases() if case["kind"] == kind]


def name_of(case: Case) -> str:
    """The test id of a case."""
    return str(case["name"])


def expected(kind: str, name: str) -> dict[str, NDArray[Any]]:
    """The official outputs of one case by output name (which may contain slashes)."""
    return {key[len(name) + 1 :]: value for key, value in _outputs(kind).items() if key.startswith(f"{name}/")}


def tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Numpy arrays by name to torch tensors by name."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def vit_config(net: dict[str, Any]) -> ViTConfig:
    """The ViTConfig of a case's `net` settings."""
    return ViTConfig(
        embed_dim=net["embed_dim"],
        depth=net["depth"],
        num_heads=net["num_heads"],
        patch_size=net["patch_size"],
        img_size=net["img_size"],
        ffn="swiglu" if net["ffn_layer"].startswith("swiglu") else "mlp",
        registers=net["num_register_tokens"],
        layerscale=1e-5 if net["layerscale"] else None,
        interpolate_antialias=net["interpolate_antialias"],
        interpolate_offset=net["interpolate_offset"],
    )


def assert_close(actual: ArrayLike | torch.Tensor, wanted: ArrayLike, what: str = "", tolerance: float = 1e-4) -> None:
    """max|a - b| <= tolerance * max|b|, and equal shapes."""
    a = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual, dtype=np.float64)
    b = np.asarray(wanted, dtype=np.float64)
    assert a.shape == b.shape, f"{what}: shape {a.shape} instead of {b.shape}"
    error, limit = (np.abs(a - b).max(), tolerance * np.abs(b).max()) if b.size else (0.0, 0.0)
    assert error <= limit, f"{what}: off by {error:.3g}, allowed {limit:.3g}"
