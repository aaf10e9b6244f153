"""What a Ray Train worker is told beside its work: that its node will go away, and SIGTERM.

A module of its own, because what Ray runs in a worker must be importable there: the worker's own module is
``__main__``, whose functions travel by value and would each have their own globals.
"""

import time
from typing import Any

from ray import train
from ray.train.torch import TorchConfig

from dinoctl.training.stopping import Notice, watch_sigterm


def preemption_notice() -> Notice | None:
    """What Ray said of this node's end (Ray 2.60+; older ones say nothing).

    Ray's own question is a barrier of all workers through an actor. Every rank has the answer already, and our ranks
    agree among themselves, so it is taken from where it lies; should that place move, the barrier is what is left.
    """
    public = getattr(train, "get_preemption_info", None)
    if public is None:
        return None
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        info = get_train_context().preemption_context.preemption_info
    except (ImportError, AttributeError):
        info = public()
    if info is None:
        return None
    deadline = None if info.deadline_ms is None else info.deadline_ms / 1000
    return Notice(_first_heard(), preempted=True, deadline=deadline)


_heard: list[float] = []


def _first_heard() -> float:
    if not _heard:
        _heard.append(time.time())
    return _heard[0]


def group_config(backend: str) -> TorchConfig:
    """Ray's process group, and SIGTERM to one of its workers as a notice: it would end that one at once otherwise."""
    return _Watched(backend=backend)


class _Watched(TorchConfig):
    @property
    def backend_cls(self) -> Any:
        base: Any = super().backend_cls

        class Backend(base):  # type: ignore[misc]
            def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
                super().on_training_start(worker_group, backend_config)
                worker_group.execute(watch_sigterm)  # in each worker's main thread, where signals arrive

        return Backend
