"""One client's connection: HTTP/1.1 by h11, a request after the other; who vanishes has what was done for it cancelled.

Heads are bounded (64 KiB), as is the time that they may take. Bodies are handed on as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import h11

from bulle.api import failures
from bulle.api.byte_stream import ByteStream, Gone
from bulle.api.call import JSON, Call
from bulle.version import VERSION

MOST_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0
_MOST_UNWANTED_BYTES = 1 << 20
_SERVER = f"Bulle/{VERSION} (linux)"

Headers = Sequence[tuple[str, str]]
Serve = Callable[[Call], Awaitable[None]]


class Connection:
    """One connection. ``common`` are the headers of every answer."""

    def __init__(self, stream: ByteStream, serve: Serve, common: Headers) -> None:
        self.stream = stream
        self._serve = serve
        self._common = [*common, ("Server", _SERVER)]
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD_BYTES)
        self._method = ""
        self._task: asyncio.Task[None] | None = None
        self.answered = False
        self.hijacked = False

    async def run(self) -> None:
        """Answer until the client has no more requests."""
        try:
            while await self._one():
                pass
        except (Gone, h11.RemoteProtocolError, TimeoutError):
            pass
        finally:
            self.stream.on_end = None
            if not self.hijacked:
                self.stream.close()

    async def _one(self) -> bool:
        """Answer one request; False where none came, or none can follow."""
        try:
            event = await self._head()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return False
        if not isinstance(event, h11.Request):
            return False
        self.answered = False
        self._method = event.method.decode()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in event.headers}
        call = Call(self, self._method, event.target.decode("latin-1"), headers)
        self._task = asyncio.current_task()
        self._watch()
        try:
            if self.stream.lost:
                raise Gone
            await self._serve(call)
        except asyncio.CancelledError:
            if self.stream.ended:
                raise Gone from None  # it was the client who left
            raise
        if self.hijacked:
            return False
        self.stream.on_end = None
        return await self._ready_for_next()

    async def _head(self) -> object:
        event = self._http.next_event()
        while event is h11.NEED_DATA:
            idle = self._http.trailing_data[0] == b""
            data = await (self.stream.read() if idle else asyncio.wait_for(self.stream.read(), HEAD_TIMEOUT_S))
            self._http.receive_data(data)
            event = self._http.next_event()
        return event

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer what is no request; where that cannot be done either, it is left at that."""
        if self._http.our_state is h11.IDLE:
            said = failures.ApiError(error.error_status_hint, str(error))
            await self.send_whole(said.status, failures.body(said), [("Content-Type", JSON), ("Connection", "close")])

    async def _ready_for_next(self) -> bool:
        """Skip what is left of the body, if that is not much."""
        skipped = 0
        try:
            async for chunk in self.body(wanted=False):
                skipped += len(chunk)
                if skipped > _MOST_UNWANTED_BYTES:
                    return False
        except h11.RemoteProtocolError:
            return False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False

    async def body(self, *, wanted: bool = True) -> AsyncIterator[bytes]:
        """What is left of the request's body. Raises h11.RemoteProtocolError where the client breaks off."""
        while self._http.their_state is h11.SEND_BODY:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    if not wanted:
                        return
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self.stream.on_end = None  # the reader learns of the end
                self._http.receive_data(await self.stream.read())
                self._watch()
            elif isinstance(event, h11.Data):
                yield bytes(event.data)

    def _watch(self) -> None:
        """Have what is done for the client cancelled when it is gone."""
        if self._task is not None and not self.stream.ended and not self.hijacked:
            self.stream.on_end = self._task.cancel

    # Sending

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self.stream.write(data)

    async def send_whole(self, status: int, content: bytes, headers: Headers) -> None:
        """A whole answer."""
        self.answered = True
        lengths = [] if status in (204, 304) else [("Content-Length", str(len(content)))]
        data = self._http.send(h11.Response(status_code=status, headers=[*headers, *self._common, *lengths])) or b""
        if content and self._method != "HEAD" and status not in (204, 304):
            data += self._http.send(h11.Data(data=content)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self.stream.write(data)

    async def send_head(self, status: int, headers: Headers) -> None:
        """The head of an answer whose length nobody knows yet."""
        self.answered = True
        await self._send(h11.Response(status_code=status, headers=[*headers, *self._common]))

    async def send_data(self, data: bytes) -> None:
        """A piece of it."""
        if data:
            await self._send(h11.Data(data=data))

    async def send_end(self) -> None:
        """The end of it."""
        await self._send(h11.EndOfMessage())

    async def hijack(self, content_type: str, *, upgraded: bool) -> ByteStream:
        """Answer, and give the connection away, with what the client has sent already."""
        line = "101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp" if upgraded else "200 OK"
        return await self.give_away(f"HTTP/1.1 {line}\r\nContent-Type: {content_type}\r\n")

    async def give_away(self, head: str) -> ByteStream:
        """Send this head, and be done with HTTP."""
        async for _chunk in self.body():
            pass
        self.answered = self.hijacked = True
        self.stream.on_end = None
        self.stream.unread(self._http.trailing_data[0])
        common = "".join(f"{name}: {value}\r\n" for name, value in self._common)
        await self.stream.write(f"{head}{common}\r\n".encode())
        await self.stream.until_taken()  # docker-py loses what comes together with the head
        return self.stream

    def break_off(self) -> None:
        """Close in the middle of an answer, so that nobody takes it for a whole one."""
        self.stream.abort()
