"""Opening models that stages start from: another job's output, a registered model, or an exported directory."""

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dinoctl.data.storage import Storage
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.loading import EXPORT, open_source
from dinoctl.model import (
    Exported,
    ProjectionHead,
    VisionTransformer,
    ViTConfig,
    head_arguments,
    load_strict,
    resize_pos_embed,
    save_export,
)
from dinoctl.spec.errors import UserError
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.sources import JobRef, ModelRef, ModelSource
from dinoctl.training.learner import Network
from dinoctl.training.ledger import Checkpoint


def vit_config(model: ModelSpec, image_size: int) -> ViTConfig:
    """The backbone of a resolved model section, with positions for crops of ``image_size`` pixels."""
    antialias = model.position_interpolation == "antialias"
    return ViTConfig(
        embed_dim=_known(model.embed_dim),
        depth=_known(model.depth),
        num_heads=_known(model.num_heads),
        patch_size=model.patch_size,
        img_size=image_size,
        ffn=model.ffn or "mlp",
        registers=model.registers,
        layerscale=model.layer_scale,
        drop_path=model.drop_path or 0.0,
        interpolate_antialias=antialias,
        interpolate_offset=0.0 if antialias else 0.1,
        rope_base=model.rope.base if model.rope else None,
        rope_rescale=model.rope.rescale if model.rope else None,
        local_cls_norm=model.untie_norms in ("local_cls", "both"),
        cls_norm=model.untie_norms in ("cls", "both"),
    )


def _known(value: int | None) -> int:
    if value is None:
        raise ValueError("the model section is not resolved")
    return value


@dataclass(frozen=True)
class OpenedModel:
    """An exported model and, where it is a job's output, that job's storage with its checkpoints."""

    exported: Exported
    origin: str
    job_storage: Storage | None

    @property
    def has_heads(self) -> bool:
        """Whether training can go on from it as it is."""
        return "dino_head" in self.exported.heads

    def network(self, image_size: int | None = None, *, drop_path: float = 0.0, student: bool = False) -> Network:
        """Backbone and heads. With ``image_size`` the positions are enlarged to its grid (paper App. B.2).

        ``student`` takes the student's weights of the last checkpoint instead of the average, if there is one.

        Raises:
            UserError: when the model has no heads.
        """
        if not self.has_heads:
            raise UserError(f"{self.origin} has no heads; name a model that dinoctl trained, its export keeps them")
        backbone = dict(self.exported.backbone.state_dict())
        heads = {name: dict(state) for name, state in self.exported.heads.items()}
        if student and (weights := self._student()):
            # What a job keeps frozen (distillation: the mask token) is in no checkpoint, and equals its average.
            backbone |= _below(weights, "backbone.")
            heads = {name: state | _below(weights, f"{name}.") for name, state in heads.items()}
        config = replace(self.exported.config, drop_path=drop_path)
        if image_size is not None and image_size != config.img_size:
            backbone = resize_pos_embed(backbone, image_size // config.patch_size, config)
            config = replace(config, img_size=image_size)
        return _network(config, backbone, heads, self.origin)

    def _student(self) -> dict[str, Tensor]:
        if self.job_storage is None:
            return {}
        ledger = Ledger(self.job_storage.child(CHECKPOINTS))
        head = ledger.head()
        if head is None:
            return {}
        checkpoint = Checkpoint(ledger.storage, head)
        names = [name for name in checkpoint.names("param") if name.startswith("student.")]
        found = checkpoint.tensors("param", names)
        return {name.removeprefix("student."): tensor for name, tensor in found.items()}


def open_model(source: ModelSource, tracking_uri: str | None) -> OpenedModel:
    """The model behind a source.

    Raises:
        UserError: nothing is there, or it is not an export.
    """
    if isinstance(source, JobRef):
        raise UserError(f"job {source.job!r} is not pinned to its output; run it through its lifecycle")
    origin = source.model if isinstance(source, ModelRef) else source.uri
    opened = open_source(origin, tracking_uri)
    return OpenedModel(opened.exported, origin, opened.job)


def publish_export(
    storage: Storage,
    config: ViTConfig,
    backbone: dict[str, Tensor],
    heads: dict[str, dict[str, Tensor]],
    metadata: dict[str, object],
    card: str,
) -> str:
    """Writes an export with its model card to ``storage``; returns the sha256 over its files. config.json goes last,
    so a reader that sees it sees all.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="dinoctl-export-") as scratch:
        directory = Path(scratch) / EXPORT
        save_export(directory, backbone, config, heads, metadata)
        (directory / "README.md").write_text(card, encoding="utf-8")
        for path in sorted(directory.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
            data = path.read_bytes()
            digest.update(f"{path.name}:{hashlib.sha256(data).hexdigest()}\n".encode())
            storage.write(path.name, data)
    return digest.hexdigest()


def _network(
    config: ViTConfig, backbone: dict[str, Tensor], heads: dict[str, dict[str, Tensor]], origin: str
) -> Network:
    with torch.device("meta"):
        vit = VisionTransformer(config)
        built = {name: ProjectionHead(**head_arguments(state)) for name, state in heads.items()}
    load_strict(vit, backbone, origin)
    for name, head in built.items():
        load_strict(head, heads[name], f"{origin} ({name})")
    return Network(vit, built["dino_head"], built.get("ibot_head"))


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
