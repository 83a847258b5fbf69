"""The two ends of ``bulle move`` of a virtual machine that runs: the process here that sees it through, and the command there.

The process is a child of the command, with a group of its own: whoever kills the command does not kill it in the moment of the switch, before that it
gives up and the machine goes on here. See :mod:`bulle.engine.live_moves`.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from bulle.errors import BulleError, from_parts, to_parts
from bulle.fleet import transport
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.cli.session import Session
    from bulle.engine import Container
    from bulle.fleet.hosts import Host

_MOST_BYTES = 1 << 16


class _Outcome(msgspec.Struct):
    """``parts`` of an error, or notes."""

    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def move_live(session: Session, container: Container, host: Host) -> tuple[str, ...]:
    """Move it while it runs; returns notes. Raises BulleError; then it goes on here, or what is said."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.setpgid(0, 0)
            for number in transport.PASSED_ON:
                signal.signal(number, signal.SIG_IGN)
            outcome = _outcome(session, container, host, theirs)
            with suppress(OSError):
                theirs.send(msgspec.json.encode(outcome)[:_MOST_BYTES])
        finally:
            os._exit(0)
    theirs.close()
    with suppress(OSError):
        os.setpgid(pid, pid)
    try:
        data = ours.recv(_MOST_BYTES)
    finally:
        ours.close()
        os.waitpid(pid, 0)
    if not data:
        raise BulleError(f"container {container.name} was not moved", "the process that moves it was killed", f"see `bulle ps` here and on {host}")
    outcome = msgspec.json.decode(data, type=_Outcome)
    if outcome.parts:
        raise from_parts(outcome.parts)
    return outcome.notes


def _outcome(session: Session, container: Container, host: Host, asker: socket.socket) -> _Outcome:
    from bulle.engine.live_moves import depart
    from bulle.engine.move_line import Line, Lost

    connection = transport.Connection(host)
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            connection.start([transport.MOVE_FLAG, VERSION, connection.token], stdin=theirs.fileno(), stdout=theirs.fileno())
        with ours:
            try:
                notes = depart(session.engine, container, Line(ours.fileno(), ours.fileno()), asker)
            except Lost as error:
                if connection.wait():  # which may know why
                    raise BulleError(f"container {container.name} was not taken by {host}", "what it said stands above", "it goes on here") from error
                raise
        return _Outcome(notes=notes)
    except BulleError as error:
        return _Outcome(parts=to_parts(error))
    except Exception as error:  # noqa: BLE001 -- whatever it is, the command says it
        return _Outcome(parts=to_parts(BulleError(f"container {container.name} was not moved", str(error), "it goes on here")))
    finally:
        connection.kill()


def receive() -> int:
    """The command there: take the machine that comes on standard input, and answer on standard output."""
    from bulle.engine import Engine
    from bulle.engine.live_moves import arrive
    from bulle.engine.move_line import Line, Lost

    engine = Engine()
    try:
        arrive(engine, Line(0, 1))
    except Lost:
        return 0
    finally:
        engine.close()
    return 0
