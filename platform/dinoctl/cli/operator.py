"""``operator``: the process that runs jobs on a cluster; the Helm chart starts it."""

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(operator)


def operator(
    config: Annotated[Path, typer.Option("--config", "-c", help="Profiles and settings, a YAML file.")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", envvar="POD_NAMESPACE", help="Its own namespace: of the Lease.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option("--identity", envvar="POD_NAME", help="Name of this replica; default: the host's.")
    ] = None,
    metrics_port: Annotated[int, typer.Option("--metrics-port", help="Port of /metrics.", min=0, max=65535)] = 8080,
    health_port: Annotated[
        int, typer.Option("--health-port", help="Port of /healthz and /readyz; may be the same.", min=0, max=65535)
    ] = 8080,
    kubeconfig: Annotated[Path | None, typer.Option("--kubeconfig", help="Default: as kubectl.")] = None,
) -> None:
    """Run jobs on a cluster: watches DinoJobs and does what they ask for, until it is told to stop.

    Of several replicas one works, the others wait to take over.
    """
    from dinoctl.cluster.config import read_config
    from dinoctl.spec.errors import EnvironmentProblem

    settings = read_config(config)
    try:
        from dinoctl.cluster.serve import Options, serve
    except ModuleNotFoundError as error:
        text = f"the operator needs {error.name}; install it with pip install 'dinoctl[operator]'"
        raise EnvironmentProblem(text) from error
    serve(settings, Options(namespace, identity, metrics_port, health_port, kubeconfig))
