"""Opening models that stages start from: another job's output, a registered model, or an exported directory."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dinoctl.data.errors import StorageError
from dinoctl.data.storage import Storage
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.loading import EXPORT, open_source
from dinoctl.model import (
    Exported,
    ProjectionHead,
    VisionTransformer,
    ViTConfig,
    check_fits,
    head_arguments,
    resize_pos_embed,
    save_export,
)
from dinoctl.spec.errors import UserError
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.recipe import Head, Heads
from dinoctl.spec.sources import JobRef, ModelRef, ModelSource
from dinoctl.spec.stages import Distill
from dinoctl.training.ledger import Checkpoint
from dinoctl.training.matching import Bare
from dinoctl.training.networks import HeadPair, Network

_BATCH = 1 << 26  # elements of a student's checkpoint that are read together


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
        """Backbone and heads with their values; arguments and errors as those of `blank` and `tensors`."""
        network = self.blank(image_size, drop_path=drop_path)
        network.load_state_dict(dict(self.tensors(network, student=student)), strict=True, assign=True)
        return network

    def blank(self, image_size: int | None = None, *, drop_path: float = 0.0) -> Network:
        """Backbone and heads as shapes alone (on the meta device), to be filled from `tensors`. With ``image_size`` the
        positions are those of its grid.

        Raises:
            UserError: when the model has no heads, or some whose tensors do not fit together (they are listed).
        """
        if not self.has_heads:
            raise UserError(f"{self.origin} has no heads; name a model that dinoctl trained, its export keeps them")
        with torch.device("meta"):
            heads = {name: self._head(name, state) for name, state in self.exported.heads.items()}
            backbone = self.bare(image_size, drop_path=drop_path).backbone
            return Network(backbone, heads["dino_head"], heads.get("ibot_head"))

    def bare(self, image_size: int | None = None, *, drop_path: float = 0.0) -> Bare:
        """The backbone alone, as shapes; see `blank`."""
        config = replace(self.exported.config, drop_path=drop_path)
        if image_size is not None:
            config = replace(config, img_size=image_size)
        with torch.device("meta"):
            return Bare(VisionTransformer(config))

    def _head(self, name: str, state: dict[str, Tensor]) -> ProjectionHead:
        try:
            head = ProjectionHead(**head_arguments(state))
            check_fits(head, state, f"{self.origin}: {name}")
        except ValueError as error:
            raise UserError(str(error)) from None
        return head

    def tensors(self, network: HeadPair | Bare, *, student: bool = False, by: str = "") -> Iterator[tuple[str, Tensor]]:
        """Name and value of every parameter of a `blank` network, of its heads alone or of a `bare` one, read when it
        is asked for (a file is mapped, so it is not in memory as a whole); positions enlarged to the network's grid
        (paper App. B.2).

        ``student`` takes the student's weights of the last checkpoint instead of the average, if there is one. What a
        job keeps frozen (distillation: the mask token) is in no checkpoint, and equals its average. The checkpoint is
        pinned for the job ``by``, so that an attempt of it that comes later finds the same one.
        """
        average = {f"backbone.{name}": value for name, value in self.exported.backbone.state_dict().items()}
        for head, state in self.exported.heads.items():
            average |= {f"{head}.{name}": value for name, value in state.items()}
        names = [name for name, _ in network.named_parameters()]
        trained = dict(_in_batches(self._checkpoint(by) if student else None, names))
        for name, shape in network.named_parameters():
            value = trained[name]() if name in trained else average[name]
            if isinstance(network, Network | Bare) and name == "backbone.pos_embed" and value.shape != shape.shape:
                grid = network.backbone.config.grid
                value = resize_pos_embed({"pos_embed": value}, grid, self.exported.config)["pos_embed"]
            yield name, value

    def _checkpoint(self, by: str) -> Checkpoint | None:
        if self.job_storage is None:
            return None
        ledger = Ledger(self.job_storage.child(CHECKPOINTS))
        pinned = sorted(ledger.pinned(by) & set(ledger.steps())) if by else []
        head = ledger.commit(pinned[-1]) if pinned else ledger.head()
        if head is None or not by:
            return None if head is None else Checkpoint(ledger.storage, head)
        with suppress(StorageError):  # who may only read pins nothing; retention keeps the newest anyway
            if not ledger.pin(head.step, by):
                return self._checkpoint(by)  # it has just gone: there is a newer one
        return Checkpoint(ledger.storage, head)


def _in_batches(checkpoint: Checkpoint | None, names: list[str]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """What reads a student's tensor, for each that the checkpoint has. Tensors that follow each other are read
    together, about a quarter of a GB at a time, and are let go when they have been asked for.
    """
    if checkpoint is None:
        return
    shapes, batch, size = checkpoint.names("param"), list[str](), 0
    held: dict[str, Tensor] = {}

    def read(name: str, together: list[str]) -> Tensor:
        if name not in held:
            held.update(checkpoint.tensors("param", together))
        return held.pop(name)

    for name in (f"student.{name}" for name in names if f"student.{name}" in shapes):
        if size > _BATCH:
            batch, size = [], 0
        batch.append(name)
        size += torch.Size(shapes[name]).numel()
        yield name.removeprefix("student."), partial(read, name, batch)


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


def student_config(stage: Distill) -> ViTConfig:
    """Of the one student of a section."""
    if stage.model is None:
        raise UserError("the stage is not resolved: a student has no model")
    return vit_config(stage.model, stage.crops.global_crops.size)


def heads_like(teacher: OpenedModel) -> Heads:
    """Heads of the teacher's shape."""

    def head(name: str) -> Head | None:
        state = teacher.exported.heads.get(name)
        if state is None:
            return None
        shape = head_arguments(state)
        return Head(
            prototypes=shape["prototypes"],
            hidden=shape["hidden_dim"],
            bottleneck=shape["bottleneck_dim"],
            layers=shape["layers"],
        )

    dino = head("dino_head")
    if dino is None:
        raise UserError(f"{teacher.origin} has no heads; name a model that dinoctl trained, its export keeps them")
    return Heads(dino=dino, ibot=head("ibot_head"))
