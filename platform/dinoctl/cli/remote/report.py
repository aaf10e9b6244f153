"""A post-mortem as a person reads it: what, where, why, what to do, and what was other than before."""

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN_EVENTS, _SHOWN_CHANGES, _SHOWN_LINES = 12, 20, 15
Bundle = Mapping[str, Any]


def report(bundle: Bundle, uri: str) -> Iterator[str]:
    """Lines, without colours."""
    failure = bundle["failure"]
    yield f"{bundle['job']}, attempt {bundle['attempt']}: {failure['kind']}"
    if failure["line"]:
        yield f"  {failure['line']}"
        where = ", ".join(part for part in (failure["source"], failure["node"] and f"node {failure['node']}") if part)
        yield f"  ({where})" if where else ""
    yield f"what to do: {failure['advice']}"
    if bundle.get("message") and bundle["message"] not in failure["line"]:
        yield f"the operator saw: {bundle['message']} ({bundle['cause']})"
    yield from _changes(bundle)
    yield from _metrics(bundle)
    yield from _pods(bundle)
    yield from _events(bundle)
    yield from _tail(bundle)
    yield ""
    yield f"all of it: {uri}"


def _changes(bundle: Bundle) -> Iterator[str]:
    good, changes = bundle.get("goodAttempt"), bundle.get("changes") or []
    if good is None:
        return
    yield ""
    if not changes:
        yield f"the document is that of attempt {good}, which got somewhere"
        return
    yield f"other than attempt {good}, which got somewhere:"
    yield from _first([f"  {line}" for line in changes], _SHOWN_CHANGES)


def _metrics(bundle: Bundle) -> Iterator[str]:
    points = bundle.get("metrics") or []
    if points:
        last = points[-1]
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(last["metrics"].items())[:8])
        yield ""
        yield f"last metrics, step {last['step']}: {shown}"


def _pods(bundle: Bundle) -> Iterator[str]:
    bad = [pod for pod in bundle.get("pods") or () if pod.get("phase") != "Running" or pod.get("reason")]
    lines = [f"  {pod['name']} on {pod.get('node') or 'no node'}: {_pod(pod)}" for pod in bad]
    if lines:
        yield ""
        yield "pods:"
        yield from _first(lines, _SHOWN_EVENTS)


def _pod(pod: Mapping[str, Any]) -> str:
    ends = [
        f"{one['name']} {one.get('reason') or one['state']}"
        + (f" (exit code {one['exitCode']})" if one.get("exitCode") is not None else "")
        for one in pod.get("containers") or ()
    ]
    return ", ".join([str(pod.get("reason") or pod.get("phase") or "unknown"), *ends])


def _events(bundle: Bundle) -> Iterator[str]:
    warnings = [event for event in bundle.get("events") or () if event.get("type") == "Warning"]
    if warnings:
        yield ""
        yield "warnings:"
        lines = [f"  {one['at']}  {one['reason']}  {one['object']}: {one['message']}" for one in warnings]
        yield from lines[-_SHOWN_EVENTS:]


def _tail(bundle: Bundle) -> Iterator[str]:
    tails = bundle.get("tails") or {}
    source = bundle["failure"]["source"]
    source = source if source in tails else next(iter(tails), "")
    if source and tails[source]:
        yield ""
        yield f"end of the log of {source}:"
        yield from (f"  {line}" for line in tails[source][-_SHOWN_LINES:])


def _first(lines: list[str], count: int) -> Iterator[str]:
    yield from lines[:count]
    if len(lines) > count:
        yield f"  and {len(lines) - count} more"
