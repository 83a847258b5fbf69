"""Reading a container's log: all of its files in order, the compressed ones too, from wherever a reader wants to begin, and on while it grows.

Whole blocks are passed on as bytes, since a log of a million lines is read for its text and hardly ever line by line. A reader holds descriptors, not
names: files may be given other numbers, be compressed and be removed while it reads. Nothing here speaks to a monitor, so that no reader can slow a
container, and none ends because a monitor does. The form of a line is that of :mod:`bulle.monitor.logs`.
"""

from __future__ import annotations

import os
import select
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar

import msgspec

from bulle.linux import inotify
from bulle.monitor.log_file import rotated
from bulle.monitor.logs import LOG_FILE, LogEntry, parse_timestamp, timestamp

_BLOCK = 256 * 1024
_ATTEMPTS = 20
_AS_GZIP = 31
_TIME_LENGTH = 30
_EVENTS = 64 * 1024
_LOOK_ANYWAY_S, _LOOK_OFTEN_S = 1.0, 0.1
_STDERR = b'"stream":"stderr"'

Stream = Literal["stdout", "stderr"]
Wait = Callable[[], bool]
Form = TypeVar("Form")


class _Text(msgspec.Struct, gc=False):
    log: str
    stream: Stream


class _Line(msgspec.Struct):
    log: str
    stream: Stream
    time: str
    attrs: dict[str, str] = {}


_texts = msgspec.json.Decoder(_Text)
_lines = msgspec.json.Decoder(_Line)


@dataclass(frozen=True)
class Choice:
    """Which lines are wanted: the last ``tail`` of all (None: all), of these those from ``since_ns`` on and not after ``until_ns`` (0: no bound)."""

    tail: int | None = None
    since_ns: int = 0
    until_ns: int = 0

    @property
    def bounds(self) -> tuple[str, str]:
        """The two as they stand in the file."""
        return timestamp(self.since_ns) if self.since_ns else "", timestamp(self.until_ns) if self.until_ns else ""


def read_log(directory: str, choice: Choice = Choice(), more: Wait | None = None) -> Iterator[LogEntry]:
    """Entries of the log of the container with this host directory, oldest first.

    ``more`` is asked at the end of the file: it waits for new output and returns False when there will be none (this is ``--follow``).
    """
    for block in _blocks(directory, choice, more):
        if _is_before(block, choice):
            continue
        for line in _chosen(_decode(_lines, block), choice):
            with suppress(ValueError):
                yield LogEntry(line.stream, parse_timestamp(line.time), line.log.encode(), line.attrs)
        if _is_after(block, choice):
            return


def read_text(
    directory: str, choice: Choice = Choice(), more: Wait | None = None, *, timestamps: bool = False, details: bool = False
) -> Iterator[tuple[Stream, bytes]]:
    """The same as text to print, in pieces of any number of lines of one stream; with their times and attributes before them where wanted."""
    plain = not (timestamps or details)
    for block in _blocks(directory, choice, more):
        if _is_before(block, choice):
            continue
        if plain and _is_within(block, choice):
            texts = _decode(_texts, block)
            if _STDERR not in block:
                yield "stdout", "".join([text.log for text in texts]).encode()
            else:
                for stream, group in groupby(texts, key=lambda text: text.stream):
                    yield stream, "".join([text.log for text in group]).encode()
            continue
        for stream, lines in groupby(_chosen(_decode(_lines, block), choice), key=lambda line: line.stream):
            yield stream, "".join([_printed(line, timestamps, details) for line in lines]).encode()
        if _is_after(block, choice):
            return


def _printed(line: _Line, timestamps: bool, details: bool) -> str:
    time = f"{line.time} " if timestamps else ""
    return f"{time}{printed_attributes(line.attrs)} {line.log}" if details else time + line.log


def printed_attributes(attributes: Mapping[str, str]) -> str:
    """As ``logs --details`` shows them: ``name=value`` in order, with commas between, escaped as in addresses."""
    from urllib.parse import quote_plus

    return ",".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in sorted(attributes.items()))


def _decode(decoder: msgspec.json.Decoder[Form], block: bytes) -> list[Form]:
    try:
        return decoder.decode_lines(block)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = []
        for line in block.split(b"\n"):
            with suppress(msgspec.DecodeError, UnicodeDecodeError):  # damaged by something that is not us
                found.append(decoder.decode(line))
        return found


