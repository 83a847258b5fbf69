"""The sockets of ``bulle serve`` and what happens to each connection and request; see :mod:`bulle.api.connection` for the HTTP of it.

The library way in is :func:`serve`. It ends when it is told to, and leaves containers as they are.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress

from bulle.api import failures
from bulle.api.byte_stream import ByteStream, Gone
from bulle.api.call import JSON, Call
from bulle.api.connection import Connection
from bulle.api.routes import ROUTES
from bulle.api.routing import NEWEST, Router, shown
from bulle.api.service import Service

MOST_CONNECTIONS = 4096
_GRACE_S = 3.0
_COMMON = (("Api-Version", shown(NEWEST)), ("Docker-Experimental", "false"), ("Ostype", "linux"))


class Server:
    """Sockets that listen (the server owns them from now on), each with how it is encrypted, or None."""

    def __init__(self, service: Service, listeners: Sequence[tuple[socket.socket, ssl.SSLContext | None]]) -> None:
        self._service = service
        self._listeners = listeners
        self._router = Router(ROUTES)
        self._tasks = set[asyncio.Task[None]]()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; ``ready`` is called once somebody may connect."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._service.journal.start(loop)
        servers = []
        for listener, context in self._listeners:
            servers.append(await loop.create_server(self._protocol, sock=listener, ssl=context, backlog=512))
        ready()
        await stop.wait()
        for server in servers:
            server.close()
        await self._end_connections()

    async def _end_connections(self) -> None:
        """Clients that wait for something are let go."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GRACE_S)

    def _protocol(self) -> ByteStream:
        return ByteStream(self._begin)

    def _begin(self, stream: ByteStream) -> None:
        if len(self._tasks) >= MOST_CONNECTIONS:
            stream.abort()
            return
        connection = Connection(stream, self._serve, _COMMON)
        task = asyncio.get_running_loop().create_task(self._live(connection))
        self._tasks.add(task)
        self._service.connections += 1
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._service.connections -= 1

    async def _live(self, connection: Connection) -> None:
        with suppress(asyncio.CancelledError):
            await connection.run()

    async def _serve(self, call: Call) -> None:
        path, status = "", 200
        try:
            route, names = self._router.find(call)
            path = route.path
            await route.handler(self._service, call, **names)
        except (Gone, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 -- told to the client
            said = failures.described(error)
            status = said.status
            if call.begun:
                call.break_off()
                raise Gone from None
            await call.answer_text(b"" if status == 304 else failures.body(said), JSON, status=status)
        finally:
            key = (call.method, path, status)
            self._service.requests[key] = self._service.requests.get(key, 0) + 1


def serve(service: Service, listeners: Sequence[tuple[socket.socket, ssl.SSLContext | None]], ready: Callable[[], None]) -> None:
    """Serve until the process is told to end."""
    asyncio.run(Server(service, listeners).run(ready))
