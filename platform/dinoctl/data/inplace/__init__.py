"""Sets of shards that are used where they lie: WebDataset tars, MosaicML MDS, LitData. `open_set` chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.inplace import litdata, mds, tars
from dinoctl.data.inplace.base import Layout, Shard
from dinoctl.data.listing import Stored, listed
from dinoctl.data.storage import Storage

FORMATS = ("auto", "webdataset", "mds", "litdata")
_INDEX = "index.json"
_FIX = "use --format webdataset for tars, or move it elsewhere if it belongs to something else"


class Keys(NamedTuple):
    """What the user says of a sample's parts."""

    image: str | None = None
    """Column of the image; tars know it by its suffix."""
    label: str | None = None
    """Column of the label; in tars a key of the ``.json``, else the ``.cls`` counts."""
    labels: bool = True
    """False: the set has none that matter."""


class ShardSet(NamedTuple):
    """Shards, and the layout that each one has."""

    shards: list[Shard]
    layouts: list[Layout]


def open_set(storage: Storage, kind: str, keys: Keys, splits: Mapping[str, str]) -> ShardSet:
    """The shards below a storage. ``splits`` gives a pattern of paths by split name; without it folders decide.

    Raises:
        DataError: there are none, or none that can be indexed.
        StorageError: the place cannot be read.
    """
    if kind not in FORMATS:
        raise DataError(f"{kind!r} is not a format of shards; use {', '.join(FORMATS)}")
    root = storage.local_path("")
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: is not a directory; give the one that holds the shards")
    try:
        indexes = (
            [one for one in listed(storage) if PurePosixPath(one.key).name == _INDEX] if kind != "webdataset" else []
        )
        found = _indexed(storage, indexes, kind, keys) if indexes else _tars(storage, kind, keys)
    except NotFoundError as error:
        raise DataError(f"{error}; check the path") from error
    if not found.shards:
        raise DataError(
            f"{storage.uri}: no .tar there, and no {_INDEX} of MDS or LitData shards; check the path, or use "
            "dinoctl pack for files that are not in shards yet"
        )
    return _assigned(found, splits, storage.uri) if splits else found


def _tars(storage: Storage, kind: str, keys: Keys) -> ShardSet:
    shards = tars.find(storage) if kind in ("auto", "webdataset") else []
    layout = tars.Tars(keys.label, labels=keys.labels)
    return ShardSet(shards, [layout] * len(shards))


def _indexed(storage: Storage, indexes: list[Stored], kind: str, keys: Keys) -> ShardSet:
    """The sets of one or several ``index.json``; one in a folder is a split of the folder's name."""
    contents = [mds.read_json(storage.read(one.key), f"{storage.uri}/{one.key}") for one in indexes]
    if kind == "auto" and not any("shards" in content or "chunks" in content for content in contents):
        found = _tars(storage, kind, keys)  # beside which other tools, such as wids, keep an index.json too
        if found.shards:
            return found
    files = {one.key: one for one in listed(storage)}
    found = ShardSet([], [])
    for one, content in zip(indexes, contents, strict=True):
        place = f"{storage.uri}/{one.key}"
        names, layout = _read(content, place, kind, keys)
        folder = str(PurePosixPath(one.key).parent)
        for name in names:
            path = name if folder == "." else f"{folder}/{name}"
            if path not in files:
                raise DataError(f"{storage.uri}/{path}: is not there, though {place} names it; fetch it again")
            found.shards.append(Shard(*files[path], split="train" if folder == "." else folder.split("/")[0]))
            found.layouts.append(layout)
    return found


def _read(content: dict[str, Any], place: str, kind: str, keys: Keys) -> tuple[list[str], Layout]:
    module, layout = _format(content, place, kind)
    try:
        return module(content, place), layout(content, place, keys.image, keys.label, labels=keys.labels)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{place}: is damaged or of an unknown version ({error!r})") from error


def _format(content: dict[str, Any], place: str, kind: str) -> tuple[Callable[..., list[str]], Callable[..., Layout]]:
    if "shards" in content and kind in ("auto", "mds"):
        return mds.shards_of, mds.Mds
    if "chunks" in content and kind in ("auto", "litdata"):
        return litdata.shards_of, litdata.LitData
    wanted = "an MDS or LitData" if kind == "auto" else f"a {kind}"
    raise DataError(f"{place}: is not the index of {wanted} set; {_FIX}")


def _assigned(found: ShardSet, splits: Mapping[str, str], place: str) -> ShardSet:
    """Shards to splits by pattern; those that no pattern fits are left out."""
    chosen = ShardSet([], [])
    for name, pattern in splits.items():
        fit = [i for i, shard in enumerate(found.shards) if fnmatchcase(shard.path, pattern)]
        if not fit:
            raise DataError(f"split {name!r}: no shard below {place} fits {pattern!r}; one is {found.shards[0].path}")
        for i in fit:
            chosen.shards.append(found.shards[i]._replace(split=name))
            chosen.layouts.append(found.layouts[i])
    paths = [shard.path for shard in chosen.shards]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(f"{twice} fits several splits; make their patterns exclude each other")
    return chosen
