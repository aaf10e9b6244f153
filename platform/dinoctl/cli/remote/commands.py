"""The commands on a cluster: each asks, and prints."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import typer

from dinoctl.cli.options import Format, Shown
from dinoctl.cli.remote import logs as log_reading
from dinoctl.cli.remote.events import events
from dinoctl.cli.remote.follow import changes, wait
from dinoctl.cli.remote.machines import Machines
from dinoctl.cli.remote.report import report
from dinoctl.cli.remote.rows import ended, exit_code, row, state
from dinoctl.cli.remote.show import show
from dinoctl.cli.remote.submission import Change, Plan, perform, plan
from dinoctl.cli.remote.target import Cluster, Where, open_cluster, told
from dinoctl.cli.remote.why import explain as explain_wait
from dinoctl.cli.screen import say
from dinoctl.cluster.postmortem.bundle import FILE, bundled_attempts, read_bundle
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import ATTEMPTS
from dinoctl.spec import names
from dinoctl.spec.errors import UserError

_LAST_LINES_S = 25.0


def submit(
    where: Where, files: Sequence[str], restarts: Sequence[str], *, dry_run: bool, wait: bool, follow: bool
) -> int:
    """Exit code: 0, or with ``wait`` what the jobs' ends call for."""
    cluster = open_cluster(where)
    planned = plan(files, cluster, restarts)
    _carry_out(planned, cluster, dry_run=dry_run)
    if dry_run or not wait:
        return 0
    return _wait(cluster, planned.changes, follow=follow)


def diff(where: Where, files: Sequence[str], output: Format) -> int:
    """Exit code: 1 when something would change."""
    cluster = open_cluster(where)
    planned = plan(files, cluster)
    if output is Format.JSON:
        typer.echo(json.dumps([_plain(change) for change in planned.changes], indent=1))
    else:
        _carry_out(planned, cluster, dry_run=True)
    return int(any(change.verb != "unchanged" for change in planned.changes))


def _plain(change: Change) -> dict[str, object]:
    return {"name": change.loaded.name, "change": change.verb, "differences": [asdict(d) for d in change.differences]}


def _carry_out(planned: Plan, cluster: Cluster, *, dry_run: bool) -> None:
    """Each change is told when it is done, so that one knows where it stopped if it does."""
    width = max(len(change.loaded.name) for change in planned.changes)
    for change in planned.changes:
        if not dry_run:
            perform(change, cluster)
        would = "would be " if dry_run and change.verb != "unchanged" else ""
        typer.echo(f"{change.loaded.name:<{width}}  {would}{change.verb}")
        for one in change.differences:
            typer.echo(f"    {one}")
    for child, parent in planned.missing:
        typer.echo(f"{child} waits for {parent}, which is not in namespace {cluster.namespace} yet", err=True)
    if not dry_run and any(change.verb != "unchanged" for change in planned.changes):
        typer.echo(f"see: dinoctl status -n {cluster.namespace}", err=True)


def _wait(cluster: Cluster, changes: Sequence[Change], *, follow: bool) -> int:
    """With ``follow`` also the logs: of what begins from now on, where a job has ended before."""
    logs = [_echoing(cluster, change) for change in changes if change.goes_on] if follow else []
    jobs = wait(cluster, [change.loaded.name for change in changes])
    until = time.monotonic() + _LAST_LINES_S
    for log in logs if all(state(job) in names.ENDED_STATES for job in jobs) else ():
        log.join(max(0.0, until - time.monotonic()))
    show([row(job, explain_wait(job, None, time.time())) for job in jobs], Shown.TABLE)
    return exit_code(jobs)


def _echoing(cluster: Cluster, change: Change) -> threading.Thread:
    seen = ((change.old or {}).get("status") or {}).get("attempt") or 0
    arguments = (cluster, change.loaded.name, seen if change.restart else 0)
    thread = threading.Thread(target=_echo, args=arguments, daemon=True)
    thread.start()
    return thread


def _echo(cluster: Cluster, name: str, seen: int) -> None:
    """A job's log beside those of others: each line begins with its name."""
    try:
        for line in log_reading.follow(cluster, name, log_reading.DRIVER, None, seen):
            typer.echo(f"{name} | {line}")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        say(f"{name}: its log can't be followed: {error}")


def show_status(where: Where, name: str | None, output: Shown, *, watch: bool) -> None:
    """Once, or again whenever something changes."""
    cluster = open_cluster(where)
    for _ in _looks(cluster, watch=watch):
        jobs = [cluster.job(name)] if name else cluster.jobs()
        if not jobs and output is Shown.TABLE:
            raise UserError(f"no jobs in namespace {cluster.namespace}; dinoctl submit FILE starts some")
        if watch and sys.stdout.isatty():
            sys.stdout.write("\x1b[2J\x1b[H")  # clear, cursor home
        machines = Machines(cluster)
        show([row(job, explain_wait(job, machines, time.time())) for job in jobs], output)


