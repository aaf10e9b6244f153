"""``submit``, ``diff``, ``events``, ``explain``, ``delete``: what only a cluster has."""

from typing import Annotated

import typer

from dinoctl.cli.options import Context, Files, Format, Kubeconfig, Name, Namespace, Output
from dinoctl.cli.remote.target import Where


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (submit, diff, events, explain, delete):
        app.command()(command)


def submit(
    files: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only ask the API server what would happen.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until all of them have ended; the exit code says how.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait, and show their logs.")] = False,
    restart: Annotated[
        list[str] | None,
        typer.Option("--restart", help="Do this job again, which has ended, and what descends from it.", metavar="JOB"),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Hand documents to a cluster, which runs them.

    They are judged here, then by the API server, and only then sent: all of them or none. To submit the same again
    changes nothing. Jobs that they refer to may be on the cluster already, or come later.
    """
    from dinoctl.cli.remote.commands import submit as send

    code = send(
        Where(namespace, context, kubeconfig), files, restart or [], dry_run=dry_run, wait=wait or follow, follow=follow
    )
    raise typer.Exit(code)


def diff(
    files: Files,
    output: Output = Format.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what submitting would change. Exit code 1 when something differs, as of diff itself."""
    from dinoctl.cli.remote.commands import diff as compare

    raise typer.Exit(compare(Where(namespace, context, kubeconfig), files, output))


def events(
    name: Name,
    output: Output = Format.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what happened to a job, its RayJobs, pods and place in the queue. Kubernetes forgets after an hour or so."""
    from dinoctl.cli.remote.commands import print_events

    print_events(Where(namespace, context, kubeconfig), name, output)


def explain(
    name: Annotated[str, typer.Argument(help="Name of a job, or the storage of one (s3://...).", metavar="JOB")],
    attempt: Annotated[int | None, typer.Option("--attempt", help="Default: the last that ended badly.", min=1)] = None,
    output: Output = Format.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say why an attempt ended badly, from the post-mortem in storage; works when the cluster is gone."""
    from dinoctl.cli.remote.commands import explain as tell

    tell(Where(namespace, context, kubeconfig), name, attempt, output)


def delete(
    jobs: Annotated[list[str], typer.Argument(help="Names of jobs.", metavar="JOB...")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Remove jobs from the cluster. What trains commits a checkpoint and stops; outputs and checkpoints stay."""
    from dinoctl.cli.remote.commands import delete as remove

    remove(Where(namespace, context, kubeconfig), jobs)
