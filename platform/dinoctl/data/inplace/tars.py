"""WebDataset tars: members of one name up to its first dot are a sample; its image is used, its label if it has one."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from dinoctl.data.building import BadFile
from dinoctl.data.errors import DataError
from dinoctl.data.inplace.base import SUFFIXES, Found, Shard, whole
from dinoctl.data.inplace.window import Window, WindowFile
from dinoctl.data.listing import listed
from dinoctl.data.storage import Storage

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_USUAL_SPLITS = {"train", "val", "valid", "validation", "test"}
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")

Members = dict[str, tuple[int, int]]
"""Suffix to offset and length."""


def find(storage: Storage) -> list[Shard]:
    """The tars below a root. Folders that are called like splits are splits, if all tars lie in such folders."""
    found = [one for one in listed(storage) if one.key.lower().endswith(".tar")]
    folders = {one.key.split("/")[0] if "/" in one.key else "" for one in found}
    apart = folders <= _USUAL_SPLITS
    return [Shard(*one, split=one.key.split("/")[0] if apart else "train") for one in found]


class Tars:
    """Labels come from ``.cls``, or from ``label_key`` of ``.json``; with ``labels`` False there are none."""

    def __init__(self, label_key: str | None, *, labels: bool) -> None:
        self._label_key, self._labels = label_key, labels

    def samples(self, file: Window, path: str) -> Iterator[Found | BadFile]:
        """See `Layout.samples`."""
        key, members = "", Members()
        for name, offset, length in _members(file):
            matched = _NAME.fullmatch(name)
            if matched is None:
                continue  # a hidden file, or one without a suffix
            if matched[1] != key:
                if members:
                    yield self._sample(file, path, key, members)
                key, members = matched[1], {}
            members[matched[2].lower()] = (offset, length)
        if members:
            yield self._sample(file, path, key, members)

    def _sample(self, file: Window, path: str, key: str, members: Members) -> Found | BadFile:
        images = [members[suffix] for suffix in members if suffix in SUFFIXES]
        if len(images) != 1:
            kinds = ", ".join(f".{suffix}" for suffix in members)
            return BadFile(f"{path}#{key}", f"{len(images)} images among its members ({kinds})")
        return Found(key, *images[0], self._label(file, members))

    def _label(self, file: Window, members: Members) -> str | None:
        if not self._labels:
            return None
        if self._label_key is None:
            return _text(file, members["cls"]) if "cls" in members else None
        if "json" not in members:
            return None
        try:
            content: Any = json.loads(_text(file, members["json"]))
        except ValueError:
            return None
        value = content.get(self._label_key) if isinstance(content, dict) else None
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _text(file: Window, place: tuple[int, int]) -> str:
    offset, length = place
    return whole(file, offset, offset + length, "a member").decode("utf-8", "replace").strip()


def _members(file: Window) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of every plain file in a tar; `tarfile` alone would take damage for the end."""
    if file.read(0, 6).startswith(_COMPRESSED):
        raise DataError(f"{file.place}: is compressed; unpack it to a plain .tar (its images hardly shrink anyway)")
    try:
        with tarfile.open(fileobj=WindowFile(file), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps them all
                if member.isreg() and not member.issparse():
                    whole_to = member.offset_data + member.size
                    if whole_to > file.size:
                        raise DataError(f"{file.place}: is cut off in {member.name}; fetch it again or remove it")
                    yield member.name, member.offset_data, member.size
            end = archive.offset
    except tarfile.TarError as error:
        raise DataError(f"{file.place}: is not a whole tar file ({error}); fetch it again or remove it") from error
    if file.read(end, end + tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        how = "is damaged at" if end < file.size else "is cut off (no end mark) at"
        raise DataError(f"{file.place}: {how} byte {end}; fetch it again or remove it")
