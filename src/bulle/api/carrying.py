"""Streams between a container's monitor and those who are attached by hijacked connections.

A :class:`Carrier` belongs to one connection to a monitor and has any number of :class:`Viewer`; the slowest slows the others, as the reader of
a pipe does. Without a terminal both outputs go over one connection, in frames: Docker Engine API, "Stream format" of ContainerAttach.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from bulle.api.byte_stream import ByteStream, Gone
from bulle.api.web_socket import WebSocket
from bulle.monitor import Attachment
from bulle.monitor.frames import HEADER, MOST_PAYLOAD, Event, Kind, frame
from bulle.monitor.local import DetachKeys

_MOST_UNSENT = 1 << 20


@dataclass(eq=False)
class Viewer:
    """One client that is attached: what it wants to see, and whether it types. ``done`` is set when it is not served any more.

    ``raw`` output has no frames: a terminal's, or what comes in messages anyway.
    """

    stream: ByteStream | WebSocket
    raw: bool
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    detach_keys: bytes = b""
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def show(self, kind: int, data: bytes) -> None:
        """Output of the container. Raises Gone."""
        if (kind == Kind.STDOUT and self.stdout) or (kind == Kind.STDERR and self.stderr):
            await self.stream.write(data if self.raw else HEADER.pack(kind, len(data)) + data)

    def end(self) -> None:
        """No more comes."""
        if not self.done.is_set():
            self.done.set()
            self.stream.close()


class Carrier:
    """Carries until the workload ends or, unless it ``stays``, nobody is attached any more."""

    def __init__(self, attachment: Attachment, viewers: list[Viewer], *, stays: bool = False) -> None:
        self._attachment = attachment
        self._viewers = viewers
        self._stays = stays
        self._unsent = bytearray()
        self._wake: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> int | None:
        """Carry; returns the exit code, None where it goes on or its monitor is gone."""
        tasks = [self._loop.create_task(self._watch(one)) for one in self._viewers]
        tasks += [self._loop.create_task(self._type(one)) for one in self._viewers if one.stdin]
        try:
            while self._viewers or self._stays:
                frames = self._attachment.take()
                if frames is None:
                    return None
                for kind, payload in frames:
                    if kind in (Kind.STDOUT, Kind.STDERR):
                        await self._show(kind, payload)
                    elif kind == Kind.EVENT and (happened := msgspec.json.decode(payload, type=Event)).event == "exited":
                        return happened.exit_code
                if not frames:
                    await self._change()
            return None
        finally:
            for task in tasks:
                task.cancel()
            self._attachment.close()
            for viewer in self._viewers:
                viewer.end()

    async def _show(self, kind: int, payload: bytes) -> None:
        for viewer in list(self._viewers):
            try:
                await viewer.show(kind, payload)
            except Gone:
                self._leave(viewer)

    def _leave(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            viewer.end()
            self._wake_up()

    async def _watch(self, viewer: Viewer) -> None:
        await viewer.stream.until_gone()
        self._leave(viewer)

    async def _type(self, viewer: Viewer) -> None:
        """What a client types, to its end or to the keys that detach."""
        keys = DetachKeys(viewer.detach_keys)
        while data := await viewer.stream.read():
            data = keys.filter(data)
            for start in range(0, len(data), MOST_PAYLOAD):
                self._send(frame(Kind.STDIN, data[start : start + MOST_PAYLOAD]))
            if keys.complete:
                self._leave(viewer)
                return
            await self._room.wait()
        self._send(frame(Kind.STDIN))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        self._send(frame(Kind.RESIZE, rows.to_bytes(2, "big") + columns.to_bytes(2, "big")))

    def _send(self, data: bytes) -> None:
        self._unsent += data
        self._flush()
        if len(self._unsent) > _MOST_UNSENT:
            self._room.clear()

    def _flush(self) -> None:
        with suppress(OSError):
            del self._unsent[: self._attachment.send_some(self._unsent)]
        if len(self._unsent) <= _MOST_UNSENT:
            self._room.set()
        if self._unsent:
            self._wake_up()  # so that it is waited for

    async def _change(self) -> None:
        """Wait until something can be read, or sent, or somebody left."""
        descriptor = self._attachment.fileno()
        self._wake = self._loop.create_future()
        self._loop.add_reader(descriptor, self._wake_up)
        if self._unsent:
            self._loop.add_writer(descriptor, self._flush_and_wake)
        try:
            await self._wake
        finally:
            self._wake = None
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    def _flush_and_wake(self) -> None:
        self._flush()
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