def _chosen(lines: Iterable[_Line], choice: Choice) -> Iterator[_Line]:
    since, until = choice.bounds
    for line in lines:
        if len(line.time) != _TIME_LENGTH:
            with suppress(ValueError):
                line.time = timestamp(parse_timestamp(line.time))
        if since <= line.time and (not until or line.time <= until):
            yield line


def _is_within(block: bytes, choice: Choice) -> bool:
    """Whether all lines of the block are wanted, by the times of its first and last."""
    since, until = choice.bounds
    if not since and not until:
        return True
    first = _time_before(block, block.find(b"\n"))
    return bool(first) and since <= first and (not until or "" < _time_before(block, len(block) - 1) <= until)


def _is_before(block: bytes, choice: Choice) -> bool:
    return bool(choice.since_ns) and "" < _time_before(block, len(block) - 1) < choice.bounds[0]


def _is_after(block: bytes, choice: Choice) -> bool:
    return bool(choice.until_ns) and _time_before(block, len(block) - 1) > choice.bounds[1]


def _time_before(block: bytes, end: int) -> str:
    """The time of the line that ends there; empty where it is not in our form."""
    time = block[end - _TIME_LENGTH - 2 : end]
    return time[:-2].decode(errors="replace") if time.endswith(b'Z"}') else ""


