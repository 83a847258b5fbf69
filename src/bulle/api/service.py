"""What all requests share: the engine and the threads that call it, the journal, commands that were prepared, and who waits for a start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bulle.api.execs import Execs
from bulle.api.jobs import Job
from bulle.api.journal import Journal
from bulle.api.threads import Threads
from bulle.api.waiting_attachments import WaitingAttachments
from bulle.engine import Engine

if TYPE_CHECKING:
    from bulle.engine import Container

EVERYWHERE = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "::1")
MOST_THREADS, MOST_FOLLOWERS = 256, 1024
Result = TypeVar("Result")


class Service:
    """One home, served. ``publish_addresses`` are where ports are published that name no address."""

    def __init__(self, home: Path | None, publish_addresses: tuple[str, ...] = EVERYWHERE) -> None:
        self.engine = Engine(home)
        self.publish_addresses = publish_addresses
        self.threads = Threads(MOST_THREADS, self.engine.database.close)
        self._followers = Threads(MOST_FOLLOWERS, self.engine.database.close)
        self.journal = Journal(self.engine.home)
        self.execs = Execs()
        self.waiting = WaitingAttachments()
        self.requests = dict[tuple[str, str, int], int]()
        """How many requests were answered, by method, path of the route and status."""
        self.connections = 0
        self._kept = set[asyncio.Task[object]]()

    @property
    def forks(self) -> bool:
        """Whether the engine forks to remove files: an ordinary user's containers have files of other users."""
        return os.geteuid() != 0

    @property
    def bridges(self) -> bool:
        """Whether containers can be on bridges."""
        return os.geteuid() == 0

    def keep(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Have it done whatever becomes of the request that wanted it; the task may be waited for."""
        task = asyncio.get_running_loop().create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    async def run(self, function: Callable[[], Result]) -> Result:
        """Call the engine, which blocks, in a thread."""
        return await self.threads.run(function)

    async def follow(self, function: Callable[[], Result]) -> Result:
        """The same for what goes on as long as a client likes: it takes no thread from those who come and go."""
        return await self._followers.run(function)

    async def container(self, name: str) -> Container:
        """A container by name, id or beginning of an id."""
        return await self.run(lambda: self.engine.containers.get(name))

    def job(self, work: str, **arguments: Any) -> Job:
        """Work in a process of its own; see :mod:`bulle.api.works`."""
        return Job(self.run, self.engine.home, work, arguments)
