"""The stages, one file each; every file reads as its recipe, top to bottom."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinoctl.handover.attempt import Attempt
    from dinoctl.training.context import Context
    from dinoctl.training.loop import LoopResult


@dataclass(frozen=True)
class StageKind:
    """``distributed``: runs in a group of workers; else in one process without accelerators."""

    module: str
    distributed: bool

    def load(self) -> "Callable[[Attempt, Context], LoopResult]":
        """The stage's ``run``; collective over the worker group when distributed."""
        run: Callable[[Attempt, Context], LoopResult] = import_module(self.module).run
        return run


STAGES: dict[str, StageKind] = {
    "pack": StageKind("dinoctl.stages.pack", distributed=False),
    "pretrain": StageKind("dinoctl.stages.pretrain", distributed=True),
    "highres": StageKind("dinoctl.stages.highres", distributed=True),
    "distill": StageKind("dinoctl.stages.distill", distributed=True),
    "evaluate": StageKind("dinoctl.stages.evaluate", distributed=True),
}
