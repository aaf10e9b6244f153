"""A copy of objects of one kind that follows the API server: one list, then a watch that is resumed after every drop.

There is no list on a timer. A watch that says nothing for longer than the server's bookmarks take is given up and
resumed (``api.SILENCE``); only a resourceVersion that the server no longer knows (410) makes a new list. Objects are
kept as trimmed JSON text: a tenth of the memory of dicts, and nobody can change them by accident.
"""

import json
import logging
import random
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence

from dinoctl.cluster.errors import ApiError, Forbidden, Gone, NotFound
from dinoctl.cluster.protocol import Api, Keep, Object, Watch
from dinoctl.cluster.resources import Resource
from dinoctl.spec import names

_log = logging.getLogger("dinoctl.operator")
_TOMBSTONES = 1000
Name = tuple[str, str]
"""Namespace and name."""


def job_of(body: Object) -> str | None:
    """The job that an object belongs to, by its label."""
    label: str | None = (body["metadata"].get("labels") or {}).get(names.JOB)
    return label


class Cache:
    """Thread-safe. ``changed`` is called with each object that is new, changed or gone, after the copy holds it;
    ``observed`` with those that this process has written itself; ``restarted`` each time that a watch is begun again.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        namespaces: Sequence[str | None],
        changed: Callable[[Object], None],
        *,
        labels: str = "",
        trim: Keep = lambda body: body,
        index: Callable[[Object], str | None] = job_of,
        observed: Callable[[Object], None] | None = None,
        restarted: Callable[[str], None] | None = None,
        patience: float = 30.0,
    ) -> None:
        self.resource = resource
        self._api, self._namespaces, self._labels, self._trim, self._index = api, tuple(namespaces), labels, trim, index
        self._changed, self._observed, self._restarted, self._patience = changed, observed, restarted, patience
        self._lock = threading.RLock()
        self._texts: dict[Name, tuple[int, str]] = {}
        self._by: defaultdict[Name, set[str]] = defaultdict(set)
        self._indexed: dict[Name, Name] = {}
        self._buried: OrderedDict[Name, int] = OrderedDict()
        self._followers = [_Follower(self, namespace) for namespace in self._namespaces]

    def get(self, namespace: str, name: str) -> Object | None:
        """An object, as a copy of one's own."""
        with self._lock:
            entry = self._texts.get((namespace, name))
        return None if entry is None else json.loads(entry[1])

    def of(self, namespace: str, value: str) -> list[Object]:
        """All objects whose index is ``value``: those of a job."""
        with self._lock:
            texts = [self._texts[(namespace, name)][1] for name in sorted(self._by.get((namespace, value), ()))]
        return [json.loads(text) for text in texts]

    def names(self) -> list[Name]:
        """Of all objects."""
        with self._lock:
            return list(self._texts)

    def __contains__(self, name: Name) -> bool:
        with self._lock:
            return name in self._texts

    def __len__(self) -> int:
        return len(self._texts)

    def observe(self, body: Object) -> None:
        """The answer of an own write, so that it is read back at once. Its echo is no change."""
        self._store(body, self._observed)

    @property
    def synced(self) -> bool:
        """Every namespace was listed once; of a kind that the server doesn't know, there is nothing to list."""
        return all(follower.synced for follower in self._followers)

    @property
    def unlisted(self) -> dict[str, bool]:
        """Namespaces that were never listed, and whether that is because the server refuses it."""
        return {str(follower.namespace): follower.refused for follower in self._followers if not follower.synced}

    @property
    def missing(self) -> bool:
        """The API server doesn't know this kind."""
        return any(follower.missing for follower in self._followers)

    @property
    def trouble(self) -> str:
        """Why it doesn't follow now; empty when it does."""
        return next((follower.trouble for follower in self._followers if follower.trouble), "")

    @property
    def alive(self) -> bool:
        """Its threads run, and none has been silent for longer than a watch may last."""
        return all(follower.alive for follower in self._followers)

    def start(self) -> None:
        """Begins to follow."""
        for follower in self._followers:
            follower.thread.start()

    def stop(self) -> None:
        """Ends watches and threads."""
        for follower in self._followers:
            follower.stop()
        for follower in self._followers:
            follower.thread.join(5.0)

    def _store(self, body: Object, tell: Callable[[Object], None] | None) -> None:
        """Versions are numbers that grow (etcd's revisions), so of two copies of an object the newer one is known. An
        event that is older than the copy still counts as a change: whoever wrote the newer one may not have seen it.
        """
        body = self._trim(body)
        meta = body["metadata"]
        name, version = (meta.get("namespace") or "", meta["name"]), int(meta["resourceVersion"])
        with self._lock:
            known = self._texts.get(name, (0, ""))[0]
            if version == known or version <= self._buried.get(name, 0):
                return
            if version > known:
                self._texts[name] = (version, json.dumps(body, separators=(",", ":")))
                self._reindex(name, self._index(body))
        if tell is not None:
            tell(body)

    def _remove(self, body: Object) -> None:
        body = self._trim(body)
        meta = body["metadata"]
        name = (meta.get("namespace") or "", meta["name"])
        version = int(meta["resourceVersion"])
        with self._lock:
            self._buried[name] = version
            while len(self._buried) > _TOMBSTONES:
                self._buried.popitem(last=False)
            if self._texts.get(name, (0, ""))[0] <= version:  # else it is there again already
                self._texts.pop(name, None)
                self._reindex(name, None)
        self._changed(body)

    def _reindex(self, name: Name, value: str | None) -> None:
        old = self._indexed.pop(name, None)
        if old is not None:
            self._by[old].discard(name[1])
            if not self._by[old]:
                del self._by[old]
        if value is not None:
            self._indexed[name] = (name[0], value)
            self._by[(name[0], value)].add(name[1])

    def _replace(self, bodies: list[Object], namespace: str | None) -> None:
        """A new list: what is not in it is gone."""
        for body in bodies:
            self._store(body, self._changed)
        present = {(body["metadata"].get("namespace") or "", body["metadata"]["name"]) for body in bodies}
        with self._lock:
            gone = [name for name in self._texts if namespace in (None, name[0]) and name not in present]
            lost = [json.loads(self._texts[name][1]) for name in gone]
        for body in lost:
            self._remove(body)


