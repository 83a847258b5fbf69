"""A machine that comes from another host while its guest runs there: the shepherd's part at the end where it arrives.

A container whose directory says so (:func:`expected`) begins as a machine that waits. A client asks with a stream for the memory and a file for what
is known, gets a connection to the disk, says ``kept`` when the file is complete, hears ``whole`` when nothing is missing, and says ``go`` when the
machine stands still at the other end for good; until then it is nothing, and ends when the client does. :mod:`bulle.isolation.microvm.leaving`
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress

import msgspec

from bulle.errors import BulleError, Conflict
from bulle.isolation.microvm import sandbox
from bulle.isolation.microvm.checkpoint import Beginning, Kept, damaged
from bulle.isolation.microvm.control import Control
from bulle.isolation.microvm.sessions import ArriveRequest, Word, refuse, requests, tell, words

NAME = "arriving.json"
"""In the container's host directory: :class:`~bulle.isolation.microvm.checkpoint.Kept`, without what is not known yet."""
EXPORT = "disk"

_PATH = f"{sandbox.RUN}/arrival.sock"
_CLIENT_S = 30.0
_MOST_BYTES = 64 << 20

_decoder = msgspec.json.Decoder(Kept)


def expected(directory: str, kind: dict[str, str]) -> Beginning | None:
    """What is to arrive in a container (host directory), said once; None where nothing is. Raises Conflict where it cannot go on here."""
    try:
        with open(f"{directory}/{NAME}", "rb") as file:
            kept = _decoder.decode(file.read())
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(str(error)) from error
    for name in sorted(kind.keys() | kept.kind.keys()):
        if kept.kind.get(name) != kind.get(name):
            raise Conflict("the machine cannot go on there", f"{name if name in kind else 'something'} is another there than here", "stop it first")
    os.unlink(f"{directory}/{NAME}")
    return Beginning(-1, kept)


class Arrival:
    """One machine that waits, stopped, with its first client."""

    def __init__(self, control: Control, listener: socket.socket, disk: str) -> None:
        self._control = control
        control.stop()  # what has arrived does not run by itself
        control.execute("nbd-server-start", addr={"type": "unix", "data": {"path": _PATH}})
        control.execute("block-export-add", type="nbd", id=EXPORT, name=EXPORT, writable=True, **{"node-name": disk})
        self._client, (stream, self._known) = self._accept(listener)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
            line.connect(_PATH)
            socket.send_fds(self._client, [b'{"kind":"ready"}'], [line.fileno()])
        os.unlink(_PATH)
        control.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        control.execute("getfd", stream, fdname="arrival")
        control.execute("migrate-incoming", uri="fd:arrival")
        os.close(stream)

    def _accept(self, listener: socket.socket) -> tuple[socket.socket, list[int]]:
        deadline = time.monotonic() + _CLIENT_S
        while select.select([listener], [], [], max(0, deadline - time.monotonic()))[0]:
            client, _address = listener.accept()
            data, descriptors, _flags, _address = socket.recv_fds(client, 1 << 18, 3)
            with suppress(ValueError):
                if isinstance(requests.decode(data), ArriveRequest) and len(descriptors) == 2:
                    return client, descriptors
            refuse(client, descriptors, Conflict("the machine is not there yet", "it is on its way from another host", "wait a moment"))
        raise BulleError("the machine did not arrive", "nobody brings it", "")

    def wait(self) -> Kept:
        """Until all of it is here and it is to run here; returns what is known of it. Raises BulleError where it does not come."""
        kept = None
        while kept is None or not self._has_memory():
            select.select([self._client.fileno(), self._control.fileno()], [], [])
            if not self._control.hear():
                raise BulleError("the machine did not arrive", "its hypervisor ended", "")
            if (word := self._hear(socket.MSG_DONTWAIT)) == "kept":
                kept = self._read()
            elif word is not None:
                raise _lost()
        self._control.execute("nbd-server-stop")
        self._control.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": False}])
        tell(self._client, Word("whole"))
        if self._hear(0) != "go":
            raise _lost()
        self._control.go_on()
        tell(self._client, Word("running"))
        self._client.close()
        return kept

    def _has_memory(self) -> bool:
        states = [one["data"].get("status") for one in self._control.events if one["event"] == "MIGRATION"]
        if "failed" in states:
            raise BulleError("the machine did not arrive", "its hypervisor cannot read what came", "")
        return "completed" in states

    def _hear(self, flags: int) -> str | None:
        try:
            data = self._client.recv(4096, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost() from error
        if not data:
            raise _lost()
        return words.decode(data).kind

    def _read(self) -> Kept:
        try:
            return _decoder.decode(os.pread(self._known, _MOST_BYTES, 0))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise damaged(str(error)) from error
        finally:
            os.close(self._known)


def _lost() -> BulleError:
    return BulleError("the machine did not arrive", "who brings it went away", "")
