"""Storage and tracking of the test cluster: versitygw and MLflow's server, on the node's address for pods to reach."""

import sys
from functools import partial
from pathlib import Path

from support import s3server
from support.kube.processes import Program, answers

S3_PORT, MLFLOW_PORT = 7070, 5000
_LIMIT_S = 300


def start_s3(directory: Path, address: str, logs: Path) -> tuple[Program, str]:
    buckets, sidecar = directory / "buckets", directory / "metadata"
    for path in (buckets, sidecar):
        path.mkdir(parents=True)
    options = ("--port", f"{address}:{S3_PORT}", "--health", "/healthy", "--keep-alive", "--quiet")
    backend = ("--region", s3server.REGION, "posix", "--sidecar", sidecar, buckets)
    root = {"ROOT_ACCESS_KEY_ID": s3server.ACCESS, "ROOT_SECRET_ACCESS_KEY": s3server.SECRET}
    return _started(
        Program([s3server.binary(), *options, *backend], logs / "s3.log", root), f"http://{address}:{S3_PORT}/healthy"
    )


def start_mlflow(directory: Path, address: str, logs: Path) -> tuple[Program, str]:
    directory.mkdir()
    store = (
        "--backend-store-uri",
        f"sqlite:///{directory}/mlflow.db",
        "--artifacts-destination",
        directory / "artifacts",
    )
    served = ("--host", address, "--port", str(MLFLOW_PORT), "--workers", "1", "--allowed-hosts", "*")
    server = Program([sys.executable, "-m", "mlflow", "server", *store, *served], logs / "mlflow.log")
    return _started(server, f"http://{address}:{MLFLOW_PORT}/health")


def _started(program: Program, health: str) -> tuple[Program, str]:
    program.start()
    return program, health


def wait(*started: tuple[Program, str]) -> None:
    for program, health in started:
        program.wait(partial(answers, health), _LIMIT_S)
