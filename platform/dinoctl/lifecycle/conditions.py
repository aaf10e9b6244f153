"""The status's conditions: all eleven, always in the same order, with a transition time that moves only on a flip."""

from dinoctl.lifecycle.enums import ConditionType, Reason, Truth
from dinoctl.lifecycle.facets import FACETS
from dinoctl.lifecycle.parents import BLOCKING
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.types import Condition, Finding, Status


def report(scene: Scene) -> tuple[Condition, ...]:
    """The conditions after this round."""
    return tuple(_merge(kind, facet(scene), scene) for kind, facet in FACETS.items())


def settled(status: Status) -> bool:
    """Nothing more happens until somebody acts: ended, suspended, changed, or held up by a parent for good."""
    if status.outcome or is_true(status, ConditionType.SUSPENDED):
        return True
    if status.live or is_true(status, ConditionType.EVALUATED):
        return is_false(status, ConditionType.VALIDATED) and not status.live
    return is_false(status, ConditionType.VALIDATED) or blocked(status)


def blocked(status: Status) -> bool:
    """A parent is missing, failed, suspended, changed, or blocked itself."""
    ready = status.condition(ConditionType.PARENTS_READY)
    return bool(ready and ready.status is Truth.FALSE and ready.reason in BLOCKING)


def is_true(status: Status, kind: ConditionType) -> bool:
    """The condition is there and says True."""
    condition = status.condition(kind)
    return bool(condition and condition.status is Truth.TRUE)


def is_false(status: Status, kind: ConditionType) -> bool:
    """The condition is there and says False; Unknown is not False."""
    condition = status.condition(kind)
    return bool(condition and condition.status is Truth.FALSE)


def reason(status: Status, kind: ConditionType) -> Reason | None:
    """The condition's reason, if it is there."""
    condition = status.condition(kind)
    return condition.reason if condition else None


def _merge(kind: ConditionType, finding: Finding, scene: Scene) -> Condition:
    last = scene.status.condition(kind)
    at = last.last_transition if last and last.status is finding.truth else scene.now
    return Condition(kind, finding.truth, finding.reason, finding.message, at)
