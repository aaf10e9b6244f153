"""One decision's inputs in one value, handed from rule to rule, each time with a status a little further on."""

from dataclasses import dataclass, replace
from typing import Any

from dinoctl.lifecycle.enums import AttemptState, Phase
from dinoctl.lifecycle.types import Attempt, Execution, Job, Observed, Outcome, Reason, Status


@dataclass(frozen=True, slots=True)
class Scene:
    """The four arguments of ``decide``, and what can be told from them together."""

    job: Job
    status: Status
    observed: Observed
    now: float

    def to(self, **changes: Any) -> "Scene":
        """The same scene with parts of the status replaced."""
        return replace(self, status=replace(self.status, **changes))

    def with_attempt(self, attempt: Attempt) -> "Scene":
        """The same scene with this attempt in place of the one with its number."""
        return self.to(attempts=tuple(attempt if a.number == attempt.number else a for a in self.status.attempts))

    def ended(self, complete: bool, reason: Reason, message: str) -> "Scene":
        """The first outcome stands."""
        return self if self.status.outcome else self.to(outcome=Outcome(complete, reason, message))

    @property
    def phase(self) -> Phase:
        """What is seen of the live attempt."""
        live = self.status.live
        return self.observed.phase(live.number) if live else Phase.ABSENT

    @property
    def respecified(self) -> bool:
        """The document changed since the status was begun: only an explicit restart goes on from here."""
        return self.job.spec_hash != self.status.spec_hash

    @property
    def strays(self) -> tuple[Execution, ...]:
        """Executions that are alive without being the live attempt: late starts, or the scheduler's own restarts."""
        live = self.status.live
        return tuple(e for e in self.observed.executions if e.alive and not (live and e.attempt == live.number))

    @property
    def given_up(self) -> bool:
        """The live attempt was told to stop so long ago that suspend and delete no longer wait to see it end."""
        live = self.status.live
        if live is None or live.state is not AttemptState.STOPPING or live.stop_at is None:
            return False
        return self.now - live.stop_at >= self.job.patience.give_up_s

    @property
    def at_rest(self) -> bool:
        """No attempt is live, or none that is still waited for."""
        return self.status.live is None or self.given_up
