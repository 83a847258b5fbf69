"""QEMU's control socket (QMP): one question at a time, for a machine whose state is to be kept.

Called by the shepherd, which holds the other end of the socket. Events are kept for whoever asks. https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import array
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bulle.errors import BulleError

_PATIENCE_S = 60.0
_LOOK_S = 0.001
_BYTES_PER_S = 1 << 40  # what goes to a file need not be slowed


class Control:
    """The host's end of the socket; the hypervisor's greeting may still be on its way."""

    def __init__(self, line: socket.socket) -> None:
        line.settimeout(_PATIENCE_S)
        self._line = line
        self._incoming = bytearray()
        self._negotiated = False
        self.events: list[dict[str, Any]] = []
        """What the hypervisor told by itself, oldest first; whoever cares takes it out."""

    def fileno(self) -> int:
        """To be watched, by whoever calls :meth:`hear`."""
        return self._line.fileno()

    def hear(self) -> bool:
        """Take in what the hypervisor told by itself; False where it is gone."""
        if not select.select([self._line], [], [], 0)[0]:
            return True  # a socket that has a patience waits, whatever its flags say
        try:
            data = self._line.recv(65536)
        except OSError:
            return False
        self._incoming += data
        while b"\n" in self._incoming:
            self._read()
        return bool(data)

    @contextmanager
    def closing(self) -> Iterator[Control]:
        """Leave it at the end of the block."""
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        """Leave the hypervisor without anybody who controls it."""
        self._line.close()

    def execute(self, command: str, descriptor: int = -1, /, **arguments: object) -> Any:
        """What a command returns; a ``descriptor`` goes along. Raises BulleError with QEMU's words."""
        if not self._negotiated:
            self._read()  # the greeting
            self._negotiated = True
            self.execute("qmp_capabilities")
        words = json.dumps({"execute": command, "arguments": arguments}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor >= 0 else []
        try:
            self._line.sendmsg([words], rights)
            while "return" not in (answer := self._read()):
                if "error" in answer:
                    raise BulleError("the hypervisor refused a command", f"{command}: {answer['error'].get('desc', '')}", "")
        except OSError as error:
            raise BulleError("the hypervisor does not answer", f"{command}: {error}", "") from error
        return answer["return"]

    def write_state(self, descriptor: int, *, with_memory: bool) -> None:
        """Stop the machine and write all of it to a file; without its memory, that must be shared. :meth:`go_on` then."""
        self._carry("migrate", descriptor, with_memory, "the machine's state could not be written")

    def read_state(self, descriptor: int, *, with_memory: bool) -> None:
        """Have a machine that waits for it begin with the state in a file, which :meth:`write_state` wrote of one like it. It runs if that did."""
        self._carry("migrate-incoming", descriptor, with_memory, "the machine could not be begun from what was kept of another")

    def _carry(self, command: str, descriptor: int, with_memory: bool, failure: str) -> None:
        self.execute("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": not with_memory}])
        self.execute("migrate-set-parameters", **{"max-bandwidth": _BYTES_PER_S})
        self.execute("getfd", descriptor, fdname="state")
        self.execute(command, uri="fd:state")
        deadline = time.monotonic() + _PATIENCE_S
        while (status := self.execute("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise BulleError(failure, f"QEMU says {status}", "")
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """Have the machine stand still."""
        self.execute("stop")

    def go_on(self) -> None:
        """Let the machine run again."""
        self.execute("cont")

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._incoming:
            data = self._line.recv(65536)
            if not data:
                raise BulleError("the hypervisor ended", "while it was controlled", "")
            self._incoming += data
        line, _newline, rest = bytes(self._incoming).partition(b"\n")
        self._incoming = bytearray(rest)
        answer: dict[str, Any] = json.loads(line)
        if "event" in answer:
            self.events.append(answer)
        return answer
