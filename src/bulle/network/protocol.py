"""What is said between the keeper and those who need it: one request and one answer a connection, as JSON over ``run/keeper.sock``. unix(7)"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from bulle.errors import from_parts
from bulle.model.network import Attachment, PortMapping, PublishedPort, Standing
from bulle.model.run_plan import Network

SOCKET_NAME = "keeper.sock"
LONGEST = 1 << 18
PATIENCE_S = 30.0


class Register(msgspec.Struct, frozen=True, tag=True):
    """A container has a network namespace now: that of process ``pid``. ``directory`` is its host directory, ``name`` what it is called.

    ``checked``: it has a health check, and is in balance when that says so; else when it listens at the ports that it shares, where that can be seen
    (``listens``).
    """

    container_id: str
    name: str
    pid: int
    directory: str
    network: Network
    checked: bool = False
    listens: bool = False


class Rename(msgspec.Struct, frozen=True, tag=True):
    """It is called something else now."""

    container_id: str
    name: str


class Connect(msgspec.Struct, frozen=True, tag=True):
    """One more interface for a running container."""

    container_id: str
    attachment: Attachment


class Disconnect(msgspec.Struct, frozen=True, tag=True):
    """One interface less."""

    container_id: str
    network_id: str


class Publish(msgspec.Struct, frozen=True, tag=True):
    """All that a running container is to publish: more than before."""

    container_id: str
    ports: tuple[PortMapping, ...]


class Retract(msgspec.Struct, frozen=True, tag=True):
    """Which ports of a running container are given back, and what it is to publish from now on."""

    container_id: str
    ports: tuple[PublishedPort, ...]
    left: tuple[PortMapping, ...]


class Forget(msgspec.Struct, frozen=True, tag=True):
    """A network was removed: its bridge goes."""

    network_id: str
    device: str


class Reconsider(msgspec.Struct, frozen=True, tag=True):
    """What its directory says of a container's standing (its health, its end that is wanted, that it was withdrawn) has changed: look again."""

    container_id: str


Request = Register | Rename | Connect | Disconnect | Publish | Retract | Forget | Reconsider


class Answer(msgspec.Struct, frozen=True):
    """What became of it: all published ports of the container and whether it is in balance, or the parts of an error."""

    ports: tuple[PublishedPort, ...] = ()
    notes: tuple[str, ...] = ()
    error: tuple[str, ...] = ()
    standing: Standing = "withdrawn"


requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(Answer)


def connect(home: Path) -> socket.socket | None:
    """A connection to the home's keeper; None where there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    directory = -1
    try:
        directory = os.open(home / "run", os.O_PATH | os.O_CLOEXEC)
        connection.settimeout(PATIENCE_S)
        connection.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")  # a socket's own path may have 107 bytes
        return connection
    except OSError:
        connection.close()
        return None
    finally:
        if directory >= 0:
            os.close(directory)


def ask(connection: socket.socket, request: Request) -> Answer | None:
    """The keeper's answer; None where it ended before it gave one. Raises the BulleError that it tells."""
    send(connection, request)
    return receive(connection)


def send(connection: socket.socket, request: Request) -> None:
    """The first half of :func:`ask`."""
    with suppress(OSError):  # then there is no answer either
        connection.send(msgspec.json.encode(request))


def receive(connection: socket.socket) -> Answer | None:
    """The second half of :func:`ask`."""
    try:
        data = connection.recv(LONGEST)
    except OSError:
        return None
    if not data:
        return None
    answer = _answers.decode(data)
    if answer.error:
        raise from_parts(answer.error)
    return answer
