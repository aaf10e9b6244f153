"""High-resolution adaptation: student, teacher and heads of a parent go on at a larger size (paper App. B.2)."""

from dinoctl.handover.attempt import Attempt
from dinoctl.model import ViTConfig
from dinoctl.spec.errors import UserError
from dinoctl.spec.stages import HighRes
from dinoctl.stages.models import OpenedModel, open_model, vit_config
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.train import Work, train
from dinoctl.training.context import Context
from dinoctl.training.learner import Learner
from dinoctl.training.loop import LoopResult
from dinoctl.training.weights import learner_tensors

_EXTENSIONS = ("rope_base", "local_cls_norm", "cls_norm")


def run(attempt: Attempt, context: Context, work: Work = train) -> LoopResult:
    """Enlarges the positions of both networks and trains with the compressed schedules (or does other ``work``)."""
    stage = attempt.spec.stage
    assert isinstance(stage, HighRes)  # noqa: S101 - the table of stages pairs them
    parent = open_model(stage.parent, attempt.tracking_uri)
    if stage.model is not None:
        _check_same(parent, vit_config(stage.model, stage.size))
    drop_path = stage.model.drop_path if stage.model else None
    student, teacher = parent.blank(stage.size, drop_path=drop_path or 0.0), parent.blank(stage.size)
    recipe = Recipe.of(stage)
    learner = Learner(student, teacher, None, recipe.losses)
    tensors = learner_tensors(learner, parent.tensors(student, student=True, by=attempt.name), parent.tensors(teacher))
    return work(attempt, context, recipe, learner, stage.size, tensors)


def _check_same(parent: OpenedModel, wanted: ViTConfig) -> None:
    """A registered model may be another one than the document says."""
    found = parent.exported.config
    for name in ("embed_dim", "depth", "num_heads", "patch_size", "registers", "ffn", *_EXTENSIONS):
        if getattr(found, name) != getattr(wanted, name):
            raise UserError(
                f"{parent.origin} has {name} {getattr(found, name)}, but highres.model says {getattr(wanted, name)}; "
                "correct the model section or name another parent"
            )
