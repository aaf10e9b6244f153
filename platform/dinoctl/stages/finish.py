"""What a trained learner leaves behind: the exported average with its heads, the gate's evidence, the proof."""

import os
from collections.abc import Mapping
from importlib import metadata

import torch.distributed as dist
from torch import Tensor

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.output import Output, write_output
from dinoctl.handover.progress import Progress
from dinoctl.loading import EXPORT
from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.model.weights import HEADS
from dinoctl.stages.data import dataset_uri
from dinoctl.stages.measure import Normalisation, dataset_hash, knn_data, knn_metrics, untrained
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
    config = ViTConfig.from_dict({**learner.averaged.backbone.config.to_dict(), "drop_path": 0.0})
    state = {name.split(".", 1)[1]: tensor for name, tensor in engine.full_teacher()}
    export_hash = ""
    if context.rank == 0:
        context.report(Progress(result.step, recipe.steps, result.images_per_s, None, result.step, phase="export"))
        about = _about(attempt, recipe, data_hash, image_size, result.step)
        weights, others = split_state(state)
        heads = {name: others[name] for name in HEADS if name in others}  # a projection onto a teacher stays behind
        export = attempt.storage.child(EXPORT)
        export_hash = publish_export(export, config, weights, heads, about, _card(about, config))
        context.report(Progress(result.step, recipe.steps, result.images_per_s, None, result.step, phase="gate"))
    backbone = _replicate(context, config, state)
    norm = Normalisation(recipe.crops.augmentation.mean, recipe.crops.augmentation.std)
    metrics = _measure(attempt, context, norm, backbone)
    if context.rank == 0:
        draw_pictures(attempt, context, backbone, norm)
        pace = result.images_per_s or _former_pace(attempt)
        summary: dict[str, float | str] = {"images_per_s": pace, "dataset_hash": data_hash, **metrics}
        output = Output(attempt.spec.kind, attempt.spec_hash, attempt.number, result.step, export_hash, summary)
        write_output(attempt.storage, output, _evidence(attempt, metrics, export_hash))
    context.barrier()


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


def _replicate(context: Context, config: ViTConfig, state: Mapping[str, Tensor]) -> VisionTransformer:
    """The averaged backbone on every rank: rank 0 has the tensors, the others receive them."""
    backbone = VisionTransformer(config).eval()
    if context.rank == 0:
        backbone.load_state_dict(split_state(state)[0])
    backbone = backbone.to(context.device)
    if context.world > 1:
        for tensor in backbone.state_dict().values():
            dist.broadcast(tensor, src=0)
    return backbone


def _measure(attempt: Attempt, context: Context, norm: Normalisation, backbone: VisionTransformer) -> dict[str, float]:
    """The gate's metrics of the trained and of the untrained backbone, on rank 0."""
    gate = attempt.spec.gate
    if gate is None:
        return {}
    data = knn_data(gate)
    trained = knn_metrics(context, backbone, gate.knn, data, norm, "")
    blank = untrained(backbone.config, attempt.spec.seed)
    return {**trained, **knn_metrics(context, blank, gate.knn, data, norm, "random_")}


def _evidence(attempt: Attempt, metrics: Mapping[str, float], export_hash: str) -> Evidence | None:
    gate = attempt.spec.gate
    if gate is None:
        return None
    uri = dataset_uri(gate.dataset)
    identity = f"{dataset_hash(uri, gate.train_split)}/{dataset_hash(uri, gate.test_split)}"
    return Evidence(metrics, identity, export_hash, attempt.spec_hash)


def versions() -> dict[str, str]:
    """What made this: package versions and the image, if it is known."""
    found = {"image": os.environ["DINOCTL_IMAGE"]} if "DINOCTL_IMAGE" in os.environ else {}
    for name in ("dinoctl", "torch", "deepspeed", "ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
