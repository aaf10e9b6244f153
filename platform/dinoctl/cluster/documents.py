"""DinoJob objects to jobs that can run, by the code that the command line uses.

An object may have got past the schema (an older client, an older schema), so everything here ends in a problem in
words, which becomes the condition ``Validated``. Parents are found among the objects of the namespace; one that is
missing is no problem of the document, the lifecycle waits for it.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import begun_life
from dinoctl.cluster.snapshot import Snapshot
from dinoctl.lifecycle.graph import find_cycle
from dinoctl.spec import names
from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.graph import check_references, parents
from dinoctl.spec.job import API_VERSION
from dinoctl.spec.load import LoadedJob, validate
from dinoctl.spec.resolve import ResolvedJob, resolve_one
from dinoctl.spec.yamldoc import YamlDoc

_SHOWN = 3
_FREE = ("policy", "suspend", "profile", "compute")
"""Sections that may change between attempts."""

Find = Callable[[str], Object | None]
Begun = Callable[[Object], Snapshot | None]
"""The snapshot of the life that an object has begun; None where it has not, or where the snapshot is lost."""


@dataclass(frozen=True)
class Reading:
    """A job as it is to run now, or a problem; and what its present life began with, if that is known."""

    job: ResolvedJob | None
    problem: str = ""
    begun: ResolvedJob | None = None


Fingerprint = tuple[Any, ...]
"""Of everything that a reading depends on."""


class Memo:
    """Readings: resolving costs milliseconds, and most looks find the same document.

    A full one drops any reading, not the oldest: jobs are looked at in turns, and of more jobs than there is room for
    the oldest reading is always the one that is wanted next.
    """

    def __init__(self, size: int = 4096) -> None:
        self._size, self._lock = size, threading.Lock()
        self._held: dict[Fingerprint, Reading] = {}
        self._order: list[Fingerprint] = []

    def get(self, of: Fingerprint) -> Reading | None:
        """What was read of the very same."""
        with self._lock:
            return self._held.get(of)

    def put(self, of: Fingerprint, reading: Reading) -> None:
        """Remembers it."""
        with self._lock:
            if of not in self._held:
                if len(self._order) < self._size:
                    self._order.append(of)
                else:
                    place = random.randrange(self._size)  # noqa: S311 - makes room
                    del self._held[self._order[place]]
                    self._order[place] = of
            self._held[of] = reading


class Documents:
    """Reads the objects of one namespace, for one look."""

    def __init__(self, find: Find, begun: Begun, memo: Memo) -> None:
        self._find, self._snapshot, self._memo = find, begun, memo
        self._lost = False

    def read(self, body: Object) -> Reading:
        """The job as it is to run now."""
        of = tuple(self._fingerprints(body, set()))
        reading = self._memo.get(of)
        if reading is None:
            reading = self._read(body, self._begun(body))
            if not self._lost:  # else it may be found again
                self._memo.put(of, reading)
        return reading

    def _begun(self, body: Object) -> Snapshot | None:
        found = self._snapshot(body)
        self._lost |= found is None and begun_life(body) is not None
        return found

    def _fingerprints(self, body: Object, seen: set[str]) -> Iterator[Fingerprint]:
        metadata = body["metadata"]
        seen.add(metadata["name"])
        labels = tuple(sorted((metadata.get("labels") or {}).items()))
        yield metadata["name"], metadata.get("uid"), metadata.get("generation"), begun_life(body), labels
        for name in parents_of(body):
            parent = None if name in seen else self._find(name)
            if parent is not None:
                yield from self._fingerprints(parent, seen)

    def _read(self, body: Object, snapshot: Snapshot | None) -> Reading:
        begun = snapshot.job if snapshot else None
        try:
            return Reading(self._current(body, snapshot), begun=begun)
        except SpecError as error:
            problem = "; ".join(_told(one) for one in error.problems[:_SHOWN])
            more = len(error.problems) - _SHOWN
            text = problem + (f" and {more} more" if more > 0 else "")
        except (RecursionError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            text = f"this document can't be read ({type(error).__name__}: {error}); write it again"
        return Reading(None, text, begun)

    def _current(self, body: Object, snapshot: Snapshot | None) -> ResolvedJob:
        if snapshot is None:
            return self._resolve(load_object(body))
        if body.get("spec") == snapshot.document:
            return snapshot.job
        new = self._resolve(load_object(body))
        old = self._resolve(load_object({**body, "spec": snapshot.document}))
        if new.spec_hash != old.spec_hash or old.spec_hash == snapshot.job.spec_hash:
            return new
        # The user changed nothing that decides the result, but this dinoctl resolves the document to another one.
        free = {name: getattr(new.spec, name) for name in _FREE}
        return replace(snapshot.job, spec=snapshot.job.spec.model_copy(update=free))

    def _resolve(self, loaded: LoadedJob) -> ResolvedJob:
        family = self._family(loaded)
        cycle = find_cycle({name: parents(one) for name, one in family.items()})
        if cycle and loaded.name in cycle:
            loop = " → ".join(_from(cycle, loaded.name))
            raise SpecError(
                [loaded.doc.problem((), f"jobs wait for each other: {loop}; remove one of these references")]
            )
        found: list[Problem] = []
        check_references(list(family.values()), found, complete=False)
        own = [problem for problem in found if problem.file == loaded.doc.file]
        if own:
            raise SpecError(own)
        known = {} if cycle else {name: job for name in parents(loaded) if (job := self._parent(name)) is not None}
        return replace(resolve_one(loaded, known), origins={})  # nobody asks an operator for them, and they are large

    def _parent(self, name: str) -> ResolvedJob | None:
        """As it runs, or would run; None when it is not there, or has a problem of its own."""
        body = self._find(name)
        if body is None:
            return None
        reading = self.read(body)
        return reading.begun or reading.job

    def _family(self, loaded: LoadedJob) -> Mapping[str, LoadedJob]:
        """The job and its ancestors, as far as they can be read."""
        family, rest = {loaded.name: loaded}, [loaded]
        while rest:
            for name in parents(rest.pop()):
                body = None if name in family else self._find(name)
                if body is None:
                    continue
                try:
                    family[name] = load_object(body)
                except SpecError:
                    continue
                rest.append(family[name])
        return family


def load_object(body: Object) -> LoadedJob:
    """A DinoJob object as if it had been read from a file.

    Raises:
        SpecError: with all problems.

    """
    metadata: Mapping[str, Any] = body["metadata"]
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if not _taken(key)}
    data: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": metadata["name"], "labels": labels},
        "spec": body.get("spec"),
    }
    problems: list[Problem] = []
    loaded = validate(YamlDoc(f"{names.PLURAL}/{metadata['name']}", data), problems)
    if loaded is None:
        raise SpecError(problems)
    return loaded


def parents_of(body: Object) -> tuple[str, ...]:
    """Names that a document refers to, without judging it: for the index by which a parent wakes its children."""
    return tuple(sorted(set(_references(body.get("spec"), 0))))


def _references(value: Any, depth: int) -> list[str]:
    if depth > 20:  # no valid document is nested that deep
        return []
    if isinstance(value, list):
        return [name for item in value for name in _references(item, depth + 1)]
    if not isinstance(value, dict):
        return []
    own = [value["job"]] if isinstance(value.get("job"), str) else []
    return own + [name for item in value.values() for name in _references(item, depth + 1)]


def _told(problem: Problem) -> str:
    return f"{problem.path}: {problem.message}" if problem.path else problem.message


def _from(cycle: list[str], name: str) -> list[str]:
    start = cycle.index(name)
    ring = cycle[:-1]
    return [*ring[start:], *ring[:start], name] if start < len(ring) else cycle


def _taken(label: str) -> bool:
    """Of tools and of dinoctl itself; they are no tags of a run."""
    return label.startswith(("dinoctl.", "mlflow."))
