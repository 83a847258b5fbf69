"""Where the engine's calls, which block, are made: daemon threads, as many as there is work for and no more than a bound.

A thread that had nothing to do for a while ends, and with it its connection to the database. Nothing that forks may be called here: see
:mod:`bulle.api.jobs`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")
_Task = Callable[[], None]

_IDLE_S = 5.0


class Threads:
    """Threads of one kind; ``at_end`` is called in each before it ends."""

    def __init__(self, most: int, at_end: Callable[[], None]) -> None:
        self._most = most
        self._at_end = at_end
        self._tasks: deque[_Task] = deque()
        self._idle: list[queue.SimpleQueue[_Task]] = []
        self._lock = threading.Lock()
        self.count = 0

    async def run(self, function: Callable[[], Result]) -> Result:
        """Call it in a thread and wait. A caller who is cancelled leaves the call to its end."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Result] = loop.create_future()

        def tell(result: Result | None, error: BaseException | None) -> None:
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, failure = None, None
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 -- raised where it is awaited
                failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(tell, result, failure)

        self._submit(work)
        return await outcome

    def _submit(self, task: _Task) -> None:
        with self._lock:
            if self._idle:
                self._idle.pop().put(task)
                return
            if self.count >= self._most:
                self._tasks.append(task)
                return
            self.count += 1
        try:
            threading.Thread(target=self._live, args=(task,), name="engine call", daemon=True).start()
        except RuntimeError:  # the machine has no more threads: one of those that are here does it
            with self._lock:
                self.count -= 1
                if self._idle:
                    self._idle.pop().put(task)
                elif self.count:
                    self._tasks.append(task)
                else:
                    raise

    def _live(self, task: _Task | None) -> None:
        mine: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        while task is not None:
            task()
            task = self._next(mine)
        self._at_end()

    def _next(self, mine: queue.SimpleQueue[_Task]) -> _Task | None:
        with self._lock:
            if self._tasks:
                return self._tasks.popleft()
            self._idle.append(mine)
        try:
            return mine.get(timeout=_IDLE_S)
        except queue.Empty:
            with self._lock:
                if mine not in self._idle:
                    return mine.get_nowait()  # given at this very moment
                self._idle.remove(mine)
                self.count -= 1
                return None
