"""k-NN of a frozen backbone, the features extracted by all ranks together, and of the same backbone untrained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dinoctl.data.dataset import Dataset
from dinoctl.data.eval_set import EvalSet
from dinoctl.evaluation.knn import knn_accuracy
from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.spec.errors import UserError
from dinoctl.spec.policy import Gate, KnnSettings
from dinoctl.spec.stages import KnnProtocol
from dinoctl.stages.data import dataset_uri
from dinoctl.training.context import Context

Seen = Callable[[int], None]
"""Told of so many images more, of all ranks, whose features are there."""


@dataclass(frozen=True)
class KnnData:
    """Where the labelled images are."""

    uri: str
    train_split: str
    test_split: str


@dataclass(frozen=True)
class Normalisation:
    """Channel statistics that the model was trained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def knn_metrics(
    context: Context,
    backbone: VisionTransformer,
    settings: KnnSettings,
    data: KnnData,
    norm: Normalisation,
    prefix: str,
    seen: Seen,
) -> dict[str, float]:
    """``{prefix}knn_top1`` and the accuracies of every k, on rank 0; other ranks get an empty dict. ``seen`` is told of
    `image_count` images altogether.

    Raises:
        UserError: the datasets have no labels, or fewer training images than the smallest k.
    """
    train = features(context, backbone, _eval_set(context, settings, data.uri, data.train_split, norm), seen)
    test = features(context, backbone, _eval_set(context, settings, data.uri, data.test_split, norm), seen)
    if context.rank != 0:
        return {}
    train, test = _onto(train, context.device), _onto(test, context.device)
    ks = [k for k in settings.k if k <= len(train[0])]
    if not ks:
        raise UserError(f"k-NN with k {settings.k} needs more than {len(train[0])} training images; lower k")
    scores = knn_accuracy(train[0], train[1], test[0], test[1], ks=ks, temperature=settings.temperature)
    return {f"{prefix}knn_{name.replace('@', '_k')}": value for name, value in scores.items()}


def _onto(pair: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return pair[0].to(device), pair[1].to(device)


def knn_data(protocol: Gate | KnnProtocol) -> KnnData:
    """Where a gate or a protocol takes its images from; raises UserError for a source that is not pinned."""
    return KnnData(dataset_uri(protocol.dataset), protocol.train_split, protocol.test_split)


def image_count(data: KnnData) -> int:
    """Images whose features `knn_metrics` needs."""
    return sum(len(Dataset.open(data.uri, split)) for split in (data.train_split, data.test_split))


def check_labelled(data: KnnData) -> None:
    """Raises UserError when a split is missing or has unlabelled images."""
    for split in (data.train_split, data.test_split):
        if (Dataset.open(data.uri, split).labels() < 0).any():
            raise UserError(f"{data.uri} (split {split}) has unlabelled images; k-NN needs class folders or labels")


def check_gate(gate: Gate | None) -> None:
    """Raises UserError where a gate's images could not be measured: to be asked before the first step."""
    if gate is not None:
        check_labelled(knn_data(gate))


def untrained(config: ViTConfig, seed: int) -> VisionTransformer:
    """The same backbone with initial weights: what the architecture alone can do."""
    return VisionTransformer(config, generator=torch.Generator().manual_seed(seed)).eval()


def dataset_hash(uri: str, split: str) -> str:
    """Identity of the data that was measured on."""
    return Dataset.open(uri, split).hash


def _eval_set(context: Context, settings: KnnSettings, uri: str, split: str, norm: Normalisation) -> EvalSet:
    dataset = Dataset.open(uri, split)
    size = settings.image_size or 224
    return EvalSet(
        dataset,
        image_size=size,
        resize=settings.resize or round(size * 256 / 224),
        batch_size=settings.batch_size,
        mean=norm.mean,
        std=norm.std,
        rank=context.rank,
        world=context.world,
    )


@torch.inference_mode()
def features(context: Context, backbone: VisionTransformer, images: EvalSet, seen: Seen) -> tuple[Tensor, Tensor]:
    """Class tokens (n, D) fp32 and labels (n,) of all ranks' images, on the host, in dataset order; rank 0 has them."""
    backbone = backbone.to(context.device).eval()
    found: list[tuple[Tensor, Tensor]] = []
    for batch, labels in images:
        found.append((backbone(batch.to(context.device)).float().cpu(), labels))
        seen(len(labels) * context.world)
    width = backbone.config.embed_dim
    mine = torch.cat([x for x, _ in found]) if found else torch.empty(0, width)
    labels = torch.cat([y for _, y in found]) if found else torch.empty(0, dtype=torch.int64)
    if context.world == 1:
        return mine, labels
    parts: list[tuple[Tensor, Tensor]] = [(mine, labels)] * context.world
    dist.gather_object((mine, labels), parts if context.rank == 0 else None, dst=0)
    return _interleave([x for x, _ in parts]), _interleave([y for _, y in parts])


def _interleave(parts: list[Tensor]) -> Tensor:
    """Rank r holds samples r, r + W, ...: back into dataset order."""
    total = sum(len(part) for part in parts)
    whole = parts[0].new_empty(total, *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
