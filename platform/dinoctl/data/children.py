"""Child interpreters that answer requests over pipes.

Not `multiprocessing`: its children import the parent's main module again, outlive a parent that was killed, and can
leave shared memory behind. These start from nothing but this module, end when the parent's pipe closes (also after
kill -9), ignore Ctrl-C (the parent decides), and inherit only the file descriptors they are given.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from dinoctl.data.errors import DataError, StorageError

Handler = Callable[[Any], Any]
"""Answers one request. Made in the child by calling the factory that was sent there."""

_LENGTH = struct.Struct("<Q")


class ChildDied(OSError):
    """A child ended without being told to: killed, out of memory, or crashed in native code."""


class Child:
    """One child that runs ``factory(*arguments)`` once and then the handler it returns for each request.

    Requests may be sent ahead; replies come in the order of the requests.
    """

    def __init__(self, factory: Callable[..., Handler], *arguments: Any, descriptors: tuple[int, ...] = ()) -> None:
        requests, ours = os.pipe()
        theirs, replies = os.pipe()
        command = [sys.executable, "-c", _COMMAND, str(requests), str(replies)]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(requests, replies, *descriptors),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
        os.close(requests)
        os.close(replies)
        self._requests = os.fdopen(ours, "wb")
        self._replies = os.fdopen(theirs, "rb")
        self.send(pickle.dumps((factory, arguments), pickle.HIGHEST_PROTOCOL))  # opened where errors can be answered

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, request: Any) -> None:
        """Hand over a request.

        Raises:
            ChildDied: nobody is there to take it.
        """
        try:
            _send(self._requests, request)
        except BrokenPipeError as error:
            raise self._died() from error

    def receive(self) -> Any:
        """The next reply, waiting for it.

        Raises:
            ChildDied: the child is gone.
            DataError, StorageError: what the handler raised. Other exceptions arrive as RuntimeError with the
                child's traceback.
        """
        try:
            failed, value = _receive(self._replies)
        except EOFError as error:
            raise self._died() from error
        if failed:
            raise value
        return value

    def fileno(self) -> int:
        """Readable when a reply has begun to arrive."""
        return self._replies.fileno()

    def close(self) -> None:
        """End the child, at once and in any state; no error when it is gone already."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._replies):
            with suppress(BrokenPipeError):  # a request may still be buffered
                pipe.close()

    def _died(self) -> ChildDied:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = (
            "; often the machine ran out of memory: fewer workers or a smaller prefetch need less" if code == -9 else ""
        )
        return ChildDied(f"data worker {self.pid} died ({how}){hint}")


_COMMAND = "import sys; from dinoctl.data.children import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"


def serve(requests: int, replies: int) -> None:
    """The child's main loop: until the parent closes its end."""
    # The parent's to decide: a signal to the whole group must leave it the workers for its last steps.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    source, sink = os.fdopen(requests, "rb"), os.fdopen(replies, "wb")
    handler: Handler | None = None
    try:
        while True:
            request = _receive(source)
            if handler is None:
                handler = _made(request)
            else:
                _send(sink, _answer(handler, request))
    except (EOFError, BrokenPipeError):
        os._exit(0)


def _made(order: bytes) -> Handler:
    """The handler, or one that answers every request with the reason why there is none."""
    try:
        factory, arguments = pickle.loads(order)  # noqa: S301 - as below
        handler: Handler = factory(*arguments)
        return handler
    except Exception as error:
        failure = _portable(error)

        def refuse(_: Any) -> Any:
            raise failure

        return refuse


def _answer(handler: Handler, request: Any) -> tuple[bool, Any]:
    try:
        return False, handler(request)
    except Exception as error:
        return True, _portable(error)


def _portable(error: Exception) -> Exception:
    if isinstance(error, DataError | StorageError):
        return error.with_traceback(None)
    return RuntimeError("".join(traceback.format_exception(error)))


def _send(pipe: BinaryIO, value: Any) -> None:
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: BinaryIO) -> Any:
    data = _exactly(pipe, _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0])
    return pickle.loads(data)  # noqa: S301 - written by our own child or parent, over a private pipe


def _exactly(pipe: BinaryIO, count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data
