"""The file of a container's log, which never grows past what was allowed: a full one is followed by another, and the oldest is removed.

Names are Docker's: ``container.log`` is written to, ``container.log.1`` is the one before, and so on; with compression all but the first are
``container.log.N.gz``. Compressing is the work of a child, at the lowest priority, so that neither the container waits for it nor its monitor grows;
what it could not finish (the monitor was killed, or the container ended) is made up for after the next rotation. Used by :class:`LogWriter` alone.
"""

from __future__ import annotations

import os
import signal
import zlib
from contextlib import suppress

from bulle.linux import process

_BLOCK = 256 * 1024
_LEVEL = 4
_AS_GZIP = 31


class LogFile:
    """A log file that is open for appending, whose descriptor it owns."""

    def __init__(self, descriptor: int, file_bytes: int = 0, files: int = 1, *, compress: bool = False) -> None:
        """Of a file that is followed by another when it has ``file_bytes`` (0: never); there are ``files`` of them at most."""
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._files = files
        self._compress = compress
        self._size = os.fstat(descriptor).st_size
        self._compressor = 0
        self._compressed = 0
        self.helper = -1
        """A pidfd that is readable when :meth:`reap` has something to do; -1 for none."""
        self.failed = ""
        """Why the last write failed; empty where it did not."""

    def append(self, text: bytes) -> int:
        """Write whole lines; returns how many of them could not be written. What is in the file always ends with a whole line."""
        position = 0
        try:
            while position < len(text):
                if self._file_bytes and self._size >= self._file_bytes:
                    self._rotate()
                end = len(text)
                if self._file_bytes and end - position > self._file_bytes - self._size:
                    end = text.find(b"\n", position + self._file_bytes - self._size - 1) + 1
                position = self._write(text, position, end)
        except OSError as error:
            self.failed = os.strerror(error.errno or 0)
            return text.count(b"\n", position)
        return 0

    def close(self) -> None:
        """Close the file, and end the child that compresses: what it did is done again later."""
        if self._compressor:
            with suppress(ProcessLookupError):
                os.kill(self._compressor, signal.SIGKILL)
            self._wait(0)
            with suppress(OSError):
                os.unlink(self._temporary(self._path()))
        os.close(self._descriptor)

    def reap(self) -> None:
        """Look whether the child has compressed its file, and give it the next."""
        if self._compressor and (status := self._wait(os.WNOHANG)) is not None:
            with suppress(OSError):
                self._take_over(status == 0)
                self._compress_next()

    def _write(self, text: bytes, position: int, end: int) -> int:
        """Write that part of the text, and return its end. Where the disk is full the cut line is taken back and the position told by the error."""
        with memoryview(text) as view:
            written = position
            try:
                while written < end:
                    written += os.write(self._descriptor, view[written:end])
            except OSError:
                whole = text.rfind(b"\n", position, written) + 1 or position
                self._size += whole - position
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                if whole > position:
                    return whole  # the next write says what is wrong
                raise
        self._size += end - position
        self.failed = ""
        return end

    def _path(self) -> str:
        # Asked of the kernel: a monitor need not keep what it has no use for most of its life.
        return os.readlink(f"/proc/self/fd/{self._descriptor}").removesuffix(" (deleted)")

    @staticmethod
    def _temporary(path: str) -> str:
        return f"{os.path.dirname(path)}/.{os.path.basename(path)}.gz"

    def _rotate(self) -> None:
        self.reap()
        if self._files < 2:
            os.ftruncate(self._descriptor, 0)
            self._size = 0
            return
        path = self._path()
        successor = f"{os.path.dirname(path)}/.{os.path.basename(path)}.next"
        following = os.open(successor, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            for number, name in sorted(rotated(path), reverse=True):
                if number >= self._files - 1:
                    os.unlink(name)
                else:
                    os.rename(name, f"{path}.{number + 1}{'.gz' if name.endswith('.gz') else ''}")
            with suppress(FileNotFoundError):  # somebody removed it
                os.rename(path, f"{path}.1")
            os.rename(successor, path)
            os.dup2(following, self._descriptor, inheritable=False)
        finally:
            os.close(following)
        self._size = 0
        self._compressed += 1
        if self._compress and not self._compressor:
            with suppress(OSError):
                self._compress_next()

    def _compress_next(self) -> None:
        """Have a child compress the newest file that is not compressed."""
        path = self._path()
        plain = [number for number, name in rotated(path) if not name.endswith(".gz")]
        if not plain:
            return
        self._compressed = min(plain)
        temporary = self._temporary(path)
        monitor = os.getpid()
        source = os.open(f"{path}.{self._compressed}", os.O_RDONLY | os.O_CLOEXEC)  # here: its name may be another's before the child has begun
        try:
            self._compressor = os.fork()
            if self._compressor == 0:
                try:
                    _compress(source, temporary, monitor)
                    os._exit(0)
                finally:
                    os._exit(1)
            self.helper = os.pidfd_open(self._compressor)
        finally:
            os.close(source)

    def _wait(self, options: int) -> int | None:
        """The wait status of the child, which is forgotten then; None while it works."""
        pid, status = os.waitpid(self._compressor, options)
        if not pid:
            return None
        os.close(self.helper)
        self._compressor, self.helper = 0, -1
        return status

    def _take_over(self, done: bool) -> None:
        """Give the compressed file its name: that of the file that it was made of, which may have moved on meanwhile."""
        path = self._path()
        plain, temporary = f"{path}.{self._compressed}", self._temporary(path)
        if not done or self._compressed >= self._files:
            os.unlink(temporary)
            return
        known = os.stat(plain)
        os.utime(temporary, ns=(known.st_atime_ns, known.st_mtime_ns))  # by which readers that had it open find their place again
        os.rename(temporary, f"{plain}.gz")
        os.unlink(plain)


def rotated(path: str) -> list[tuple[int, str]]:
    """The files that came before the log at this host path: their numbers and paths, in no order; one number may stand for two of them."""
    directory, _, name = path.rpartition("/")
    found = []
    for entry in os.listdir(directory):
        number = entry.removeprefix(f"{name}.").removesuffix(".gz")
        if entry != number and entry.startswith(f"{name}.") and number.isdecimal():
            found.append((int(number), f"{directory}/{entry}"))
    return found


def _compress(source: int, target: str, parent: int) -> None:
    """The child's whole life. It has copies of all that its parent holds (locks, pipes), and gives them up first."""
    with suppress(OSError):
        process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    reading = os.dup2(source, 3)
    os.closerange(4, 1 << 30)
    if os.getppid() != parent:
        return
    os.nice(19)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _AS_GZIP)
    while block := os.read(reading, _BLOCK):
        _write_all(writing, packer.compress(block))
    _write_all(writing, packer.flush())


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
