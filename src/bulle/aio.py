"""The library for programs that run on asyncio: what takes long is awaited, and cancelling the waiting ends what was waited for.

::

    async with bulle.aio.sandbox("deb:bookworm", timeout=5) as box:
        done = await box.run(["python3", "main.py"])

Each call is made in a thread of its own, by the module's twins without ``async``, whose words for options are the same. Other verbs of the library
are as safe in threads: ``await asyncio.to_thread(container.stop)``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from bulle.engine import sandbox as blocking
from bulle.engine.running import CompletedRun, engine_of
from bulle.engine.running import run as blocking_run
from bulle.engine.sandbox import SandboxRun
from bulle.engine.sandbox_pool import SandboxPool as BlockingPool

__all__ = ["CompletedRun", "Sandbox", "SandboxPool", "SandboxRun", "run", "sandbox"]

_Result = TypeVar("_Result")


async def run(
    image: str,
    command: Sequence[str] = (),
    *,
    input: bytes = b"",
    environment: Mapping[str, str] | None = None,
    home: Path | str | None = None,
    **options: Any,
) -> CompletedRun:
    """:func:`bulle.run`; cancelled, it kills the container."""
    return await _interruptible(
        lambda interruption: blocking_run(image, command, input=input, environment=environment, home=home, interruption=interruption, **options),
        home,
    )


def sandbox(image: str, **options: Any) -> Sandbox:
    """:func:`bulle.sandbox`, for ``async with``, which starts it."""
    return Sandbox(lambda: blocking.sandbox(image, **options), options.get("home"))


class Sandbox:
    """A sandbox as :class:`bulle.Sandbox`; cancelling a run kills everything in it but the sandbox."""

    def __init__(self, start: Callable[[], blocking.Sandbox], home: Path | str | None) -> None:
        self._start = start
        self._home = home
        self._box: blocking.Sandbox | None = None

    async def __aenter__(self) -> Sandbox:
        self._box = await _in_thread(self._start, self._home, undo=lambda box: box.close())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def box(self) -> blocking.Sandbox:
        """Its twin that blocks. Only inside of ``async with``."""
        if self._box is None:
            raise RuntimeError("the sandbox is started by `async with`")
        return self._box

    async def run(self, command: Sequence[str], **options: Any) -> SandboxRun:
        """:meth:`bulle.Sandbox.run`."""
        return await _interruptible(lambda interruption: self.box.run(command, interruption=interruption, **options), self._home)

    async def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """:meth:`bulle.Sandbox.write`."""
        await _in_thread(lambda: self.box.write(path, content, mode=mode), self._home)

    async def read(self, path: str, *, most_bytes: int = 64 << 20) -> bytes:
        """:meth:`bulle.Sandbox.read`."""
        return await _in_thread(lambda: self.box.read(path, most_bytes=most_bytes), self._home)

    async def close(self) -> None:
        """:meth:`bulle.Sandbox.close`; it is done also where the waiting is cancelled."""
        if self._box is not None:
            await _in_thread(self._box.close, self._home)


class SandboxPool:
    """A pool as :class:`bulle.SandboxPool`, for ``async with``."""

    def __init__(self, image: str, *, size: int = 4, **options: Any) -> None:
        self._home = options.get("home")
        self._pool = BlockingPool(image, size=size, **options)

    async def __aenter__(self) -> SandboxPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def take(self, timeout: float | None = 60.0) -> Sandbox:
        """:meth:`bulle.SandboxPool.take`, for ``async with``, which waits for one."""
        return Sandbox(lambda: self._pool.take(timeout), self._home)

    async def close(self) -> None:
        """:meth:`bulle.SandboxPool.close`."""
        await _in_thread(self._pool.close, self._home)


async def _interruptible(function: Callable[[int], _Result], home: Path | str | None) -> _Result:
    """Call it with a descriptor that becomes readable when the waiting is cancelled."""
    interruption = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        return await _in_thread(lambda: function(interruption), home, interrupt=lambda: os.eventfd_write(interruption, 1))
    finally:
        os.close(interruption)


async def _in_thread(
    function: Callable[[], _Result],
    home: Path | str | None,
    *,
    interrupt: Callable[[], None] | None = None,
    undo: Callable[[_Result], None] | None = None,
) -> _Result:
    """Call it in a thread of its own. Cancelled, the call is interrupted if it can be, waited for, and undone."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_Result] = loop.create_future()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 -- raised where it is awaited
            tell = _failing(outcome, error)
        else:
            tell = _succeeding(outcome, result)
        finally:
            engine_of(home).database.close()  # this thread's connection
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=work, name="bulle call", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not outcome.done():
        try:
            await asyncio.wait([outcome])
        except asyncio.CancelledError as error:
            cancelled = error
            if interrupt is not None:
                interrupt()
    if cancelled is None:
        return outcome.result()
    if outcome.exception() is None and undo is not None:
        result = outcome.result()
        await _in_thread(lambda: undo(result), home)
    raise cancelled


def _failing(outcome: asyncio.Future[_Result], error: BaseException) -> Callable[[], None]:
    return lambda: outcome.set_exception(error)


def _succeeding(outcome: asyncio.Future[_Result], result: _Result) -> Callable[[], None]:
    return lambda: outcome.set_result(result)
