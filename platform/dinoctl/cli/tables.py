"""The state of jobs as a table or as JSON."""

import json
from collections.abc import Sequence
from typing import Any

import typer

from dinoctl.cli.options import Format
from dinoctl.lifecycle import settled
from dinoctl.local.rows import Row, read_row
from dinoctl.local.state import StateDir

_COLOURS = {"Complete": "green", "Failed": "red", "Blocked": "red", "Running": "cyan", "Retrying": "yellow"}
_COLUMNS = ("job", "state", "steps", "images/s", "kNN", "untrained", "model", "alias")


def print_states(state: StateDir, names: Sequence[str], output: Format, *, final: bool = False) -> int:
    """Prints; returns the exit code that the states call for."""
    rows = [read_row(state.job(name)) for name in names]
    if output is Format.JSON:
        typer.echo(json.dumps([row.plain() for row in rows], indent=1))
    else:
        _print_table(rows)
        if final:
            _print_hints(state, rows)
    return exit_code(rows)


def plain_states(state: StateDir, names: Sequence[str]) -> list[dict[str, Any]]:
    """The states as plain data."""
    return [read_row(state.job(name)).plain() for name in names]


def exit_code(rows: Sequence[Row]) -> int:
    """2 when a job's document or data was at fault, 1 when another job failed or could not start, else 0."""
    failed = [row for row in rows if row.state in ("Failed", "Cancelled")]
    reasons = {str(row.status.outcome.reason) for row in failed if row.status and row.status.outcome}
    return 2 if "SpecError" in reasons else 1 if failed else 0


def all_settled(state: StateDir, names: Sequence[str]) -> bool:
    """Whether nothing more would happen if a run went on."""
    statuses = [state.job(name).status for name in names]
    return all(status is not None and settled(status) for status in statuses)


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        number = column in _COLUMNS[2:6]
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(row.name, _coloured(row.state), _steps(row), *_numbers(row), row.model, row.alias)
    console = Console(width=None if _is_terminal() else 160)
    console.print(table)
    for row in rows:
        if row.state not in ("Complete", "Pending"):
            console.print(f"[bold]{row.name}[/]: {row.why}", highlight=False, soft_wrap=True)


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _steps(row: Row) -> str:
    if row.step is None or row.stage == "evaluate":
        return ""
    if row.stage == "pack":
        return f"{row.step} images"
    return str(row.step) if row.step == row.steps or row.steps is None else f"{row.step}/{row.steps}"


def _numbers(row: Row) -> tuple[str, str, str]:
    pace = f"{row.images_per_s:.0f}" if row.images_per_s else ""
    shares = (row.knn_top1, row.random_knn_top1)
    first, second = (f"{100 * value:.1f} %" if value is not None else "" for value in shares)
    return pace, first, second


def _print_hints(state: StateDir, rows: Sequence[Row]) -> None:
    report = state.root / "report.html"
    if report.exists():
        typer.echo(f"\nreport: {report}")
    if any(row.state == "Complete" for row in rows):
        typer.echo(f"metrics and models: mlflow ui --backend-store-uri {state.tracking_uri}")
    failed = next((row for row in rows if row.state == "Failed"), None)
    if failed is not None:
        typer.echo(f"log: dinoctl logs {failed.name} --state-dir {state.root}")
        typer.echo(f"to do it again once the cause is mended: the same command with --restart {failed.name}")
