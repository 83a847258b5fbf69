"""A hijacked connection that speaks WebSocket: what attach gives to browsers. RFC 6455; no extensions.

It has the face of a :class:`~bulle.api.byte_stream.ByteStream`, so that whoever is attached this way is a viewer like others. Both outputs of a
container come as they are, in binary messages; what is typed may be text or binary.
"""

from __future__ import annotations

import base64
import hashlib
import struct

from bulle.api.byte_stream import ByteStream, Gone

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MOST_MESSAGE_BYTES = 1 << 20
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_CONTROL = 8
_FIN, _MASK = 0x80, 0x80
_NORMAL, _PROTOCOL_ERROR, _TOO_LARGE = 1000, 1002, 1009


def accept_of(key: str) -> str:
    """What the handshake answers to a client's key. Section 4.2.2"""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _MAGIC, usedforsecurity=False).digest()).decode()


class WebSocket:
    """The server's side of one, after the handshake."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._pending = bytearray()
        self._closed = False

    async def read(self) -> bytes:
        """What the client said next; empty at its end."""
        while True:
            frame = await self._frame()
            if frame is None:
                return b""
            kind, payload = frame
            if kind == _PING:
                await self._send(_PONG, payload)
            elif kind == _CLOSE:
                await self._say_goodbye(payload[:2] or struct.pack(">H", _NORMAL))
                return b""
            elif kind < _CONTROL and payload:
                return payload

    async def _frame(self) -> tuple[int, bytes] | None:
        """The next frame, unmasked. What breaks the rules ends the connection."""
        head = await self._take(2)
        if head is None:
            return None
        kind, length = head[0] & 0x0F, head[1] & 0x7F
        if not head[1] & _MASK or head[0] & 0x70 or (kind >= _CONTROL and length > 125):
            await self._say_goodbye(struct.pack(">H", _PROTOCOL_ERROR))
            return None
        if length >= 126:
            size = 2 if length == 126 else 8
            more = await self._take(size)
            if more is None:
                return None
            length = int.from_bytes(more, "big")
        if length > _MOST_MESSAGE_BYTES:
            await self._say_goodbye(struct.pack(">H", _TOO_LARGE))
            return None
        body = await self._take(4 + length)
        if body is None:
            return None
        return kind, _unmasked(body[4:], body[:4])

    async def _take(self, count: int) -> bytes | None:
        while len(self._pending) < count:
            data = await self._stream.read()
            if not data:
                return None
            self._pending += data
        taken = bytes(self._pending[:count])
        del self._pending[:count]
        return taken

    async def write(self, data: bytes) -> None:
        """A binary message. Raises Gone."""
        await self._send(_BINARY, data)

    async def _send(self, kind: int, payload: bytes) -> None:
        if self._closed:
            raise Gone
        await self._stream.write(_framed(kind, payload))

    async def _say_goodbye(self, payload: bytes) -> None:
        if not self._closed:
            await self._send(_CLOSE, payload)
            self._closed = True

    async def until_gone(self) -> None:
        """Return when nobody is there any more."""
        await self._stream.until_gone()

    def close(self) -> None:
        """End it, once what waits is sent."""
        if not self._closed and not self._stream.lost:
            self._closed = True
            self._stream.transport.write(_framed(_CLOSE, struct.pack(">H", _NORMAL)))
        self._stream.close()


def _framed(kind: int, payload: bytes) -> bytes:
    length = len(payload)
    size = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big") if length < 65536 else b"\x7f" + length.to_bytes(8, "big")
    return bytes([_FIN | kind]) + size + payload


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    """All of it at once: as one large number."""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")
