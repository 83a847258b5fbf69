"""A conversation with one process, from its start to its end and within bounds: give it input and take its output at once, by the clock.

Used by the engine for ``run`` and for sandboxes, over the connection to the process's monitor. Neither side can make the other wait for ever: input
is sent only as fast as it is taken while output is read, and output beyond a bound is thrown away.
"""

from __future__ import annotations

import math
import select
import time

import msgspec

from bulle.errors import BulleError, from_parts
from bulle.monitor.attachment import Attachment
from bulle.monitor.frames import Event, Kind, frame

_CHUNK = 64 * 1024
_event = msgspec.json.Decoder(Event)


class Exchange:
    """One process at the other end of an attachment, which stays the caller's.

    ``stdout`` and ``stderr`` are what it wrote, ``most_bytes`` at most of each; ``exceeded`` says that there was more. ``exit_code`` is None until it
    has ended, ``notes`` are those of its start.
    """

    def __init__(self, attachment: Attachment, input: bytes | None = None, *, most_bytes: int = 1 << 62) -> None:
        """``input`` None sends nothing, not even the end."""
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.exceeded = False
        self.exit_code: int | None = None
        self.notes = attachment.notes
        self._attachment = attachment
        self._most_bytes = most_bytes
        self._input = memoryview(input or b"")
        self._queued = bytearray()
        self._input_open = input is not None

    def run(self, deadline: float | None = None, *, interruption: int = -1) -> bool:
        """Go on until the process has ended: True. False at the deadline (of time.monotonic) or when the descriptor ``interruption`` can be read.

        And once when more was written than is kept. Then it may be called again.

        Raises the error that the start ended in, and BulleError where the monitor is gone.
        """
        had_exceeded = self.exceeded
        while self.exit_code is None and self.exceeded == had_exceeded:
            if not self._attachment.has_received:
                self._fill()
                poll = select.poll()
                poll.register(self._attachment, select.POLLIN | (select.POLLOUT if self._queued else 0))
                if interruption >= 0:
                    poll.register(interruption, select.POLLIN)
                ready = poll.poll(None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000)))
                if not ready or any(number == interruption for number, _events in ready):
                    return False
                if self._queued:
                    del self._queued[: self._attachment.send_some(self._queued)]
                if not any(events & ~select.POLLOUT for _number, events in ready):
                    continue
            received = self._attachment.receive()
            if received is None:
                raise BulleError("the process was lost", "the process that watched it was killed", "try again, or see `bulle ps -a`")
            self._take(*received)
        return self.exit_code is not None

    def _fill(self) -> None:
        if self._queued or not self._input_open:
            return
        self._queued += frame(Kind.STDIN, bytes(self._input[:_CHUNK]))  # an empty one is the end
        self._input_open = bool(self._input)
        self._input = self._input[_CHUNK:]

    def _take(self, kind: int, payload: bytes) -> None:
        if kind in (Kind.STDOUT, Kind.STDERR):
            output = self.stdout if kind == Kind.STDOUT else self.stderr
            room = self._most_bytes - len(output)
            output += payload[:room] if len(payload) > room else payload
            self.exceeded = self.exceeded or len(payload) > room
        elif kind == Kind.EVENT:
            happened = _event.decode(payload)
            if happened.event == "error":
                raise from_parts(happened.error)
            if happened.event == "started":
                self.notes = happened.notes
            elif happened.event == "exited":
                self.exit_code = happened.exit_code
