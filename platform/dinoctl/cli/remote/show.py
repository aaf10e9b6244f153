"""Jobs of a namespace as a table, JSON or YAML."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer

from dinoctl.cli.options import Shown
from dinoctl.cli.remote.rows import Row

_COLOURS = {
    "Complete": "green",
    "Failed": "red",
    "Blocked": "red",
    "Cancelled": "red",
    "Running": "cyan",
    "Retrying": "yellow",
    "Queued": "yellow",
}
_COLUMNS = ("job", "stage", "state", "steps", "images/s", "ETA", "queue", "workers", "attempt", "model", "alias")
_NUMBERS = ("steps", "images/s", "ETA", "workers", "attempt")


def show(rows: Sequence[Row], output: Shown) -> None:
    """Prints them."""
    if output is Shown.TABLE:
        _table(rows)
    else:
        dump([row.plain() for row in rows], output)


def dump(found: Any, output: Shown) -> None:
    """Plain data."""
    if output is Shown.JSON:
        typer.echo(json.dumps(found, indent=1))
        return
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(found, sys.stdout)


def _table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    cells = [_cells(row) for row in rows]
    used = [i for i, _ in enumerate(_COLUMNS) if i < 4 or any(line[i] for line in cells)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i in used:
        number = _COLUMNS[i] in _NUMBERS
        table.add_column(_COLUMNS[i], justify="right" if number else "left", no_wrap=number, overflow="fold")
    for line in cells:
        table.add_row(*(line[i] for i in used))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.state != "Complete" and row.why:
            reasons.setdefault(row.why, []).append(row.name)
    for why, names in reasons.items():
        console.print(f"[bold]{', '.join(names)}[/]: {_plain(why)}", highlight=False, soft_wrap=True)
    for row in rows:
        if row.state in ("Failed", "Retrying") and row.last_failure and row.last_failure.get("bundle"):
            console.print(f"more: dinoctl explain {row.name} -n {row.namespace}", highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _cells(row: Row) -> tuple[str, ...]:
    colour = _COLOURS.get(row.state)
    return (
        row.name,
        row.stage,
        f"[{colour}]{row.state}[/]" if colour else row.state,
        _steps(row),
        f"{row.images_per_s:.0f}" if row.images_per_s and row.state == "Running" else "",
        row.eta if row.state == "Running" else "",
        row.queue,
        str(row.workers or ""),
        str(row.attempt or ""),
        row.model,
        row.alias,
    )


def _steps(row: Row) -> str:
    if row.step is None or row.stage == "evaluate":
        return ""
    return str(row.step) if row.steps in (None, row.step) else f"{row.step}/{row.steps}"
