"""Where images to pack come from. One file per kind of source; `open_source` chooses."""

from collections.abc import Callable

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.sources.base import Source, SourceItem

__all__ = ["Source", "SourceItem", "open_source"]


def open_source(uri: str, format: str = "auto") -> Source:  # noqa: A002 - the name in the document
    """The source at a URI.

    ``format`` is ``folder`` (directory or bucket prefix of images), ``parquet`` (a file or a directory of them),
    ``builtin`` (``builtin://digits``) or ``auto``: decided by the URI's scheme and suffix.

    Raises:
        DataError: unknown format, or nothing usable is there.
        StorageError: the place cannot be reached.
    """
    kinds: dict[str, Callable[[str], Source]] = {"builtin": _builtin, "folder": _folder, "parquet": _parquet}
    kind = _guess(uri) if format == "auto" else format
    if kind not in kinds:
        raise DataError(f"{format!r} is not a source format; use auto, {', '.join(sorted(kinds))}")
    return kinds[kind](uri)


def _guess(uri: str) -> str:
    if uri.startswith("builtin://"):
        return "builtin"
    return "parquet" if uri.endswith((".parquet", ".parquet/")) or _holds_parquet(uri) else "folder"


def _holds_parquet(uri: str) -> bool:
    from dinoctl.data.storage import open_storage

    try:
        first = next(open_storage(uri).list(), "")
    except NotFoundError:
        return False  # let the folder source say what is wrong
    return first.endswith(".parquet")


def _builtin(uri: str) -> Source:
    from dinoctl.data.sources.digits import Digits

    if uri.rstrip("/") != "builtin://digits":
        raise DataError(f"{uri} is not a built-in dataset; there is builtin://digits")
    return Digits()


def _folder(uri: str) -> Source:
    from dinoctl.data.sources.folder import Folder

    return Folder(uri)


def _parquet(uri: str) -> Source:
    from dinoctl.data.sources.parquet import Parquet

    return Parquet(uri)
