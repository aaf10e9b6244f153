"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What a command prints."""

    TABLE = "table"
    JSON = "json"


Files = Annotated[
    list[str], typer.Argument(help="YAML files, directories, or - for standard input.", metavar="FILE...")
]
Name = Annotated[str, typer.Argument(help="Name of a job.", metavar="JOB")]
Output = Annotated[Format, typer.Option("--output", "-o", help="table or json.")]
State = Annotated[
    Path, typer.Option("--state-dir", envvar="DINOCTL_STATE_DIR", help="Where runs keep their state and outputs.")
]
STATE_DEFAULT = Path(".dinoctl")
