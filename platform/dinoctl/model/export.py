"""An exported model: a directory that any PyTorch user can read with safetensors and json alone.

    backbone.safetensors   official DINOv2 names
    heads.safetensors      dino_head.* and ibot_head.*, so that training can go on from here
    config.json            format version, ViTConfig, head arguments, metadata

The same content always gives the same bytes. The directory appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinoctl.model.config import ViTConfig
from dinoctl.model.heads import head_arguments
from dinoctl.model.vit import VisionTransformer
from dinoctl.model.weights import HEADS, load_strict, to_official

FORMAT_VERSION = 1
BACKBONE_FILE = "backbone.safetensors"
HEADS_FILE = "heads.safetensors"
CONFIG_FILE = "config.json"


class Exported(NamedTuple):
    """A model read back: the backbone in eval mode, and heads ("dino_head", "ibot_head") as state dicts."""

    backbone: VisionTransformer
    config: ViTConfig
    heads: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]


def save_export(
    directory: Path,
    backbone: VisionTransformer | Mapping[str, Tensor],
    config: ViTConfig,
    heads: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
) -> None:
    """Writes the export to `directory`, in place of an older one there.

    `heads` holds state dicts by "dino_head" and "ibot_head" (either may be absent); `metadata` is plain JSON. Raises
    ValueError if backbone and config do not fit together, a head's name is unknown or metadata is not JSON.
    """
    state = _plain(backbone.state_dict() if isinstance(backbone, VisionTransformer) else backbone)
    unknown = sorted(set(heads) - set(HEADS))
    if unknown:
        raise ValueError(f"unknown heads {unknown}; heads are named {' and '.join(HEADS)}")
    load_strict(_on_meta(config), state, "the backbone to export")
    head_state = {f"{name}.{key}": value for name in heads for key, value in _plain(heads[name]).items()}
    text = _config_text(config, heads, metadata)
    with whole_directory(directory) as partial:
        save_file(state, partial / BACKBONE_FILE, {"format": "pt"})
        save_file(head_state, partial / HEADS_FILE, {"format": "pt"})
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A new directory to fill, which gets its name at the end, in place of an older one; after an error it is gone.

    Where the name is a link, the directory behind it is replaced. All files become as readable as the umask says.
    """
    directory = Path(directory).resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(directory, "partial")
    partial.mkdir()
    try:
        yield partial
        _make_readable(partial)
        _move_into_place(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_export(directory: Path) -> Exported:
    """Reads what `save_export` wrote. Raises ValueError if it is not such a directory, or one of a newer format."""
    directory = Path(directory)
    absent = [name for name in (BACKBONE_FILE, HEADS_FILE, CONFIG_FILE) if not (directory / name).is_file()]
    if absent:
        raise ValueError(f"{directory} is not an exported model: no {', '.join(absent)}")
    document = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{directory / CONFIG_FILE}: format_version {version!r}, this version reads {FORMAT_VERSION}")
    try:
        config, metadata = ViTConfig.from_dict(document["model"]), document["metadata"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / CONFIG_FILE} is damaged: {error}") from error
    backbone = _on_meta(config)
    load_strict(backbone, load_file(directory / BACKBONE_FILE), str(directory / BACKBONE_FILE))
    heads = to_official(load_file(directory / HEADS_FILE)).heads
    return Exported(backbone.eval(), config, heads, metadata)


def _on_meta(config: ViTConfig) -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(config)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def _config_text(config: ViTConfig, heads: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> str:
    document = {
        "format_version": FORMAT_VERSION,
        "model": config.to_dict(),
        "heads": {name: head_arguments(state) for name, state in heads.items()},
        "metadata": dict(metadata),
    }
    try:
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(f"metadata of an export has to be plain JSON: {error}") from error


def _sibling(directory: Path, purpose: str) -> Path:
    # Not the tempfile module: its directories are private, and an export is as readable as any file of the user's.
    return directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.{purpose}")


def _make_readable(directory: Path) -> None:
    # safetensors writes private files. The directory's own mode tells the umask, which only setting it would.
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _move_into_place(partial: Path, directory: Path) -> None:
    for path in (*partial.iterdir(), partial):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    # A directory cannot be replaced in one step: the old one steps aside first, and is complete wherever it stands.
    if directory.exists():
        aside = _sibling(directory, "old")
        directory.rename(aside)
        partial.rename(directory)
        shutil.rmtree(aside)
    else:
        partial.rename(directory)
