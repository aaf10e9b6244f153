"""A Ray of our own, on this machine alone, for as long as an attempt runs."""

import sys

import psutil
import ray
from tenacity import RetryCallState, Retrying, stop_after_attempt

_OBJECT_STORE_BYTES = 128 * 2**20  # training moves nothing through Ray's object store
_TRIES = 3
_END_S = 10.0


def start(cores: int) -> None:
    """Starts Ray, and again where it was late: it gives its own processes 30 s, less than a machine in full use may
    need to load them.

    Raises:
        Exception: Ray's, of the last try. It has no narrower class for a node that is late.
    """
    Retrying(stop=stop_after_attempt(_TRIES), before_sleep=_clear, reraise=True)(_init, cores)


def _init(cores: int) -> None:
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=True,
        configure_logging=True,
    )


def _clear(state: RetryCallState) -> None:
    """Ends what a start that failed has left; Ray itself does so only with this process."""
    error = state.outcome.exception() if state.outcome else None
    sys.stderr.write(f"Ray did not start, and is started again: {str(error).splitlines()[0]}\n")
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=_END_S)
    ray.shutdown()
