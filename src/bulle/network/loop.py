"""The keeper's loop: callbacks for descriptors that can be read or written, and for moments. Single-threaded. epoll(7)"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Loop:
    """What waits for what; whoever watches a descriptor gives it back with :meth:`forget` before closing it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.ended = False

    def watch(self, descriptor: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Call ``callback(events)`` whenever the descriptor is ready (level-triggered); again with other events or another callback to change."""
        if descriptor in self._callbacks:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Watch it no longer; harmless to repeat."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def now(self) -> float:
        """The loop's clock: seconds since some moment."""
        return time.monotonic()

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call it once, after so many seconds."""
        heapq.heappush(self._moments, (time.monotonic() + delay_s, next(self._order), callback))

    def turn(self, longest_s: float = -1) -> None:
        """Wait for something to happen, at most so long (-1: for ever), and call whoever waits for it."""
        wait_s = longest_s
        if self._moments:
            due_s = max(0.0, self._moments[0][0] - time.monotonic())
            wait_s = due_s if wait_s < 0 else min(wait_s, due_s)
        for descriptor, events in self._epoll.poll(wait_s):
            callback = self._callbacks.get(descriptor)  # one called before may have forgotten it
            if callback is not None:
                callback(events)
        while self._moments and self._moments[0][0] <= time.monotonic():
            heapq.heappop(self._moments)[2]()

    def run(self) -> None:
        """Turn until ``ended`` is set."""
        while not self.ended:
            self.turn()

    def close(self) -> None:
        """Close the epoll descriptor; those that were watched stay open."""
        self._epoll.close()
