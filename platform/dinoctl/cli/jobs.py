"""``status``, ``logs``, ``suspend``, ``resume``, ``cancel``: jobs of a state directory or of a cluster."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dinoctl.cli.options import (
    STATE_DEFAULT,
    Context,
    Format,
    Kubeconfig,
    MaybeState,
    Name,
    Namespace,
    OnCluster,
    Shown,
)
from dinoctl.cli.remote.target import Where, on_cluster


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (status, logs, suspend, resume, cancel):
        app.command()(command)


def status(
    name: Annotated[str | None, typer.Argument(help="Only this job.", metavar="[JOB]")] = None,
    state_dir: MaybeState = None,
    output: Annotated[Shown, typer.Option("--output", "-o", help="table, json or yaml.")] = Shown.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show again as things change.")] = False,
    cluster: OnCluster = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show jobs, how far they are, and why they wait."""
    where = Where(namespace, context, kubeconfig)
    if on_cluster(cluster, state_dir, where):
        from dinoctl.cli.remote.commands import show_status

        show_status(where, name, output, watch=watch)
        return
    _local_status(name, state_dir or STATE_DEFAULT, output, watch=watch)


def _local_status(name: str | None, state_dir: Path, output: Shown, *, watch: bool) -> None:
    from dinoctl.cli.remote.show import dump
    from dinoctl.cli.tables import all_settled, plain_states, print_states
    from dinoctl.local.state import StateDir
    from dinoctl.spec.errors import UserError

    state = StateDir(state_dir)
    while True:
        names = [state.known(name).name] if name else [job.name for job in state.jobs()]
        if not names:
            raise UserError(
                f"{state.root} holds no jobs; start some with dinoctl run FILE, or add -c for the cluster's"
            )
        if output is not Shown.TABLE:
            dump(plain_states(state, names), output)
        else:
            print_states(state, names, Format.TABLE)
            if state.owner() is None and not all_settled(state, names):
                typer.echo("no dinoctl run is at work here; the same dinoctl run command goes on")
        if not watch:
            return
        time.sleep(2)
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[2J\x1b[H")  # clear, cursor home


def logs(
    name: Annotated[str, typer.Argument(help="Name of a job, or the storage of one (s3://...).", metavar="JOB")],
    state_dir: MaybeState = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Number of the attempt; default: the last.", min=1)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="Log of one rank.", min=0)] = None,
    driver: Annotated[bool, typer.Option("--driver", help="Log of the driver; the default on a cluster.")] = False,
    cluster: OnCluster = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a job's driver or of one of its ranks, also when its pods, or the cluster, are gone."""
    from dinoctl.spec.errors import UserError

    if driver and rank is not None:
        raise UserError("--driver and --rank ask for different logs; leave one out")
    where = Where(namespace, context, kubeconfig)
    if "/" in name or on_cluster(cluster, state_dir, where):
        from dinoctl.cli.remote.commands import print_logs

        print_logs(where, name, "driver" if rank is None else f"rank-{rank:05d}", attempt, follow=follow)
        return
    if driver or rank is not None:
        raise UserError("on one machine the log of an attempt holds driver and ranks; leave --driver and --rank out")
    _local_logs(name, state_dir or STATE_DEFAULT, attempt, follow=follow)


def _local_logs(name: str, state_dir: Path, attempt: int | None, *, follow: bool) -> None:
    from dinoctl.local.state import StateDir
    from dinoctl.spec.errors import UserError

    job = StateDir(state_dir).known(name)
    found = sorted(path.parent for path in job.directory.glob("attempts/*/worker.log"))
    if not found:
        raise UserError(f"{name} has not started yet, so it has no log")
    numbers = {int(path.name): path / "worker.log" for path in found}
    if attempt is not None and attempt not in numbers:
        raise UserError(f"{name} has no attempt {attempt}; attempts: {', '.join(map(str, numbers))}")
    _print_file(numbers[attempt or max(numbers)], follow=follow)


def _print_file(path: Path, *, follow: bool) -> None:
    from dinoctl.handover.claim import read_claim

    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            holder = read_claim(path.parent) if follow else None
            alive = holder is not None and holder.alive()
            for line in file:
                typer.echo(line, nl=False)
            if not alive:
                return
            time.sleep(0.5)


def suspend(
    name: Name,
    state_dir: MaybeState = None,
    cluster: OnCluster = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Hold a job: if it trains, it commits a checkpoint and stops."""
    _wish("suspend", name, state_dir, cluster, Where(namespace, context, kubeconfig))


def resume(
    name: Name,
    state_dir: MaybeState = None,
    cluster: OnCluster = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Let a suspended job go on."""
    _wish("resume", name, state_dir, cluster, Where(namespace, context, kubeconfig))


def cancel(
    name: Name,
    state_dir: MaybeState = None,
    cluster: OnCluster = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """End a job for good; its outputs and checkpoints stay. run or submit with --restart does it again."""
    _wish("cancel", name, state_dir, cluster, Where(namespace, context, kubeconfig))


def _wish(word: str, name: str, state_dir: Path | None, cluster: bool | None, where: Where) -> None:
    if on_cluster(cluster, state_dir, where):
        from dinoctl.cli.remote.commands import wish

        wish(where, name, word)
        return
    _local_wish(word, name, state_dir or STATE_DEFAULT)


def _local_wish(word: str, name: str, state_dir: Path) -> None:
    from dataclasses import replace

    from dinoctl.lifecycle import state_of
    from dinoctl.local.state import StateDir
    from dinoctl.spec import names
    from dinoctl.spec.errors import UserError

    state = StateDir(state_dir)
    job = state.known(name)
    now = state_of(job.status)
    if now in names.ENDED_STATES:
        raise UserError(f"{name} is {now} already")
    wishes = replace(job.wishes, cancel=True) if word == "cancel" else replace(job.wishes, suspend=word == "suspend")
    job.save_wishes(wishes)
    owner = state.owner()
    when = f"the run with pid {owner} does it now" if owner else "takes effect with the next dinoctl run"
    typer.echo(f"{name}: {word} noted; {when}")
