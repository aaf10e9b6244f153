"""The operator of the tests: reconciles every job until nothing happens any more."""

from collections.abc import Callable
from typing import Any

from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.reconcile import Reconciler
from dinoctl.cluster.resources import DINOJOBS, EVENTS
from dinoctl.spec.profile import OperatorConfig
from support.kube.memory import Call, MemoryApi
from support.kube.world import SPACE, Live, World

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

HIGH: dict[str, Any] = {
    "highres": {"from": {"job": "a"}, "steps": 10, "data": {"source": "s3://bucket/digits"}},
    "compute": TRAIN["compute"],
}


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


def rounds(world: World, operator: Operator, count: int, seconds: float = 5.0) -> None:
    for _ in range(count):
        operator.look()
        world.tick(seconds)


def condition(world: World, name: str, kind: str) -> dict[str, Any]:
    return next(one for one in world.job(name)["status"]["conditions"] if one["type"] == kind)


def reasons(world: World) -> list[str]:
    return [body["reason"] for key, body in world.server.objects.items() if key[0] == EVENTS]


def attempts(world: World, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.job(name)["status"]["lifecycle"]["attempts"]
    return found


def gone(world: World, name: str = "a") -> bool:
    return (DINOJOBS, SPACE, name) not in world.server.objects


def begun(
    world: World,
    count: int = 0,
    spec: dict[str, Any] = TRAIN,
    hook: Callable[[Call], None] | None = None,
) -> Operator:
    """An operator that has had the job ``a`` for some rounds."""
    world.submit("a", spec)
    operator = Operator(world, hook)
    rounds(world, operator, count)
    return operator
