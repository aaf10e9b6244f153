"""What pretraining, high-resolution adaptation and distillation have in common, read off their resolved sections."""

from dataclasses import dataclass

from dinoctl.spec.crops import Crops
from dinoctl.spec.errors import UserError
from dinoctl.spec.recipe import Losses, Masks, Optimizer, Schedules
from dinoctl.spec.sources import TrainData
from dinoctl.spec.stages import Distill, HighRes, Pretrain


@dataclass(frozen=True)
class Recipe:
    """One training job's recipe; every value is known."""

    data: TrainData
    steps: int
    global_batch: int
    crops: Crops
    masks: Masks
    losses: Losses
    optimizer: Optimizer
    schedules: Schedules
    log_every: int

    @staticmethod
    def of(stage: Pretrain | HighRes | Distill) -> "Recipe":
        """Raises UserError when the section has open fields (it was not resolved)."""
        names = ("data", "steps", "global_batch", "crops", "masks", "losses", "optimizer", "schedules", "log_every")
        values = {name: getattr(stage, name) for name in names}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise UserError(f"the stage is not resolved: {', '.join(missing)} are open; run it with dinoctl run")
        return Recipe(**values)
