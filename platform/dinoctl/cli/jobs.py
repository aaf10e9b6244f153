"""``status``, ``logs``, ``suspend``, ``resume``, ``cancel``: jobs of a state directory."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dinoctl.cli.options import STATE_DEFAULT, Format, Name, Output, State


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (status, logs, suspend, resume, cancel):
        app.command()(command)


def status(
    name: Annotated[str | None, typer.Argument(help="Only this job.", metavar="[JOB]")] = None,
    state_dir: State = STATE_DEFAULT,
    output: Output = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show again every two seconds.")] = False,
) -> None:
    """Show jobs, how far they are, and why they wait."""
    from dinoctl.cli.tables import all_settled, print_states
    from dinoctl.local.state import StateDir
    from dinoctl.spec.errors import UserError

    state = StateDir(state_dir)
    while True:
        names = [state.known(name).name] if name else [job.name for job in state.jobs()]
        if not names:
            raise UserError(f"{state.root} holds no jobs; start some with dinoctl run FILE")
        print_states(state, names, output)
        if output is Format.TABLE and state.owner() is None and not all_settled(state, names):
            typer.echo("no dinoctl run is at work here; the same dinoctl run command goes on")
        if not watch:
            return
        time.sleep(2)
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[2J\x1b[H")  # clear, cursor home


def logs(
    name: Name,
    state_dir: State = STATE_DEFAULT,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Number of the attempt; default: the last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
) -> None:
    """Print the log of a job's worker and ranks."""
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


def suspend(name: Name, state_dir: State = STATE_DEFAULT) -> None:
    """Hold a job: if it trains, it commits a checkpoint and stops."""
    _wish(name, state_dir, suspend=True)


def resume(name: Name, state_dir: State = STATE_DEFAULT) -> None:
    """Let a suspended job go on."""
    _wish(name, state_dir, suspend=False)


def cancel(name: Name, state_dir: State = STATE_DEFAULT) -> None:
    """End a job for good; its outputs and checkpoints stay. 'run --restart' does it again."""
    _wish(name, state_dir, cancel=True)


def _wish(name: str, state_dir: Path, *, suspend: bool | None = None, cancel: bool | None = None) -> None:
    from dataclasses import replace

    from dinoctl.lifecycle import state_of
    from dinoctl.local.state import StateDir
    from dinoctl.spec.errors import UserError

    state = StateDir(state_dir)
    job = state.known(name)
    now = state_of(job.status)
    if now in ("Complete", "Failed", "Cancelled"):
        raise UserError(f"{name} is {now} already")
    wishes = job.wishes
    if suspend is not None:
        wishes = replace(wishes, suspend=suspend)
    if cancel is not None:
        wishes = replace(wishes, cancel=cancel)
    job.save_wishes(wishes)
    word = "cancel" if cancel else "suspend" if suspend else "resume"
    owner = state.owner()
    when = f"the run with pid {owner} does it now" if owner else "takes effect with the next dinoctl run"
    typer.echo(f"{name}: {word} noted; {when}")
