"""Options that several commands share.

Commands that know both a state directory and a cluster decide so: ``--cluster`` or ``--local`` if given; else a cluster
if one of its options is given; else a state directory if it is; else what DINOCTL_TARGET says; else the state directory
if there is one here, and the cluster if not.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What a command prints."""

    TABLE = "table"
    JSON = "json"


class Shown(StrEnum):
    """What ``status`` prints."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Files = Annotated[
    list[str], typer.Argument(help="YAML files, directories, or - for standard input.", metavar="FILE...")
]
Name = Annotated[str, typer.Argument(help="Name of a job.", metavar="JOB")]
Output = Annotated[Format, typer.Option("--output", "-o", help="table or json.")]
State = Annotated[
    Path, typer.Option("--state-dir", envvar="DINOCTL_STATE_DIR", help="Where runs keep their state and outputs.")
]
STATE_DEFAULT = Path(".dinoctl")
MaybeState = Annotated[
    Path | None,
    typer.Option("--state-dir", envvar="DINOCTL_STATE_DIR", help="Where runs keep their state; default: .dinoctl."),
]
OnCluster = Annotated[
    bool | None,
    typer.Option(
        "--cluster/--local", "-c/-l", help="Jobs of the cluster, or of the state directory.", show_default=False
    ),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Of the cluster; default: the context's.", metavar="NAME")
]
Context = Annotated[
    str | None, typer.Option("--context", help="Of the kubeconfig; default: the current one.", metavar="NAME")
]
Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", help="Default: KUBECONFIG, or ~/.kube/config.", metavar="FILE")
]
