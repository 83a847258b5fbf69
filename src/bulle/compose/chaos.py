"""Killing replicas to see that they come back: by SIGKILL to the first process, as a crash, and how long it takes until they are in balance again.

Meanwhile a small client asks at one of the service's published ports, and counts what is not answered.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bulle.compose.actual import containers_of, number_of, service_of
from bulle.engine.container import Container
from bulle.errors import Conflict
from bulle.linux import process
from bulle.model.network import PublishedPort

if TYPE_CHECKING:
    from bulle.engine import Engine

_PAUSE_S = 0.005
_ASKS_EVERY_S = 0.01
_ANSWERED_WITHIN_S = 5.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_REQUEST = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"


@dataclass
class Killing:
    """One replica that was killed. Seconds from the kill until it was started again and until it was in balance, None where that never came.

    ``asked`` requests were sent to its service meanwhile, of which ``lost`` were not answered; both 0 where it publishes no TCP port.
    """

    app: str
    container: str
    started_s: float | None = None
    recovered_s: float | None = None
    asked: int = 0
    lost: int = 0


def candidates(engine: Engine, app: str, services: Sequence[str]) -> list[Container]:
    """The replicas that can be killed: those of these services (none: of all) that run."""
    return [one for one in containers_of(engine, app, services) if one.state().status == "running"]


def kill_one(engine: Engine, app: str, services: Sequence[str], patience_s: float) -> Killing:
    """Kill a replica, and wait for what becomes of it. Raises Conflict where none runs."""
    found = candidates(engine, app, services)
    if not found:
        raise Conflict(f"there is nothing to kill in {app}", "no replica runs", "start it with `bulle compose up -d`")
    chosen = random.choice(found)
    killing = Killing(app, chosen.name)
    port = next((one for one in chosen.published_ports() if one.protocol == "tcp"), None)
    client = _Client(port) if port is not None else None
    killed_ns = _kill(chosen)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and killing.recovered_s is None:
        time.sleep(_PAUSE_S)
        _look(engine, app, chosen, killing, killed_ns)
    if client is not None:
        killing.asked, killing.lost = client.end()
    return killing


def _kill(container: Container) -> int:
    """The crash, and when it was (nanoseconds since the epoch)."""
    state = container.state()
    pidfd = process.open_process(state.pid, state.pid_start_ticks)
    now_ns = time.time_ns()
    if pidfd is not None:  # else it has just ended by itself, which will do
        with suppress(ProcessLookupError):
            process.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    return now_ns


def _look(engine: Engine, app: str, killed: Container, killing: Killing, killed_ns: int) -> None:
    """Whether it, or one in its place, runs again and is in balance."""
    for one in containers_of(engine, app, [service_of(killed)]):
        state = one.state()
        if number_of(one) != number_of(killed) or state.status != "running" or state.started_at_ns < killed_ns:
            continue
        if killing.started_s is None:
            killing.started_s = (state.started_at_ns - killed_ns) / 1e9
        well = state.health is None or state.health.status == "healthy"
        if well and (one.plan.network.mode != "own" or one.standing() == "ready"):
            killing.recovered_s = (time.time_ns() - killed_ns) / 1e9


class _Client:
    """Asks again and again, in a thread: in HTTP where that is spoken, else it only connects."""

    def __init__(self, port: PublishedPort) -> None:
        self._place = (_ANYWHERE.get(port.host_address, port.host_address), port.host_port)
        self._ended = threading.Event()
        self._asked = self._lost = 0
        self._speaks = self._ask(_REQUEST).startswith(b"HTTP/")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> tuple[int, int]:
        """How many requests there were, and how many of them were lost."""
        self._ended.set()
        self._thread.join()
        return self._asked, self._lost

    def _run(self) -> None:
        while not self._ended.wait(_ASKS_EVERY_S):
            self._asked += 1
            self._lost += not self._ask(_REQUEST if self._speaks else b"")

    def _ask(self, request: bytes) -> bytes:
        """The beginning of the answer (``.`` where nothing was asked); empty where there was none."""
        try:
            with socket.create_connection(self._place, _ANSWERED_WITHIN_S) as connection:
                if not request:
                    return b"."
                connection.sendall(request)
                return connection.recv(16)
        except OSError:
            return b""
