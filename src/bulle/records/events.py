"""The journal of a home: what happened to its containers and images, one JSON object a line, in Docker's form of an event.

Whoever changes something calls :func:`publish` (a container's monitor and commands :func:`publish_container`): one line is appended to
``events/journal`` in the home, which becomes ``events/journal.1`` when it has grown; two generations are kept. A lock, that is waited for only for
a moment, keeps the lines in order, whole, and out of a journal that was put away; where it cannot be had the line is written all the same.
:func:`read` and :class:`Following` give them back, what is not an event (the rest of a line that a full disk or a power cut left) is skipped.
Nothing here raises because of an event that could not be written: that loses an event, not a container. Docker Engine API, /events
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from bulle.linux import inotify

DIRECTORY = "events"
JOURNAL = "journal"
ACTOR_FILE = "actor.json"
LARGEST_BYTES = 4 * 1024 * 1024
"""How large a journal grows before the next is begun; about 10,000 events."""

_WRITE_TRIES = 3
_LOCK_TRIES, _LOCK_PAUSE_S = 50, 0.002
_CHUNK = 65536
_POLLING_S = 0.1


class Actor(msgspec.Struct, frozen=True):
    """Whom an event is about: a container's or image's id (of an image also its name), and what describes it: its name, image, labels."""

    identifier: str = msgspec.field(name="ID")
    attributes: dict[str, str] = msgspec.field(name="Attributes", default_factory=dict)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. ``kind`` and ``action`` are Docker's words; ``time_ns`` is nanoseconds since the epoch."""

    kind: str = msgspec.field(name="Type")
    action: str = msgspec.field(name="Action")
    actor: Actor = msgspec.field(name="Actor")
    scope: str = "local"
    time_s: int = msgspec.field(name="time")
    time_ns: int = msgspec.field(name="timeNano")


_encoder = msgspec.json.Encoder()
_events = msgspec.json.Decoder(Event)
_attributes = msgspec.json.Decoder(dict[str, str])


def publish(home: Path | str, kind: str, action: str, identifier: str, attributes: Mapping[str, str]) -> None:
    """Append an event to the journal of ``home`` (a host path); never raises, never waits long."""
    directory, known = f"{home}/{DIRECTORY}", dict(attributes)
    with suppress(OSError, UnicodeError):
        for _ in range(_WRITE_TRIES):
            try:
                _append(directory, kind, action, identifier, known)
                return
            except FileNotFoundError:
                with suppress(FileExistsError):  # another was first
                    os.mkdir(directory, 0o700)
            except UnicodeEncodeError:  # bytes of an argument that are no text
                action, identifier = _text(action), _text(identifier)
                known = {_text(name): _text(value) for name, value in known.items()}


def publish_container(directory: str, action: str, **more: str) -> None:
    """Publish an event of the container whose host directory is given, described as it is now; ``more`` are attributes of this event.

    Nothing for one of which :func:`describe_container` was never called: a step of a build.
    """
    known = container_attributes(directory)
    if known is not None:
        containers, _, identifier = directory.rpartition("/")
        publish(os.path.dirname(containers), "container", action, identifier, {**known, **more})


def container_attributes(directory: str) -> dict[str, str] | None:
    """What :func:`describe_container` kept; None where nothing was."""
    try:
        return _attributes.decode(_content(f"{directory}/{ACTOR_FILE}"))
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None


def describe_container(directory: str, attributes: Mapping[str, str]) -> None:
    """Keep what all events of a container say of it: its image, its name, its labels. Who cannot write them has a container without events."""
    temporary = f"{directory}/.{ACTOR_FILE}"
    with suppress(OSError, UnicodeError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, _encoder.encode(dict(attributes)))
        finally:
            os.close(descriptor)
        os.rename(temporary, f"{directory}/{ACTOR_FILE}")


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()


