"""Indexing: shards that exist already become a dataset where they lie; nothing is copied.

``dataset.json`` and the index may lie beside the shards or anywhere else. Every image is read once, for its checksum
and its size. Resumable and deterministic as packing is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from dinoctl.data.building import BadFile, Build, PackReport, too_many
from dinoctl.data.errors import DataError
from dinoctl.data.index_shard import ShardIndexer, Task
from dinoctl.data.inplace import Keys, ShardSet, open_set
from dinoctl.data.manifest import ShardInfo, canonical
from dinoctl.data.parallel import in_order
from dinoctl.data.storage import Storage, open_storage

Progress = Callable[[int, int], None]
"""Called with (bytes of shards dealt with, bytes of all)."""

_SPLIT = re.compile(r"[a-z0-9][a-z0-9_-]*")
_MOST_CLASSES = 2**20


def index(
    source: str,
    destination: str | Path | None = None,
    *,
    format: str = "auto",  # noqa: A002 - as of packing
    splits: Mapping[str, str] | None = None,
    keys: Keys | None = None,
    max_bad_rate: float = 1e-4,
    verify: bool = True,
    workers: int = 1,
    progress: Progress | None = None,
) -> PackReport:
    """Make a dataset of the shards below ``source``, beside them or in ``destination``.

    ``splits`` gives a pattern of shard paths by split name; by default folders called train, val, ... are splits and
    everything else is ``train``. ``verify`` decodes every image; what cannot be used is listed in ``bad.jsonl``.

    Raises:
        DataError: no shards that can be used, a damaged one, more than ``max_bad_rate`` of the samples unreadable, or
            another dataset in the destination.
        StorageError: source or destination failed. Run again to go on.
    """
    origin = open_storage(source)
    storage = origin if destination is None else open_storage(destination)
    keys = keys or Keys()
    found = open_set(origin, format, keys, _checked(splits or {}))
    tasks = _tasks(found)
    root = None if storage.uri == origin.uri else origin.uri
    settings = {"keys": keys, "splits": dict(splits or {}), "verify": verify, "root": root}
    build = Build(storage, _fingerprint(found, settings), {task.shard.split: 0 for task in tasks}, in_place=True)
    done = build.finished()
    if done is not None:
        return done
    build.begin()
    return _build(build, origin, tasks, root, max_bad_rate, verify, workers, progress or _silent)


def _checked(splits: Mapping[str, str]) -> Mapping[str, str]:
    odd = [name for name in splits if not _SPLIT.fullmatch(name)]
    if odd:
        raise DataError(f"split {odd[0]!r}: use lower-case letters, digits, '-' and '_'")
    return splits


def _tasks(found: ShardSet) -> list[Task]:
    """By split, then path; numbered within the split."""
    ordered = sorted(zip(found.shards, found.layouts, strict=True), key=lambda pair: (pair[0].split, pair[0].path))
    counts: dict[str, int] = {}
    tasks = []
    for shard, layout in ordered:
        number = counts.get(shard.split, 0)
        counts[shard.split] = number + 1
        tasks.append(Task(shard, number, layout))
    return tasks


def _fingerprint(found: ShardSet, settings: Mapping[str, object]) -> str:
    state = hashlib.sha256(canonical(settings))
    for shard in sorted(found.shards):
        state.update(canonical(shard))
    return state.hexdigest()


def _build(
    build: Build,
    origin: Storage,
    tasks: list[Task],
    root: str | None,
    max_bad_rate: float,
    verify: bool,
    workers: int,
    progress: Progress,
) -> PackReport:
    names = sorted({task.shard.split for task in tasks})
    shards: dict[str, list[ShardInfo]] = {name: [] for name in names}
    bad: list[BadFile] = []
    labels = _Labels()
    done, total, samples = 0, sum(task.shard.size for task in tasks), 0
    progress(done, total)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(build.writer()) for name in names}
        results = in_order(ShardIndexer, (origin.uri, build.storage.uri, verify), tasks, workers)
        for task, packed in stack.enter_context(closing(results)):
            numbers = labels.of(packed.labels)
            rows = [row._replace(label=number) for row, number in zip(packed.rows, numbers, strict=True)]
            writers[task.shard.split].add(rows)
            shards[task.shard.split].append(packed.shard)
            bad += packed.bad
            samples += len(rows) + len(packed.bad)
            done += task.shard.size
            progress(done, total)
        _check_rate(build, bad, samples, max_bad_rate)
        numbers, classes = labels.final()
        for writer in writers.values():
            writer.relabel(numbers)
        made = {name: build.write_index(name, writer) for name, writer in writers.items()}
    return build.finish({name: build.info(name, made[name], shards[name], classes, root) for name in names}, bad)


class _Labels:
    """Labels as they come, numbered for the time being; what they are called is known when all have come."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, texts: list[str | None]) -> list[int]:
        """Provisional numbers; -1 for none."""
        return [-1 if text is None else self._known.setdefault(text, len(self._known)) for text in texts]

    def final(self) -> tuple[list[int], list[str] | None]:
        """The number of each provisional number, and the classes: whole numbers stay, names are sorted."""
        texts = list(self._known)
        if not texts:
            return [], None
        if all(re.fullmatch(r"-?\d{1,9}", text) for text in texts):
            numbers = [max(int(text), -1) for text in texts]
            most = max(numbers)
            return numbers, [str(number) for number in range(most + 1)] if 0 <= most < _MOST_CLASSES else None
        classes = sorted(texts)
        places = {name: number for number, name in enumerate(classes)}
        return [places[text] for text in texts], classes


def _check_rate(build: Build, bad: list[BadFile], samples: int, max_bad_rate: float) -> None:
    if not samples:
        raise DataError("not one sample in the shards; check --format and the path")
    if len(bad) <= max_bad_rate * samples and len(bad) < samples:
        return
    build.write_bad(bad)
    what = too_many(bad, f"{samples} samples", f"the allowed rate {max_bad_rate:g}", build.storage.uri)
    raise DataError(f"{what}; mend the shards or raise --max-bad-rate, what is done is kept")


def _silent(done: int, total: int) -> None:
    """No progress wanted."""
