"""What happens in the home, told to all who wait for it: one thread follows the journal, however many clients there are.

Handlers of ``events`` and of ``wait`` subscribe here. Who does not take what it is told is dropped, so that it costs the others nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from bulle.records.events import Event, Following

_MOST_WAITING = 20_000
_AGAIN_S = 1.0


class Subscription:
    """Events since it was made, oldest first; used with ``with``."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self.overrun = False

    def __enter__(self) -> Subscription:
        self._journal.subscriptions.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.subscriptions.discard(self)

    def put(self, event: Event) -> None:
        """Called by the journal."""
        if len(self._events) >= _MOST_WAITING:
            self.overrun = True
            self._journal.subscriptions.discard(self)
        else:
            self._events.append(event)
        self._news.set()

    async def next(self, timeout_s: float | None = None) -> Event | None:
        """The next event; None after the timeout, or where too many came before they were taken (``overrun``)."""
        while not self._events:
            if self.overrun:
                return None
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return None
        return self._events.popleft()


class Journal:
    """The journal of a home, followed from :meth:`start` on."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.subscriptions: set[Subscription] = set()

    def subscribe(self) -> Subscription:
        """To be told of what happens from now on."""
        return Subscription(self)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to follow; ends with the process."""
        following = Following(self._home)
        threading.Thread(target=self._follow, args=(loop, following), name="journal", daemon=True).start()

    def _follow(self, loop: asyncio.AbstractEventLoop, following: Following) -> None:
        with suppress(RuntimeError):  # the loop is closed
            while True:
                with following, suppress(OSError):
                    for event in following:
                        loop.call_soon_threadsafe(self._tell, event)
                time.sleep(_AGAIN_S)  # the home is gone, or could not be read
                with suppress(OSError):
                    following = Following(self._home)

    def _tell(self, event: Event) -> None:
        for subscription in list(self.subscriptions):
            subscription.put(event)
