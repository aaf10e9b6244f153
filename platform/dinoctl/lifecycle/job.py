"""What the user asked for, as far as the lifecycle cares."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """How many failures of each kind are followed by another attempt. One more, and the job has failed."""

    infrastructure: int = 20
    application: int = 2


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before a retry.

    It doubles from ``base_s`` to ``cap_s`` while attempts commit nothing; a share of up to ``jitter`` is taken off.
    """

    base_s: float = 10.0
    cap_s: float = 600.0
    jitter: float = 0.25


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stop may take before it is forced, and before suspend or delete end without having seen it."""

    force_s: float = 180.0
    give_up_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Job:
    """One document. ``gated``: evidence is needed to be complete; ``promotes``: and a passed gate gives an alias."""

    name: str
    spec_hash: str
    parents: tuple[str, ...] = ()
    gated: bool = False
    promotes: bool = False
    suspend: bool = False
    delete: bool = False  # deletion, or `dinoctl cancel`
    retries: Retries = Retries()
    deadline_s: float | None = None  # from the first attempt on, without the time spent suspended
    backoff: Backoff = Backoff()
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        if self.promotes and not self.gated:
            raise ValueError(f"job {self.name}: promotes without a gate; nothing is promoted without evidence")
