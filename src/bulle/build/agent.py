"""An ssh agent for one step: a socket of the step's own whose connections are carried to the caller's agent.

ssh-agent(1) serves its own user and root alone, and the users of a step's container are others; so it hears from this process. The kernel ends
everything with the process.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 1 << 16
_MOST_CONNECTIONS = 32


class AgentRelay:
    """Listens at ``directory/name`` (host path) for as long as it is open; ``agent`` is the path of the caller's socket. A context manager."""

    def __init__(self, directory: Path, name: str, agent: str) -> None:
        self._agent = agent
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(_MOST_CONNECTIONS)
        self._threads = [threading.Thread(target=self._accept, name="bulle-agent", daemon=True)]
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The path of a socket has 107 bytes at most, that of the home may have more.
            self._listener.bind(f"/proc/self/fd/{descriptor}/{name}")
        finally:
            os.close(descriptor)
        self._listener.listen(8)

    def __enter__(self) -> AgentRelay:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            ending = [self._listener, *self._open]
        for one in ending:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._places.release()  # for the one who accepts, if it waits
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            # A step may open as many as it likes; more than these wait for one of them to end.
            self._places.acquire()
            agent = None
            try:
                agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                agent.connect(self._agent)
            except OSError:
                if agent is not None:
                    agent.close()
                client.close()
                self._places.release()
                continue
            with self._lock:
                self._open |= {client, agent}
            thread = threading.Thread(target=self._serve, args=(client, agent), name="bulle-agent", daemon=True)
            self._threads = [one for one in self._threads if one.is_alive() or one.ident is None] + [thread]
            thread.start()

    def _serve(self, client: socket.socket, agent: socket.socket) -> None:
        answers = threading.Thread(target=_carry, args=(agent, client), name="bulle-agent", daemon=True)
        answers.start()
        _carry(client, agent)
        answers.join()
        with self._lock:
            self._open -= {client, agent}
        client.close()
        agent.close()
        self._places.release()


def _carry(origin: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := origin.recv(_CHUNK_BYTES):
            to.sendall(data)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)
