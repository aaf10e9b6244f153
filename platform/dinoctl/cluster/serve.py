"""The operator as a process: logs, pages, signals."""

import logging
import signal
import socket
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from prometheus_client import generate_latest

from dinoctl.cluster.connect import connect
from dinoctl.cluster.http import Server
from dinoctl.cluster.logs import write_json_logs
from dinoctl.cluster.metrics import Metrics
from dinoctl.cluster.operator import Operator
from dinoctl.cluster.reconcile import Reconciler
from dinoctl.cluster.retry import Patience
from dinoctl.spec.profile import OperatorConfig

_log = logging.getLogger("dinoctl.operator")
_HASTY = Patience(timeout=4.0, tries=2, total=5.0)


@dataclass(frozen=True)
class Options:
    """Of the command line. Equal ports are one server."""

    namespace: str | None
    identity: str | None
    metrics_port: int
    health_port: int
    kubeconfig: Path | None


def serve(config: OperatorConfig, options: Options) -> None:
    """Returns when a signal has asked for it and all is in order."""
    write_json_logs()
    metrics = Metrics()
    connections = 5 * max(1, len(config.namespaces)) + config.workers + 4
    api = connect(kubeconfig=options.kubeconfig, connections=connections, counter=metrics.request)
    operator = Operator(
        api,
        config,
        Reconciler,
        namespace=options.namespace or api.namespace,
        identity=options.identity or socket.gethostname(),
        metrics=metrics,
        hasty=api.hurried(_HASTY),
    )
    with ExitStack() as stack:
        _pages(operator, options, stack)
        operator.run(_until_signal())
    _log.info("ended in order", extra={"reason": "Stopped"})


def _pages(operator: Operator, options: Options, stack: ExitStack) -> None:
    pages = {"/metrics": lambda: generate_latest(operator.metrics.registry)}
    checks = {"/healthz": operator.unwell, "/readyz": operator.unready}
    if options.metrics_port == options.health_port:
        servers = [Server(options.metrics_port, pages, checks)]
    else:
        servers = [Server(options.metrics_port, pages, {}), Server(options.health_port, {}, checks)]
    for server in servers:
        stack.callback(server.close)
    ports = ", ".join(str(server.port) for server in servers)
    _log.info("serving pages at port %s", ports, extra={"reason": "Started"})


def _until_signal() -> threading.Event:
    """Set by SIGTERM or Ctrl-C; a second one ends the process at once."""
    stop = threading.Event()

    def asked(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # Not here: the main thread may hold the event's lock at this moment.
        threading.Thread(target=stop.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    return stop
