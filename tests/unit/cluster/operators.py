"""The operator of the tests: reconciles every job until nothing happens any more."""

from collections.abc import Callable
from typing import Any

from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.reconcile import Reconciler
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.spec.profile import OperatorConfig
from support.kube.memory import Call, MemoryApi
from support.kube.world import Live, World

TRAIN: dict[str, Any] = {
    "pretrain": {
        "data": {"source": "s3://bucket/digits"},
        "steps": 100,
        "globalBatch": 8,
        "model": {"arch": "vit_small"},
    },
    "compute": {"gpusPerWorker": 0, "engine": {"name": "ddp"}, "precision": "fp32"},
}
GATED = {**TRAIN, "gate": {"min": 0.5, "dataset": "s3://bucket/digits", "promote": {"model": "digits"}}}


class Operator:
    """One process. ``hook`` sees its requests."""

    def __init__(
        self,
        world: World,
        hook: Callable[[Call], None] | None = None,
        view: Live | None = None,
        config: OperatorConfig | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.world, self.view = world, view or Live(world.server)
        self.api = MemoryApi(world.server, hook)
        self.reconciler = Reconciler(
            self.api,
            self.view,
            config or world.config(),
            clock=clock or (lambda: world.now),
            tracking=world.registry.at,  # type: ignore[arg-type]
        )
        self.errors: list[ApiError] = []

    def look(self) -> None:
        """At every job, once. Failed requests are tried again at the next look."""
        for key in sorted(key for key in list(self.world.server.objects) if key[0] == DINOJOBS):
            try:
                self.reconciler.reconcile(key[1:])
            except ApiError as error:
                self.errors.append(error)

    def close(self) -> None:
        self.reconciler.close()


def settle(
    world: World, operator: Operator, *names: str, rounds: int = 80, ends: tuple[str, ...] = ("Complete",)
) -> None:
    """Until the jobs have ended."""
    for _ in range(rounds):
        operator.look()
        if all(world.state(name) in ends for name in names):
            for _ in range(3):
                operator.look()
            return
        world.tick()
    raise AssertionError({name: world.job(name).get("status") for name in names})