def _looks(cluster: Cluster, *, watch: bool) -> Iterator[None]:
    """A look now; with ``watch`` another after each change and about once a minute, two seconds apart at least."""
    if not watch:
        yield
        return
    for _ in changes(cluster):
        yield
        time.sleep(2)


def print_logs(where: Where, name: str, source: str, attempt: int | None, *, follow: bool) -> None:
    """Of a job, or of the storage that ``name`` is when it has a slash."""
    if "/" in name:
        if follow:
            lines = log_reading.follow_stored(name, source, attempt)
        else:
            lines = log_reading.stored(name, source, attempt).lines()
    else:
        cluster = open_cluster(where)
        read = log_reading.follow if follow else log_reading.read
        lines = read(cluster, name, source, attempt)
    for line in lines:
        typer.echo(line)


def wish(where: Where, name: str, word: str) -> None:
    """Suspend, resume or cancel."""
    cluster = open_cluster(where)
    job = cluster.job(name)
    if ended(job):
        raise UserError(f"{name} is {state(job)} already")
    held = bool((job.get("spec") or {}).get("suspend"))
    if word != "cancel" and held == (word == "suspend"):
        typer.echo(f"{name}: is {'suspended already' if held else _not_suspended(job)}")
        return
    cancel: dict[str, Any] = {"metadata": {"annotations": {names.CANCEL: "true"}}}
    body = cancel if word == "cancel" else {"spec": {"suspend": word == "suspend"}}
    with told():
        cluster.api.patch(DINOJOBS, cluster.namespace, name, body)
    typer.echo(f"{name}: {_THEN[word]}")


def _not_suspended(job: Object) -> str:
    blocked = str((job.get("status") or {}).get("message") or "") if state(job) == "Blocked" else ""
    return f"not suspended; it is blocked: {blocked}" if blocked else "not suspended"


_THEN = {
    "suspend": "suspend noted; what trains commits a checkpoint and stops",
    "resume": "resume noted; it goes on from its last checkpoint",
    "cancel": "cancel noted; outputs and checkpoints stay",
}


def print_events(where: Where, name: str, output: Format) -> None:
    """Oldest first."""
    cluster = open_cluster(where)
    found = events(cluster, name)
    if output is Format.JSON:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    if not found:
        typer.echo(f"no events of {name}; Kubernetes forgets them after an hour or so", err=True)
    width = max((len(one.reason) for one in found), default=0)
    for one in found:
        mark = typer.style("!", fg="yellow") if one.warning else " "
        times = f" (x{one.count})" if one.count > 1 else ""
        typer.echo(f"{one.at:<20} {mark} {one.reason:<{width}} {one.about}: {one.message}{times}")


def explain(where: Where, name: str, attempt: int | None, output: Format) -> None:
    """The post-mortem of an attempt, or why there is none."""
    cluster = None if "/" in name else open_cluster(where)
    job = cluster.job(name) if cluster else None
    uri = name.rstrip("/") if job is None else str((job.get("status") or {}).get("storage") or "")
    number = attempt
    if number is None and job is not None:
        number = ((job.get("status") or {}).get("lastFailure") or {}).get("attempt")
    storage = open_storage(uri) if uri else None
    if storage is not None and number is None:
        number = next(reversed(bundled_attempts(storage)), None)
    bundle = read_bundle(storage, number) if storage is not None and number is not None else None
    if bundle is None or storage is None:
        now = explain_wait(job, Machines(cluster), time.time()) if job is not None and cluster else None
        raise UserError(_no_bundle(name, number, now))
    if output is Format.JSON:
        typer.echo(json.dumps(bundle, indent=1))
        return
    for line in report(bundle, f"{storage.uri}/{ATTEMPTS}/{number:04d}/{FILE}"):
        typer.echo(line)


def _no_bundle(name: str, attempt: int | None, why: str | None) -> str:
    which = f"attempt {attempt} of {name} has" if attempt is not None else f"{name} has"
    return f"{which} no post-mortem: no attempt ended badly, or its storage was down" + (f"; now: {why}" if why else "")


def delete(where: Where, jobs: Sequence[str]) -> None:
    """All must be there."""
    cluster = open_cluster(where)
    found = [cluster.job(name) for name in dict.fromkeys(jobs)]
    for job in found:
        name = job["metadata"]["name"]
        with told():
            cluster.api.delete(DINOJOBS, cluster.namespace, name, uid=job["metadata"]["uid"])
        kept = (job.get("status") or {}).get("storage")
        typer.echo(f"{name}: deleted" + (f"; its outputs stay at {kept}" if kept else ""))
