"""What a trained learner leaves behind: the exported average with its heads, the gate's evidence, the proof."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.output import Output, write_output
from dinoctl.handover.progress import Progress
from dinoctl.loading import EXPORT
from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.model.weights import HEADS
from dinoctl.stages.data import dataset_uri
from dinoctl.stages.measure import Normalisation, Seen, dataset_hash, knn_data, knn_metrics, untrained
from dinoctl.stages.models import publish_export
from dinoctl.stages.pictures import draw_pictures
from dinoctl.stages.recipe import Recipe
from dinoctl.tracking.gate import Evidence
from dinoctl.tracking.spool import history
from dinoctl.training.context import Context
from dinoctl.training.engines.base import Engine
from dinoctl.training.learner import Learner
from dinoctl.training.loop import LoopResult
from dinoctl.training.matching import FeatureLearner


def finish(
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    engine: Engine,
    learner: Learner | FeatureLearner,
    result: LoopResult,
    *,
    data_hash: str,
    image_size: int,
) -> None:
    """Collective. Everything may be done again after a crash: the files come out the same, the proof comes last."""
    config = plain_config(learner.averaged.backbone.config)
    state = averaged_state(engine)
    export_hash = ""
    tell(context, recipe, result, "export")
    if context.rank == 0:
        about = _about(attempt, recipe, data_hash, image_size, result.step)
        export_hash = export(attempt, config, state, about, "")
    tell(context, recipe, result, "gate")
    backbone = replicate(context, config, state)
    norm = Normalisation(recipe.crops.augmentation.mean, recipe.crops.augmentation.std)
    metrics = measure(attempt, context, norm, backbone, lambda _: tell(context, recipe, result, "gate"))
    if context.rank == 0:
        draw_pictures(attempt, context, backbone, norm)
        prove(attempt, result, data_hash, metrics, export_hash)
    context.barrier()


def finish_together(
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    engine: Engine,
    config: ViTConfig,
    result: LoopResult,
    *,
    data_hash: str,
    image_size: int,
    student: str,
    leaders: Mapping[str, int],
) -> None:
    """`finish` for several students; ``leaders``: the first rank of each. Every student's first rank exports it, then
    all ranks together measure one after the other.
    """
    state, export_hash = averaged_state(engine), ""
    tell(context, recipe, result, "export")
    if context.rank == leaders[student]:
        about = _about(attempt, recipe, data_hash, image_size, result.step) | {"student": student}
        export_hash = export(attempt, plain_config(config), state, about, f"/{student}")
    tell(context, recipe, result, "gate")
    norm = Normalisation(recipe.crops.augmentation.mean, recipe.crops.augmentation.std)
    metrics, hashes = dict[str, float](), dict[str, str]()
    for name, leader in leaders.items():
        told: list[Any] = [plain_config(config).to_dict(), export_hash]
        dist.broadcast_object_list(told, src=leader, device=context.device)
        backbone = replicate(context, ViTConfig.from_dict(told[0]), state, leader)
        found = measure(attempt, context, norm, backbone, lambda _: tell(context, recipe, result, "gate"))
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
        hashes[name] = str(told[1])
        if context.rank == 0 and len(hashes) == 1:
            draw_pictures(attempt, context, backbone, norm)
    if context.rank == 0:
        together = hashlib.sha256("".join(f"{name}:{one}\n" for name, one in hashes.items()).encode()).hexdigest()
        prove(attempt, result, data_hash, metrics, together, hashes)
    context.barrier()


def plain_config(config: ViTConfig) -> ViTConfig:
    """A backbone as it is used: stochastic depth is training's."""
    return replace(config, drop_path=0.0)


def averaged_state(engine: Engine) -> dict[str, Tensor]:
    """The average without its role in the names; on the engine's rank 0, elsewhere nothing. Collective."""
    return {name.split(".", 1)[1]: tensor for name, tensor in engine.full_teacher()}


def tell(context: Context, recipe: Recipe, result: LoopResult, phase: str) -> None:
    """What rank 0 is at, and that it is still at it."""
    if context.rank == 0:
        context.report(Progress(result.step, recipe.steps, result.images_per_s, None, result.step, phase=phase))


