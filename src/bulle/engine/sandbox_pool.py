"""A pool of sandboxes that are started ahead, each for one use: what a program takes when it cannot wait for a start.

One thread in the background starts them and ends those that were used; nothing of one use is there in the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from bulle.engine.running import engine_of
from bulle.engine.sandbox import Sandbox, sandbox
from bulle.errors import BulleError, Conflict, InvalidInput


class SandboxPool:
    """``size`` sandboxes of an image, ready to be taken; ``options`` are those of :func:`bulle.sandbox`. Safe in threads. Leave it by ``with``."""

    def __init__(self, image: str, *, size: int = 4, **options: Any) -> None:
        """Returns at once; the first are ready after the time of a start."""
        if size < 1:
            raise InvalidInput(f"a pool of {size} sandboxes is none", "", "give 1 or more")
        self._image = image
        self._size = size
        self._options = options
        self._changed = threading.Condition()
        self._ready: deque[Sandbox] = deque()
        self._used: deque[Sandbox] = deque()
        self._failure: BaseException | None = None
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="bulle sandbox pool", daemon=True)
        self._worker.start()

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ready(self) -> int:
        """How many can be taken without waiting."""
        return len(self._ready)

    def take(self, timeout: float | None = 60.0) -> Sandbox:
        """One that nobody has used, for ``with``; when it is left it is ended, and another replaces it.

        Waits where none is ready, ``timeout`` seconds at most (None: as long as it takes). Raises what starting one ended in, Conflict when the
        time is up.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                if self._closed:
                    raise Conflict("the pool of sandboxes is closed", "", "make a new one")
                while self._ready:
                    taken = self._ready.popleft()
                    self._changed.notify_all()
                    if taken.alive:
                        return taken
                    self._used.append(taken)  # killed by somebody while it waited
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    self._changed.notify_all()
                    raise failure
                if not self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    raise Conflict("no sandbox of the pool is ready", f"none became so in {timeout:g} s", "make the pool larger, or wait longer")

    def close(self) -> None:
        """End those that wait, and those that were used; who has taken one keeps it. Harmless to repeat."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._worker is not threading.current_thread():
            self._worker.join()

    def _retire(self, box: Sandbox) -> None:
        with self._changed:
            if not self._closed:
                self._used.append(box)
                self._changed.notify_all()
                return
        box.close()

    def _work(self) -> None:
        try:
            while self._step():
                pass
        finally:
            engine_of(self._options.get("home")).database.close()

    def _step(self) -> bool:
        """Wait for something to do and do it: end one, start one. False when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._used or self._closed or self._lacks())
            if self._closed:
                self._used += self._ready
                self._ready.clear()
            used = self._used.popleft() if self._used else None
            lacks = self._lacks()
            finished = self._closed and used is None
        if used is not None:
            used.retire = None
            with suppress(BulleError):  # it is as good as gone: its monitor goes on trying
                used.close()
        if lacks:
            self._start()
        return not finished

    def _lacks(self) -> bool:
        return not self._closed and self._failure is None and len(self._ready) < self._size

    def _start(self) -> None:
        try:
            box = sandbox(self._image, **self._options)
        except BaseException as error:  # noqa: BLE001 -- raised where somebody takes one
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        box.retire = self._retire
        with self._changed:
            self._ready.append(box)
            self._changed.notify_all()