class _Follower:
    """The thread that follows one namespace."""

    def __init__(self, cache: Cache, namespace: str | None) -> None:
        self.cache, self.namespace = cache, namespace
        self.synced, self.missing, self.refused, self.trouble = False, False, False, ""
        self.heard = time.monotonic()
        self.thread = threading.Thread(target=self._run, name=f"watch-{cache.resource.plural}", daemon=True)
        self._since, self._failures = "", 0
        self._watch: Watch | None = None
        self._stopping = threading.Event()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive() and time.monotonic() - self.heard < 900.0

    def stop(self) -> None:
        self._stopping.set()
        watch = self._watch
        if watch is not None:
            watch.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.heard = time.monotonic()
            try:
                if not self._since:
                    self._list()
                self._follow()
            except Gone:
                self._since = ""
                self._again("expired", 0.0)
            except NotFound as error:
                self._absent(error)
            except ApiError as error:
                if str(error) != self.trouble:
                    _log.warning("%s", error, extra={"reason": "WatchFailed"})
                self.trouble, self.refused = str(error), isinstance(error, Forbidden) and error.refused
                self._again("error", self._delay())
            except Exception as error:  # a bug in a handler must not end the watch unseen
                _log.exception("a change of %s could not be handled", self.cache.resource.plural)
                self.trouble, self._since = f"{type(error).__name__}: {error}", ""
                self._again("bug", self._delay())

    def _list(self) -> None:
        cache = self.cache
        bodies, since = cache._api.list(cache.resource, self.namespace, labels=cache._labels, keep=cache._trim)
        cache._replace(bodies, self.namespace)
        self._since, self.synced, self.missing = since, True, False

    def _follow(self) -> None:
        cache = self.cache
        watch = cache._api.watch(cache.resource, self.namespace, labels=cache._labels, since=self._since)
        self._watch, self.trouble = watch, ""
        try:
            for kind, body in watch:
                self.heard, self._failures = time.monotonic(), 0
                if kind == "DELETED":
                    cache._remove(body)
                elif kind != "BOOKMARK":
                    cache._store(body, cache._changed)
                self._since = body["metadata"]["resourceVersion"]
                if self._stopping.is_set():
                    return
        finally:
            self._watch = None
            watch.close()
        self._again("ended", self._delay() * 0.1)

    def _absent(self, error: NotFound) -> None:
        if not error.missing_kind:
            self.trouble = str(error)
        elif not self.missing:
            _log.warning("%s are not known to the API server; is their CRD installed?", self.cache.resource.plural)
            self.cache._replace([], self.namespace)
            self.missing = self.synced = True
        self._since = ""
        self._stopping.wait(self.cache._patience * random.uniform(0.5, 1.0))  # noqa: S311

    def _again(self, reason: str, delay: float) -> None:
        if not self._stopping.is_set():
            if self.cache._restarted is not None:
                self.cache._restarted(reason)
            self._stopping.wait(delay)

    def _delay(self) -> float:
        self._failures += 1
        grown = min(self.cache._patience, 0.2 * 2.0 ** min(self._failures, 20))
        return grown * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