def export(
    attempt: Attempt, config: ViTConfig, state: Mapping[str, Tensor], about: dict[str, object], below: str
) -> str:
    """Writes ``export/`` or a directory below it; returns its hash."""
    weights, others = split_state(state)
    heads = {name: others[name] for name in HEADS if name in others}  # a projection onto a teacher stays behind
    storage = attempt.storage.child(EXPORT + below)
    return publish_export(storage, config, weights, heads, about, _card(about, config))


def prove(
    attempt: Attempt,
    result: LoopResult,
    data_hash: str,
    metrics: Mapping[str, float],
    export_hash: str,
    parts: Mapping[str, str] | None = None,
) -> None:
    """Evidence and proof of completion. ``parts``: the export of each of several students; tables show the least good
    one.
    """
    pace = result.images_per_s or _former_pace(attempt)
    summary: dict[str, float | str] = {"images_per_s": pace, "dataset_hash": data_hash, **metrics}
    if parts and metrics:
        least = min(parts, key=lambda name: metrics[f"{name}/knn_top1"])
        summary |= {key: metrics[f"{least}/{key}"] for key in ("knn_top1", "random_knn_top1")}
    output = Output(attempt.spec.kind, attempt.spec_hash, attempt.number, result.step, export_hash, summary)
    write_output(attempt.storage, output, _evidence(attempt, metrics, export_hash, parts or {}))


def _former_pace(attempt: Attempt) -> float:
    """Mean of the metric points, where this attempt found all steps done already."""
    points = [value for _, value in history(attempt.spool).get("images_per_s", []) if value > 0]
    return sum(points) / len(points) if points else 0.0


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A network's tensors as (backbone, heads by name)."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, key = name.split(".", 1)
        modules.setdefault(module, {})[key] = tensor
    return modules.pop("backbone"), modules


def _about(attempt: Attempt, recipe: Recipe, data_hash: str, size: int, step: int) -> dict[str, object]:
    augmentation = recipe.crops.augmentation
    return {
        "job": attempt.name,
        "stage": attempt.spec.kind,
        "spec_hash": attempt.spec_hash,
        "dataset_hash": data_hash,
        "step": step,
        "image_size": size,
        "mean": list(augmentation.mean),
        "std": list(augmentation.std),
        "versions": versions(),
    }


def _card(about: Mapping[str, object], config: ViTConfig) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in {**about, **config.to_dict()}.items())
    return (
        f"# {about['job']}\n\nA DINOv2-class Vision Transformer made by dinoctl ({about['stage']}). The backbone is "
        "the exponential moving average of the trained weights, with official DINOv2 tensor names; heads, where it was "
        f"trained with them, are beside it, so that training can go on from here.\n\n| | |\n|---|---|\n{rows}\n"
    )


def replicate(context: Context, config: ViTConfig, state: Mapping[str, Tensor], source: int = 0) -> VisionTransformer:
    """The averaged backbone on every rank: ``source`` has the tensors, the others receive them."""
    backbone = VisionTransformer(config).eval()
    if context.rank == source:
        backbone.load_state_dict(split_state(state)[0])
    backbone = backbone.to(context.device)
    if context.world > 1:
        for tensor in backbone.state_dict().values():
            dist.broadcast(tensor, src=source)
    return backbone


def measure(
    attempt: Attempt, context: Context, norm: Normalisation, backbone: VisionTransformer, seen: Seen
) -> dict[str, float]:
    """The gate's metrics of the trained and of the untrained backbone, on rank 0."""
    gate = attempt.spec.gate
    if gate is None:
        return {}
    data = knn_data(gate)
    trained = knn_metrics(context, backbone, gate.knn, data, norm, "", seen)
    blank = untrained(backbone.config, attempt.spec.seed)
    return {**trained, **knn_metrics(context, blank, gate.knn, data, norm, "random_", seen)}


def _evidence(
    attempt: Attempt, metrics: Mapping[str, float], export_hash: str, parts: Mapping[str, str]
) -> Evidence | None:
    gate = attempt.spec.gate
    if gate is None:
        return None
    uri = dataset_uri(gate.dataset)
    identity = f"{dataset_hash(uri, gate.train_split)}/{dataset_hash(uri, gate.test_split)}"
    return Evidence(metrics, identity, export_hash, attempt.spec_hash, parts)


def versions() -> dict[str, str]:
    """What made this: package versions and the image, if it is known."""
    found = {"image": os.environ["DINOCTL_IMAGE"]} if "DINOCTL_IMAGE" in os.environ else {}
    for name in ("dinoctl", "torch", "deepspeed", "ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
