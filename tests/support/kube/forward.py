"""Ports of this machine that lead into a network namespace.

A socket belongs to the namespace in which it was made: listening sockets made outside are handed to a process inside,
which accepts there and connects on within its own network.
"""

import asyncio
import socket
from collections.abc import Mapping

_BLOCK = 64 * 1024


def listener() -> socket.socket:
    """A listening socket on a free loopback port, for a child process."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.set_inheritable(True)
    return listening


async def forward(targets: Mapping[int, tuple[str, int]]) -> None:
    """Serves the listening sockets with these descriptors until cancelled."""
    async with asyncio.TaskGroup() as group:
        for descriptor, (host, port) in targets.items():
            group.create_task(_serve(socket.socket(fileno=descriptor), host, port))


async def _serve(listening: socket.socket, host: str, port: int) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))

    server = await asyncio.start_server(connect, sock=listening)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction; its end is handed on, and a broken connection breaks the other one."""
    try:
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
