"""``run``: documents to promoted models on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinoctl.cli.options import STATE_DEFAULT, Files, Format, Output, State

if TYPE_CHECKING:
    from dinoctl.local.state import StateDir


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(run)


def run(
    files: Files,
    state_dir: State = STATE_DEFAULT,
    restart: Annotated[
        list[str] | None, typer.Option("--restart", help="Do this job again, and what descends from it.", metavar="JOB")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Run documents on this machine, one attempt at a time, until all is done.

    The same command goes on after Ctrl-C or a crash: finished jobs stay, the interrupted one resumes.
    """
    from dinoctl.cli.screen import say, screen
    from dinoctl.cli.tables import print_states
    from dinoctl.local.accept import accept, check_places
    from dinoctl.local.executor import Executor
    from dinoctl.local.state import StateDir
    from dinoctl.local.tracking import Tracking
    from dinoctl.spec.load import load
    from dinoctl.spec.resolve import resolve

    jobs = resolve(load(files))
    state = StateDir(state_dir)
    pipeline = Path(files[0]).stem if files[0] != "-" else "stdin"
    for job in jobs:
        if job.spec.profile is not None:
            say(f"{job.name}: profile {job.spec.profile} is the cluster's and has no effect on this machine")
    with state.locked():
        check_places(state, jobs, restart or [])
        accept(state, jobs, restart or [])
        with screen(jobs, quiet=output is Format.JSON) as shown:
            executor = Executor(state, jobs, Tracking(state, pipeline), shown.update, say)
            try:
                executor.run()
            finally:  # after Ctrl-C and errors too: what there is so far
                _report(state, [job.name for job in jobs])
        code = print_states(state, [job.name for job in jobs], output, final=True)
    raise typer.Exit(code)


def _report(state: "StateDir", names: list[str]) -> None:
    """Writes the report. Runs don't fail for it: all that it shows is in the state directory."""
    from dinoctl.local.report import write_report

    try:
        write_report(state, names)
    except Exception as error:
        typer.echo(f"no report was written: {type(error).__name__}: {error}", err=True)
