"""Opening a model wherever it lies: a job's output, an export, a checkpoint file, a Hugging Face directory, a registry.

    load_backbone("dinov2_vits14_pretrain.pth")          a file as DINOv2 releases them
    load_backbone("s3://bucket/jobs/vitl/run-0001")      a job's output, or its export/
    load_backbone("models:/vitl-mine@champion")          a registered model
    load_backbone("facebook-dinov2-small/")              a directory of Hugging Face transformers

Copies of remote files are temporary and gone when a call returns. Mistakes are a `UserError` of one line.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage, open_storage
from dinoctl.model import (
    RELEASED,
    Exported,
    VisionTransformer,
    ViTConfig,
    infer_config,
    load_export,
    load_strict,
    read_state_dict,
    to_official,
)
from dinoctl.model.export import BACKBONE_FILE, CONFIG_FILE, HEADS_FILE
from dinoctl.model.huggingface import INDEX_FILE, huggingface_files, read_huggingface
from dinoctl.spec.errors import EnvironmentProblem, UserError, redacted

EXPORT = "export"
WEIGHTS = (".pth", ".pt", ".safetensors")
_PART = 64 * 2**20
_RELEASED = re.compile(r"(facebook/)?dinov2[-_][\w.-]+|vit_\w+_dinov2[\w.]*")


class Source(NamedTuple):
    """A model that was read, and the storage of the job whose output it is (None if it is not a job's)."""

    exported: Exported
    job: Storage | None


def load_backbone(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    config: ViTConfig | None = None,
    tracking_uri: str | None = None,
) -> VisionTransformer:
    """The backbone behind `source` in eval mode, with the calls of the official DINOv2 models.

    `source` is a path or `s3://` URI of a job's output, an export, a Hugging Face directory or a .pth, .pt or
    .safetensors file; or `models:/NAME@ALIAS` or `models:/NAME/VERSION`, looked up in the MLflow registry at
    `tracking_uri` (default: $MLFLOW_TRACKING_URI). `device` is the CPU and `dtype` float32 unless given; images have to
    come with the same ones. `config` says what shapes of a lone file do not tell; by default heads have 64 channels and
    positions are resized as in the released models.

    Images are (B, 3, H, W), sides multiples of the patch size, normalised as in training. `forward` gives the
    normalised cls token (B, D), `forward_features` the dictionary of `Features`, `get_intermediate_layers` the patch
    tokens after chosen blocks.

    Raises:
        UserError: nothing is there, it is no model, or its weights do not fit (missing and unexpected keys are listed).
        EnvironmentProblem: storage or registry can't be reached.
    """
    backbone = open_source(str(source), tracking_uri, config).exported.backbone
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        # Its own memory: what was read may be a view into the file, which the user is free to change.
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return backbone.to(device=device, dtype=dtype or torch.float32).eval()


def open_source(source: str, tracking_uri: str | None = None, config: ViTConfig | None = None) -> Source:
    """Backbone, heads and metadata behind a path, URI or registered model; see `load_backbone`."""
    uri = registered(source, tracking_uri) if source.startswith("models:") else source
    _not_a_name(uri)
    try:
        if _is_file(uri):
            return Source(_read_file(uri, config), None)
        return _read_directory(open_storage(uri), config)
    except (NotFoundError, FileNotFoundError):
        raise UserError(f"{source}: nothing is there") from None
    except UserError:
        raise
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{source}: {error}") from None


def registered(reference: str, tracking_uri: str | None) -> str:
    """The URI of a registered model's export.

    Raises:
        UserError: there is no such model, or no registry to look in.
    """
    from dinoctl.tracking.registry import resolve_model

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        raise UserError(
            f"{reference}: there is no MLflow registry here; give a path, set MLFLOW_TRACKING_URI or run with tracking"
        )
    try:
        return resolve_model(uri, reference).source
    except ValueError as error:
        raise UserError(str(error)) from None
    except ModuleNotFoundError as error:
        wanted = "'dinoctl[train]'" if error.name == "mlflow" else error.name  # else the driver of its database
        raise EnvironmentProblem(f"{reference}: {error.name} is not installed; pip install {wanted}") from None
    except Exception as error:  # MLflow raises what its database or its HTTP client does
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise EnvironmentProblem(f"{reference}: MLflow at {redacted(uri)} failed: {redacted(line)}") from error


def _not_a_name(uri: str) -> None:
    """Refuses the bare name of a released model: nothing is ever downloaded from the internet."""
    if not _RELEASED.fullmatch(uri) or uri.endswith(WEIGHTS) or Path(uri).exists():
        return
    example = f"{uri.replace('_reg', '_reg4')}_pretrain.pth" if uri in RELEASED else "dinov2_vits14_pretrain.pth"
    raise UserError(
        f"{uri}: dinoctl downloads no released models; fetch the weights yourself and give the path of the file "
        f"(such as {example}) or of the Hugging Face directory"
    )


def _is_file(uri: str) -> bool:
    path = Path(uri).expanduser()
    return path.is_file() or (uri.endswith(WEIGHTS) and not path.is_dir())


def _read_file(uri: str, config: ViTConfig | None) -> Exported:
    place, slash, name = uri.rpartition("/")
    storage = open_storage(place or slash or ".")
    if config is None and name == BACKBONE_FILE and storage.exists(CONFIG_FILE):
        return _read_directory(storage, None).exported
    with _local(storage, [name]) as directory:
        try:
            state = to_official(read_state_dict(directory / name))
        except ValueError as error:  # names the copy's path; the caller names the source
            raise ValueError(str(error).removeprefix(f"{directory / name}: ")) from None
    return _build(state.backbone, config or infer_config(state.backbone), state.heads)


def _read_directory(storage: Storage, config: ViTConfig | None) -> Source:
    if storage.exists(f"{EXPORT}/{CONFIG_FILE}"):
        return Source(_read_directory(storage.child(EXPORT), config).exported, storage)
    if not storage.exists(CONFIG_FILE):
        _refuse_several(storage)
    document = _json(storage, CONFIG_FILE)
    if "model_type" in document:
        return Source(_read_huggingface(storage, config), None)
    with _local(storage, [CONFIG_FILE, BACKBONE_FILE, HEADS_FILE]) as directory:
        return Source(load_export(directory), None)


def _refuse_several(storage: Storage) -> None:
    """The output of a job that distilled several students, each of them in a directory of its own."""
    found = [re.fullmatch(rf"{EXPORT}/([^/]+)/{re.escape(CONFIG_FILE)}", key) for key in storage.list(f"{EXPORT}/")]
    if students := [match[1] for match in found if match]:
        raise ValueError(f"several students ({', '.join(students)}): name one, .../{EXPORT}/{students[0]}")


def _read_huggingface(storage: Storage, config: ViTConfig | None) -> Exported:
    index = _json(storage, INDEX_FILE) if storage.exists(INDEX_FILE) else None
    keys = [CONFIG_FILE, *([INDEX_FILE] if index else []), *huggingface_files(index)]
    with _local(storage, keys) as directory:
        found = read_huggingface(directory)
    return _build(found.backbone, config or found.config, {}, _normalisation(storage))


def _json(storage: Storage, key: str) -> dict[str, Any]:
    try:
        document = json.loads(storage.read(key))
    except NotFoundError:
        local = storage.local_path(key)
        if local is None or not local.parent.is_dir():
            raise
        raise ValueError(
            f"no model is there: a dinoctl export and a Hugging Face directory have a {key}; "
            f"for weights alone name the file ({', '.join(WEIGHTS)})"
        ) from None
    if not isinstance(document, dict):
        raise ValueError(f"{key} does not hold a JSON object")
    return document


def _normalisation(storage: Storage) -> dict[str, Any]:
    if not storage.exists("preprocessor_config.json"):
        return {}
    document = _json(storage, "preprocessor_config.json")
    names = {"mean": "image_mean", "std": "image_std"}
    return {name: document[theirs] for name, theirs in names.items() if theirs in document}


def _build(state: Any, config: ViTConfig, heads: Any, metadata: dict[str, Any] | None = None) -> Exported:
    with torch.device("meta"):
        backbone = VisionTransformer(config)
    load_strict(backbone, state, "the checkpoint")
    return Exported(backbone.eval(), config, heads, metadata or {})


@contextmanager
def _local(storage: Storage, keys: list[str]) -> Iterator[Path]:
    """A local directory with these objects: their own one, or a copy that is removed at the end.

    Tensors stay readable afterwards: a mapped file lives until its last reader is done.
    """
    own = storage.local_path(keys[0])
    if own is not None:
        yield own.parent
        return
    with tempfile.TemporaryDirectory(prefix="dinoctl-model-") as scratch:
        for key in keys:
            if storage.exists(key):
                _copy(storage, key, Path(scratch) / key)
        yield Path(scratch)


def _copy(storage: Storage, key: str, target: Path) -> None:
    size = storage.size(key)
    with target.open("wb") as file:
        for start in range(0, size, _PART):
            file.write(storage.read(key, start, min(start + _PART, size)))
