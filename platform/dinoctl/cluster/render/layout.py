"""Which pods a job's ranks lie in, and what these pods ask for.

Ranks fill pools in order and pods of ``workersPerPod``; what doesn't fill a pod is a group of its own, because all pods
of a group are alike.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from dinoctl.spec.compute import Compute
from dinoctl.spec.job import JobSpec
from dinoctl.spec.profile import Pool, Profile
from dinoctl.spec.stages import Pack

MAX_GROUPS = 6
"""Of Kueue 0.14, whose workloads hold 8 pod sets; the head and the submitter are two of them."""
_ONLY = Pool(name="workers")


class Refused(ValueError):
    """A job that can't run with its profile: one line with what would be right. Trying again changes nothing."""


@dataclass(frozen=True)
class Group:
    """``pods`` pods of ``ranks`` ranks each, on nodes of ``pool``."""

    name: str
    pods: int
    ranks: int
    pool: Pool


def check(spec: JobSpec, profile: Profile) -> None:
    """Raises Refused when ``profile`` has no place for the job."""
    groups(spec, profile)


def groups(spec: JobSpec, profile: Profile) -> tuple[Group, ...]:
    """Worker groups; none when the stage is the driver's own work, in the head's pod."""
    workers, most = spec.compute.workers, profile.max_workers
    if most is not None and workers > most:
        raise Refused(f"compute.workers is {workers}, and the profile allows {most}; ask for at most {most}")
    if alone(spec):
        return ()
    found = tuple(_filled(workers, profile))
    placed = sum(group.pods * group.ranks for group in found)
    if placed < workers:
        raise Refused(f"compute.workers is {workers}, and the profile's pools hold {placed}; ask for at most {placed}")
    if len(found) > MAX_GROUPS:
        raise Refused(f"the job needs {len(found)} worker groups, and {MAX_GROUPS} is the most; use fewer pools")
    return found


def _filled(workers: int, profile: Profile) -> Iterator[Group]:
    left, each = workers, profile.workers_per_pod
    for pool in profile.pools or [_ONLY]:
        here = min(left, pool.max_workers or left)
        left -= here
        pods, rest = divmod(here, each)
        if pods:
            yield Group(pool.name, pods, each, pool)
        if rest:
            yield Group(f"{pool.name}-rest" if pods else pool.name, 1, rest, pool)


def alone(spec: JobSpec) -> bool:
    """Whether the driver does the work itself, without a group of workers and without accelerators."""
    return spec.pack is not None


def rank_cpus(compute: Compute, ranks: int) -> Decimal:
    """Cores that ``ranks`` ranks need."""
    return Decimal(str(compute.cpus_per_worker)) * ranks


def cores(spec: JobSpec) -> Decimal:
    """What the driver needs that does the work itself: a core for each of its processes at least."""
    processes = spec.stage.workers if isinstance(spec.stage, Pack) else 0
    return max(rank_cpus(spec.compute, spec.compute.workers), Decimal(processes))


def quantity_times(text: str, count: int) -> str:
    """``16Gi`` three times is ``48Gi``."""
    number, suffix = _split(text)
    return f"{(number * count).normalize():f}{suffix}"


def cpu_quantity(amount: Decimal) -> str:
    """Cores as Kubernetes writes them: whole, or thousandths, rounded up."""
    thousandths = math.ceil(amount * 1000)
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def parse(text: str) -> Decimal:
    """A quantity as a number of its unit (cores, bytes)."""
    number, suffix = _split(text)
    return number * _SUFFIXES[suffix]


_DECIMAL, _BINARY = "kMGTPE", ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(_DECIMAL, 1)},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(_BINARY, 1)},
}


def _split(text: str) -> tuple[Decimal, str]:
    match = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", text)
    assert match is not None  # noqa: S101 - the profile's pattern
    return Decimal(match[1]), match[2]
