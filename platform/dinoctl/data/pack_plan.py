"""What goes where: which samples are held out, in which order the rest is packed, where shards are cut.

The plan depends on the source's content and the seed only, so that an interrupted packing goes on with the same plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from dinoctl.data.building import BadFile
from dinoctl.data.errors import DataError
from dinoctl.data.keyed import text_digest
from dinoctl.data.manifest import canonical
from dinoctl.data.pack_shard import Task, check
from dinoctl.data.sources import Source, SourceItem

_THREADS = 16  # decoding leaves the interpreter lock, and a bucket's latency has to be hidden


@dataclass(frozen=True)
class Plan:
    """Tasks in order, what was found bad while choosing held-out samples, and an identity of the whole."""

    tasks: list[Task]
    bad: list[BadFile]
    splits: list[str]
    samples: int
    """Candidates: good and bad."""
    fingerprint: str


def make_plan(source: Source, splits: Mapping[str, int | None], shard_bytes: int, verify: bool, seed: int) -> Plan:
    """Plan the packing of a source; reads and checks the held-out samples.

    Raises:
        DataError: two files with one name, or fewer good samples than are to be held out.
    """
    items = list(source)
    _check_names(items)
    rest, held_out = _counts(splits)
    keyed = sorted(items, key=lambda item: text_digest(seed, "split", item.key))
    chosen, bad, left = _hold_out(keyed, held_out, verify)
    if source.sequential:
        kept = {item.key for item in left}
        left = [item for item in items if item.key in kept]
    chosen[rest] = left
    tasks = [Task(*numbered) for name in sorted(chosen) for numbered in _cut(name, chosen[name], shard_bytes)]
    settings = {"splits": dict(splits), "shard_bytes": shard_bytes, "verify": verify, "seed": seed}
    return Plan(tasks, bad, sorted(chosen), len(items), _fingerprint(items, settings))


def _counts(splits: Mapping[str, int | None]) -> tuple[str, dict[str, int]]:
    """Name of the split that takes the rest, and the sizes of the others."""
    rest = [name for name, count in splits.items() if count is None] or ["train"]
    held_out = {name: count for name, count in sorted(splits.items()) if count is not None}
    if len(rest) > 1 or rest[0] in held_out:
        raise DataError(f"splits {dict(splits)}: exactly one split takes the rest; give the others a count")
    return rest[0], held_out


def _hold_out(
    keyed: list[SourceItem], counts: dict[str, int], verify: bool
) -> tuple[dict[str, list[SourceItem]], list[BadFile], list[SourceItem]]:
    """The first good samples in keyed order go to the held-out splits: independent of the source's order."""
    bad: list[BadFile] = []
    stream = iter(keyed)
    chosen = {name: _take(stream, count, verify, bad) for name, count in counts.items()}
    for name, count in counts.items():
        if len(chosen[name]) < count:
            raise DataError(f"split {name!r} asks for {count} samples, but there are {len(chosen[name])} left for it")
    return chosen, bad, list(stream)


def _take(stream: Iterator[SourceItem], count: int, verify: bool, bad: list[BadFile]) -> list[SourceItem]:
    taken: list[SourceItem] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        while candidates := list(islice(stream, count - len(taken))):
            reasons = pool.map(lambda item: _fault(item, verify), candidates)
            for item, reason in zip(candidates, reasons, strict=True):
                if reason is None:
                    taken.append(item)
                else:
                    bad.append(BadFile(item.path, reason))
    return taken


def _fault(item: SourceItem, verify: bool) -> str | None:
    try:
        check(item, verify)
    except DataError as error:
        return str(error)
    return None


def _cut(split: str, items: list[SourceItem], shard_bytes: int) -> Iterator[tuple[str, int, list[SourceItem]]]:
    """Shards of at least ``shard_bytes`` source bytes, the last one smaller."""
    shard: list[SourceItem] = []
    number = size = 0
    for item in items:
        shard.append(item)
        size += item.size
        if size >= shard_bytes:
            yield split, number, shard
            shard, number, size = [], number + 1, 0
    if shard:
        yield split, number, shard


def _check_names(items: Iterable[SourceItem]) -> None:
    seen: dict[str, str] = {}
    for item in items:
        if item.key in seen:
            raise DataError(f"{item.path} and {seen[item.key]} would have the same name in a shard; rename one of them")
        seen[item.key] = item.path


def _fingerprint(items: Iterable[SourceItem], settings: Mapping[str, object]) -> str:
    state = hashlib.sha256(canonical(settings))
    for item in items:
        state.update(canonical([item.path, item.key, item.suffix, item.label, item.size]))
    return state.hexdigest()
