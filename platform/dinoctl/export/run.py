"""One export: read the model, write the format, load it with the library that it is for, compare, then keep it.

Beside the files lies export.json: what was exported from where, with what differences. It also marks the directory as
one that a later export may replace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from dinoctl.export import huggingface, onnx, safetensors, timm, torchscript
from dinoctl.export.base import Extract, Format, Model
from dinoctl.export.verify import TOLERANCE, Difference, batches, compare, difference, images, resizing
from dinoctl.loading import EXPORT, open_source
from dinoctl.model import VisionTransformer, ViTConfig, load_strict, resize_pos_embed
from dinoctl.model.export import whole_directory
from dinoctl.spec.errors import UserError

RECORD = "export.json"
_FORMATS: dict[str, Format] = {
    "safetensors": safetensors.FORMAT,
    "hf": huggingface.FORMAT,
    "timm": timm.FORMAT,
    "onnx": onnx.FORMAT,
    "torchscript": torchscript.FORMAT,
}


@dataclass(frozen=True)
class Request:
    """What is asked for. `name` is the model's in the default directory; `opset` concerns ONNX alone.

    `output` is a directory, or `file://` of one.
    """

    source: str
    to: str
    name: str | None = None
    output: str | Path | None = None
    image_size: int | None = None
    opset: int | None = None
    verify: bool = True
    force: bool = False
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Result:
    """What was written: directory, its bytes, the library that read it, differences found, remarks, how to load it."""

    directory: Path
    size: int
    library: str
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]
    usage: str


def export(request: Request, say: Callable[[str], None]) -> Result:
    """Writes one format of a model.

    Raises:
        UserError: the model can't be read, the format can't hold it, the opset is none that can be written, the output
            is no directory here or is taken, or the model's own features are not finite.
        DifferentFeaturesError: what the library computes is not what the model does; nothing is kept then.
    """
    form = _FORMATS[request.to]
    _check_place(_place(request), request)  # before minutes of reading
    if request.opset is not None:
        onnx.check_opset(request.opset)
    say(f"reading {request.source}")
    model = _open(request)
    directory = _place(request)
    say(f"{request.source}: {describe(model.config)}; writing {request.to}")
    try:
        with whole_directory(directory) as partial:
            remarks = form.write(model, partial, request.opset)
            if request.verify:
                say(f"comparing with {form.library}")
            differences, more = _verify(model, form, partial) if request.verify else ([], [])
            _record(partial, request, form, model, differences)
            size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    except ValueError as error:
        raise UserError(f"{request.source}: {error}") from error
    return Result(
        directory, size, form.library, tuple(differences), (*remarks, *more), form.usage.format(path=directory)
    )


def describe(config: ViTConfig) -> str:
    """A backbone in a few words."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in VisionTransformer(config).parameters())
    registers = f", {config.registers} registers" if config.registers else ""
    return (
        f"ViT of {config.depth} blocks, width {config.embed_dim}, patch {config.patch_size}{registers}, "
        f"{config.ffn}, {count / 1e6:.1f} M parameters, positions for {config.img_size} px"
    )


def _place(request: Request) -> Path:
    if request.output:
        return _local(str(request.output))
    return Path("exports") / f"{request.name or default_name(request.source)}-{request.to}"


def _local(output: str) -> Path:
    # A Path has made s3:/ of s3:// already.
    if "://" not in output and not re.match(r"[A-Za-z][\w+.-]*:/", output):
        return Path(output)
    parts = urlsplit(output)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    raise UserError(f"--output {output}: exports are written to a directory; copy it afterwards")


def default_name(source: str) -> str:
    """A directory's name for what comes from `source`."""
    if source.startswith("models:/"):
        return re.sub(r"[@/]", "-", source.removeprefix("models:/"))
    parts = [part for part in re.split(r"[/:]+", source) if part not in ("", ".", "..", EXPORT)]
    return re.sub(r"\.(pth|pt|safetensors)$", "", parts[-1]) if parts else "model"


def _check_place(directory: Path, request: Request) -> None:
    if not directory.exists() and not directory.is_symlink():
        return
    if not request.force:
        raise UserError(f"{directory} is there already; give --force to replace it, or --output another directory")
    if not (directory / RECORD).is_file():
        raise UserError(f"{directory} is not an export (it has no {RECORD}), so --force does not replace it")


def _open(request: Request) -> Model:
    exported = open_source(request.source, request.tracking_uri).exported
    backbone, size = exported.backbone.to(torch.float32).eval(), request.image_size
    config = exported.config
    if size is not None and size != config.img_size:
        if size < 1 or size % config.patch_size:
            below = max(size // config.patch_size, 1) * config.patch_size
            raise UserError(
                f"image size {size} is not a multiple of the patch size {config.patch_size} of {request.source}; "
                f"nearest: {below} or {below + config.patch_size}"
            )
        backbone = _resized(backbone, size)
    return Model(backbone, exported.heads, {**exported.metadata, "image_size": backbone.config.img_size})


def _resized(backbone: VisionTransformer, size: int) -> VisionTransformer:
    config = backbone.config
    state = backbone.state_dict()
    if "pos_embed" in state:  # rotary positions have no table
        state = resize_pos_embed(state, size // config.patch_size, config)
    with torch.device("meta"):
        other = VisionTransformer(replace(config, img_size=size))
    load_strict(other, state, "the model with resized positions")
    return other.eval()


@torch.no_grad()
def _verify(model: Model, form: Format, directory: Path) -> tuple[list[Difference], list[str]]:
    """Differences to the library's model, and a remark where it resizes positions in its own way."""
    extract, way = form.read(directory), form.resizes(model.config)
    cases = batches(model.config, any_size=way is not None)
    reference = model.backbone if way is None else resizing(model.backbone, *way)
    found = compare(reference, extract, cases)
    return found, [] if reference is model.backbone else [_resize_remark(model, form, extract, cases[-1])]


def _resize_remark(model: Model, form: Format, extract: Extract, case: tuple[int, int, int]) -> str:
    off = difference(model.backbone, extract, images(*case))
    size = model.config.img_size
    return (
        f"{form.library} resizes positions in its own way: the same features at {size} px, others at other sizes "
        f"(at {off.height} x {off.width} px by up to {off.absolute:.1e}); --image-size N exports positions for N px"
    )


def _record(directory: Path, request: Request, form: Format, model: Model, differences: list[Difference]) -> None:
    document: dict[str, Any] = {
        "format": request.to,
        "source": request.source,
        "model": model.config.to_dict(),
        "mean": model.mean,
        "std": model.std,
        "versions": _versions(form),
        "compared": [asdict(one) for one in differences],
        "tolerance": TOLERANCE,
    }
    (directory / RECORD).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _versions(form: Format) -> dict[str, str]:
    found = {}
    for name in ("dinoctl", "torch", form.library):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
