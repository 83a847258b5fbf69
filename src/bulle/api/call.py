"""One request and its answer, as a handler sees them: typed parameters, a body that is bounded or streamed, an answer at once or piece by piece.

A handler may also take the connection over (*hijack* it): for attach and exec, whose streams are no HTTP any more.
"""

from __future__ import annotations

import types
import typing
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from bulle.api.failures import ApiError
from bulle.api.web_socket import accept_of

if TYPE_CHECKING:
    from bulle.api.byte_stream import ByteStream
    from bulle.api.connection import Connection

MOST_JSON_BYTES = 8 << 20
RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"
JSON = "application/json"
TAR = "application/x-tar"
_FALSE = frozenset({"", "0", "no", "false", "none"})

Headers = Sequence[tuple[str, str]]
Parameters = TypeVar("Parameters")


class Call:
    """One request. ``version`` is the API's that the client speaks, ``path`` what is left without it."""

    def __init__(self, connection: Connection, method: str, target: str, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self.method = method
        parts = urlsplit(target)
        self.path = unquote(parts.path)
        self.query = dict[str, list[str]]()
        for name, value in parse_qsl(parts.query, keep_blank_values=True, max_num_fields=1000):
            self.query.setdefault(name, []).append(value)
        self.headers = headers
        self.version = (1, 0)

    # What was asked

    def parameters(self, kind: type[Parameters]) -> Parameters:
        """The query as a struct: its fields' names in the query are those that the struct encodes to."""
        found: dict[str, object] = {}
        for name, (plain, several) in _fields(kind).items():  # type: ignore[arg-type]
            values = self.query.get(name)
            if values is None:
                continue
            if several:
                found[name] = values
            elif plain is bool:
                found[name] = values[-1].strip().lower() not in _FALSE
            elif plain is str or values[-1]:
                found[name] = values[-1]
        return msgspec.convert(found, kind, strict=False)

    def filters(self) -> dict[str, list[str]]:
        """``filters`` of the query: lists by key, or as clients of Docker's first years write them."""
        text = self.query.get("filters", [""])[-1]
        if not text:
            return {}
        try:
            found = msgspec.json.decode(text, type=dict[str, list[str] | dict[str, bool]])
        except msgspec.MsgspecError as error:
            raise ApiError(400, f"invalid filter: {error}") from None
        return {key: values if isinstance(values, list) else [one for one, wanted in values.items() if wanted] for key, values in found.items()}

    async def document(self, kind: type[Parameters]) -> Parameters:
        """The body as a struct. Raises ApiError for what is too large, msgspec's errors for what is not understood."""
        raw = await self.body(MOST_JSON_BYTES)
        if b"null" not in raw:
            return msgspec.json.decode(raw or b"{}", type=kind)
        # As in Go, null is what was not said.
        found = _said(msgspec.json.decode(raw))
        return msgspec.convert({} if found is None else found, kind)

    async def body(self, most_bytes: int) -> bytes:
        """All of the body."""
        whole = bytearray()
        async for chunk in self.chunks():
            whole += chunk
            if len(whole) > most_bytes:
                raise ApiError(413, f"request body too large: more than {most_bytes} bytes")
        return bytes(whole)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        return self._connection.body()

    # What is answered

    async def answer(self, document: object = None, status: int = 200, headers: Headers = ()) -> None:
        """A whole answer: a document as JSON, or for None nothing (then the status is 204 unless another is given)."""
        if document is None:
            await self._connection.send_whole(204 if status == 200 else status, b"", headers)
        else:
            content = msgspec.json.encode(document) + b"\n"
            await self._connection.send_whole(status, content, [("Content-Type", JSON), *headers])

    async def answer_text(self, text: str | bytes, kind: str = "text/plain; charset=utf-8", headers: Headers = (), *, status: int = 200) -> None:
        """A whole answer that is no document, or one that is encoded already."""
        content = text.encode() if isinstance(text, str) else text
        await self._connection.send_whole(status, content, [("Content-Type", kind), *headers])

    async def begin(self, content_type: str = JSON, status: int = 200, headers: Headers = ()) -> None:
        """The head of an answer that comes piece by piece; the client learns of it at once."""
        await self._connection.send_head(status, [("Content-Type", content_type), *headers])

    async def write(self, data: bytes) -> None:
        """A piece; waits while the client is slow."""
        await self._connection.send_data(data)

    async def write_document(self, document: object) -> None:
        """One of a stream of documents."""
        await self._connection.send_data(msgspec.json.encode(document) + b"\r\n")

    async def finish(self) -> None:
        """The end of an answer that came piece by piece."""
        await self._connection.send_end()

    @property
    def begun(self) -> bool:
        """Whether the client has been answered something already."""
        return self._connection.answered

    async def become_web_socket(self) -> None:
        """Take the connection over as the client's handshake asks for it. Raises ApiError."""
        key = self.headers.get("sec-websocket-key", "")
        if self.headers.get("upgrade", "").lower() != "websocket" or not key or self.headers.get("sec-websocket-version") != "13":
            raise ApiError(400, "a WebSocket handshake of version 13 is needed")
        accepted = accept_of(key)
        await self._connection.give_away(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepted}\r\n"
        )

    def break_off(self) -> None:
        """Close in the middle of an answer, so that nobody takes it for a whole one."""
        self._connection.break_off()

    async def before_hijack(self) -> ByteStream:
        """Skip the body; returns what :meth:`hijack` is going to give, for who must be known before the client has its answer."""
        async for _chunk in self.chunks():
            pass
        return self._connection.stream

    async def hijack(self, *, terminal: bool) -> ByteStream:
        """Take the connection over: as Docker's clients ask for it, by an upgrade to ``tcp`` or without one."""
        kind = MULTIPLEXED_STREAM if self.version >= (1, 42) and not terminal else RAW_STREAM
        return await self._connection.hijack(kind, upgraded="upgrade" in self.headers and self.headers["upgrade"].lower() == "tcp")


def _said(value: Any) -> Any:
    """A document without what is null in it."""
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return [_said(one) for one in value if one is not None] if isinstance(value, list) else value


@cache
def _fields(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """By the name in the query: the type of a field without None, and whether several values are taken."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
        found[field.encode_name] = (hint, typing.get_origin(hint) in (list, tuple))
    return found