def _content(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _append(directory: str, kind: str, action: str, identifier: str, attributes: dict[str, str]) -> None:
    path = f"{directory}/{JOURNAL}"
    descriptor, locked = _open_to_write(path)
    try:
        now_ns = time.time_ns()  # under the lock, so that the lines are in the order of their times
        event = Event(kind=kind, action=action, actor=Actor(identifier, attributes), time_s=now_ns // 1_000_000_000, time_ns=now_ns)
        line = _encoder.encode(event) + b"\n"
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # the line before was torn
        written = os.write(descriptor, line)
        if locked and written < len(line):
            os.ftruncate(descriptor, size)
        elif locked and size + written > LARGEST_BYTES:
            os.rename(path, f"{path}.1")
    finally:
        os.close(descriptor)


def _open_to_write(path: str) -> tuple[int, bool]:
    """The journal, and whether its lock was had: then nobody puts it away meanwhile. Who holds it may be stopped, so it is not waited for long."""
    for attempt in range(_LOCK_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, path):
                return descriptor, True
        except BlockingIOError:
            if attempt == _LOCK_TRIES - 1:
                return descriptor, False
            time.sleep(_LOCK_PAUSE_S)
        os.close(descriptor)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), False


def _is(descriptor: int, path: str) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


class _Generation:
    """One journal that is being read. Its descriptor names it whatever it is called meanwhile."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""

    def close(self) -> None:
        os.close(self.descriptor)

    def skip(self) -> None:
        """Go on behind what is there."""
        os.lseek(self.descriptor, 0, os.SEEK_END)

    def events(self) -> Iterator[Event]:
        """What was written since the last time, as far as its lines are whole."""
        while data := os.read(self.descriptor, _CHUNK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                with suppress(msgspec.MsgspecError, UnicodeError):
                    yield _events.decode(line)


def _generations(directory: str) -> deque[_Generation]:
    """The journals that there are, oldest first, none of them twice and none left out although one may be put away at this moment."""
    path = f"{directory}/{JOURNAL}"
    while True:
        found: deque[_Generation] = deque()
        for name in (path, f"{path}.1"):
            with suppress(FileNotFoundError):
                found.appendleft(_Generation(name))
        newest = found[-1].descriptor if found else -1
        if newest < 0 or _is(newest, path) or (len(found) == 1 and not os.path.exists(path)):
            return found
        for one in found:
            one.close()


def read(home: Path | str, *, since_ns: int = 0, until_ns: int = 0) -> Iterator[Event]:
    """The events that are kept, oldest first; those between two times (nanoseconds since the epoch, 0: no bound)."""
    generations = _generations(f"{home}/{DIRECTORY}")
    try:
        for generation in generations:
            for event in generation.events():
                if event.time_ns >= since_ns and not 0 < until_ns < event.time_ns:
                    yield event
    finally:
        for generation in generations:
            generation.close()


class Following(Iterator[Event]):
    """Events as they happen, from the moment that this is made, or those since ``since_ns`` first; it ends at ``until_ns`` or when the home is gone.

    Times are nanoseconds since the epoch, 0 for none. To be closed, or used with ``with``; a thread waits in ``next`` until something happens.
    """

    def __init__(self, home: Path | str, *, since_ns: int = 0, until_ns: int = 0) -> None:
        self._directory = f"{home}/{DIRECTORY}"
        self._path = f"{self._directory}/{JOURNAL}"
        self._since_ns, self._until_ns = since_ns, until_ns
        self._generations: deque[_Generation] = deque()
        self._watcher = -1
        with suppress(FileExistsError):
            os.mkdir(self._directory, 0o700)
        try:
            self._watcher = inotify.inotify_init()
            inotify.inotify_add_watch(self._watcher, self._directory, inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_DELETE_SELF)
        except OSError:  # the user has no more watchers: then it is looked at from time to time
            self._stop_watching()
        os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._generations = _generations(self._directory)
        if not since_ns:
            while len(self._generations) > 1:
                self._generations.popleft().close()
            self._generations[0].skip()
        self._events = self._follow()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop following; harmless to repeat."""
        self._events.close()
        for generation in self._generations:
            generation.close()
        self._generations.clear()
        self._stop_watching()

    def fileno(self) -> int:
        """Readable when something may have happened, -1 where that is not told: for who waits for other things too, and then asks :meth:`arrived`."""
        return self._watcher

    def arrived(self) -> list[Event]:
        """What has happened since it was asked last; does not wait. Not to be mixed with ``next``."""
        if self._watcher >= 0:
            with suppress(BlockingIOError):
                os.read(self._watcher, _CHUNK)
        found: list[Event] = []
        while True:
            put_away = not _is(self._generations[-1].descriptor, self._path)
            while len(self._generations) > 1:
                found += self._wanted(self._generations[0])
                self._generations.popleft().close()
            found += self._wanted(self._generations[0])
            if not put_away or not self._go_on():
                return found

    def _stop_watching(self) -> None:
        if self._watcher >= 0:
            os.close(self._watcher)
            self._watcher = -1

    def _follow(self) -> Generator[Event, None, None]:
        while True:
            late = 0 < self._until_ns <= time.time_ns()  # looked at before reading, so that all until then is read
            put_away = not _is(self._generations[-1].descriptor, self._path)
            while len(self._generations) > 1:
                yield from self._wanted(self._generations[0])
                self._generations.popleft().close()
            yield from self._wanted(self._generations[0])
            if put_away:
                if not self._go_on():
                    return
            elif late:
                return
            else:
                self._wait()

    def _wanted(self, generation: _Generation) -> Iterator[Event]:
        for event in generation.events():
            if event.time_ns >= self._since_ns and not 0 < self._until_ns < event.time_ns:
                yield event

    def _go_on(self) -> bool:
        """The journals that were begun after the one that was read to its end and put away; False when the home is gone."""
        last = self._generations[0]
        try:
            os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            return False
        newer = _generations(self._directory)
        if newer and os.path.samestat(os.fstat(newer[0].descriptor), os.fstat(last.descriptor)):
            newer.popleft().close()
        last.close()
        self._generations = newer
        return bool(newer)

    def _wait(self) -> None:
        left_ms = None if not self._until_ns else max(0, -(-(self._until_ns - time.time_ns()) // 1_000_000))
        if self._watcher < 0:
            time.sleep(_POLLING_S if left_ms is None else min(_POLLING_S, left_ms / 1000))
            return
        poll = select.poll()
        poll.register(self._watcher, select.POLLIN)
        if poll.poll(left_ms):
            with suppress(BlockingIOError):
                os.read(self._watcher, _CHUNK)