class _Source:
    """One file of a log that is open for reading, compressed or not, and how far it was read."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.status = os.fstat(self.descriptor)
        self._packed = path.endswith(".gz")
        self._unpacker = zlib.decompressobj(_AS_GZIP)
        self._position = 0
        self._skip = 0
        self._pending = b""
        self.ends_now = False
        """Whether what is written from now on is not wanted: a reader that does not follow a flood comes to an end."""

    def close(self) -> None:
        os.close(self.descriptor)

    def is_the_file_of(self, other: _Source) -> bool:
        """Whether this is the same file as the other, which may have been compressed since: then they have the time of the last change in common."""
        return os.path.samestat(self.status, other.status) or (self._packed and self.status.st_mtime_ns == os.fstat(other.descriptor).st_mtime_ns)

    def is_followed(self, path: str) -> bool:
        """Whether the log with this host path is another file by now."""
        try:
            return not os.path.samestat(os.stat(path), self.status)
        except FileNotFoundError:
            return False

    def blocks(self) -> Iterator[bytes]:
        """Whole lines up to the end of the file as it is now; may be called again when it has grown."""
        while True:
            data = self._read()
            if not data:
                if self._packed or os.fstat(self.descriptor).st_size >= self._position:
                    return
                self._position, self._pending = 0, b""  # a log of one file is emptied when it is full
                continue
            data = self._pending + data
            end = data.rfind(b"\n") + 1
            self._pending = data[end:]
            if end:
                yield data[:end]

    def seek_tail(self, lines: int) -> int:
        """Move to where the last lines begin; returns how many more are wanted of the files before."""
        return self._skip_all_but(lines) if self._packed else self._seek_backwards(lines)

    def _read(self) -> bytes:
        while True:
            wanted = min(_BLOCK, self.status.st_size - self._position) if self.ends_now else _BLOCK
            data = os.pread(self.descriptor, wanted, self._position)
            self._position += len(data)
            if not data or not self._packed:
                return data
            try:
                data = self._unpacker.decompress(data)
            except zlib.error:
                return b""  # damaged: what comes before it can be read
            if self._skip:
                here = data.count(b"\n")
                data, self._skip = (_without_lines(data, self._skip), 0) if here > self._skip else (b"", self._skip - here)
            if data:
                return data

    def _skip_all_but(self, lines: int) -> int:
        found = sum(block.count(b"\n") for block in self.blocks())
        self._position, self._pending, self._unpacker = 0, b"", zlib.decompressobj(_AS_GZIP)
        self._skip = max(found - lines, 0)
        return max(lines - found, 0)

    def _seek_backwards(self, lines: int) -> int:
        position = self.status.st_size
        remaining = lines + 1  # the last newline ends the last line
        while position:
            start = max(0, position - _BLOCK)
            block = os.pread(self.descriptor, position - start, start)
            here = block.count(b"\n")
            if here >= remaining:
                end = len(block)
                for _ in range(remaining):
                    end = block.rfind(b"\n", 0, end)
                self._position = start + end + 1
                return 0
            remaining -= here
            position = start
        return remaining - 1


def _without_lines(data: bytes, lines: int) -> bytes:
    start = 0
    for _ in range(lines):
        start = data.index(b"\n", start) + 1
    return data[start:]


def _open(path: str) -> list[_Source]:
    """All files of the log with this host path, the oldest first; none where nothing was written yet."""
    for attempt in range(_ATTEMPTS):
        with ExitStack() as stack, suppress(FileNotFoundError):

            def opened(name: str, stack: ExitStack = stack) -> _Source:
                source = _Source(name)
                stack.callback(source.close)
                return source

            newest = opened(path)
            names = dict(sorted(rotated(path), key=lambda item: item[1], reverse=True))  # a number that is compressed and not yet removed: as it was
            older = [opened(names[number]) for number in sorted(names, reverse=True)]
            # While the newest stays the same, the others have kept their numbers.
            if not newest.is_followed(path) or attempt == _ATTEMPTS - 1:
                stack.pop_all()
                return [*older, newest]
        if not attempt and not os.path.exists(path) and not os.path.exists(f"{path}.1"):
            return []
    return []


def _beginning(path: str, choice: Choice) -> list[_Source]:
    """Where to begin: the files that have wanted lines."""
    sources = _open(path)
    first = 0
    if choice.tail is not None and sources:
        remaining, first = choice.tail, len(sources)
        while first and (remaining or first == len(sources)):
            first -= 1
            remaining = sources[first].seek_tail(remaining)
    while first < len(sources) - 1 and sources[first].status.st_mtime_ns < choice.since_ns:
        first += 1
    return _from(sources, first)


def _from(sources: list[_Source], first: int) -> list[_Source]:
    for source in sources[:first]:
        source.close()
    return sources[first:]


def _successors(path: str, last: _Source) -> list[_Source]:
    """The files that came after one that was read to its end; all, if it is not among them any more."""
    sources = _open(path)
    return _from(sources, next((number + 1 for number, source in enumerate(sources) if source.is_the_file_of(last)), 0))


def _blocks(directory: str, choice: Choice, more: Wait | None) -> Iterator[bytes]:
    path = f"{directory}/{LOG_FILE}"
    waiting = _beginning(path, choice)
    try:
        if waiting and more is None:
            waiting[-1].ends_now = True
        while not waiting and more is not None and more():
            waiting = _beginning(path, choice)
        while waiting:
            yield from waiting[0].blocks()
            ended = False
            while len(waiting) == 1 and more is not None:
                if waiting[0].is_followed(path):
                    yield from waiting[0].blocks()
                    waiting += _successors(path, waiting[0])
                    break
                if ended:
                    return
                ended = not more()
                yield from waiting[0].blocks()
            waiting.pop(0).close()
    finally:
        for source in waiting:
            source.close()


class Following:
    """Waits until the files of a container's directory change; false when the container has ended. What ``more`` is when a log is followed."""

    def __init__(self, directory: str, is_running: Wait, until_ns: int = 0) -> None:
        """Of the container with this host directory, until that time at most (0: no bound)."""
        self._is_running = is_running
        self._until_ns = until_ns
        self._watcher = -1
        with suppress(OSError):  # a user has few of them; then it is looked for instead
            self._watcher = inotify.inotify_init()
            inotify.inotify_add_watch(self._watcher, directory, inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_MOVED_TO | inotify.IN_ONLYDIR)

    def close(self) -> None:
        """Stop watching."""
        if self._watcher >= 0:
            os.close(self._watcher)

    def __call__(self) -> bool:
        """Wait for a change."""
        patience_s = _LOOK_ANYWAY_S if self._watcher >= 0 else _LOOK_OFTEN_S
        if self._until_ns:
            patience_s = min(patience_s, (self._until_ns - time.time_ns()) / 1e9)
        if patience_s < 0 or not self._is_running():
            return False
        if select.select([self._watcher] if self._watcher >= 0 else [], [], [], patience_s)[0]:
            os.read(self._watcher, _EVENTS)
        return True
