"""A Ray of our own, on this machine alone, for as long as an attempt runs."""

import sys
from collections.abc import Callable

import psutil
import ray
from tenacity import RetryCallState, Retrying, stop_after_attempt

_OBJECT_STORE_BYTES = 128 * 2**20  # training moves nothing through Ray's object store
_TRIES = 3
_END_S = 10.0


def start(cores: int, unwanted: Callable[[], bool]) -> None:
    """Starts Ray, and again where it was late: it gives its own processes 30 s, less than a machine in full use may
    need to load them. ``unwanted``: whether it need not be tried again.

    Raises:
        SystemExit: it was late, and is not wanted any more.
        Exception: Ray's, of the last try. It has no narrower class for a node that is late.
    """

    def clear(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _end_children()
        if unwanted():
            raise SystemExit("stopped as asked, before Ray had started")
        what = (str(error) or type(error).__name__).splitlines()[0]
        sys.stderr.write(f"Ray did not start, and is started again: {what}\n")

    Retrying(stop=stop_after_attempt(_TRIES), before_sleep=clear, reraise=True)(_init, cores)


def _init(cores: int) -> None:
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=True,
        configure_logging=True,
    )


def _end_children() -> None:
    """What a start that failed has left; Ray itself ends it only with this process, which has no other children yet."""
    ray.shutdown()
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=_END_S)
