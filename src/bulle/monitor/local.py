"""The caller's own descriptors as a client of a supervisor that runs in the caller's process: what a foreground ``run`` is attached by.

Nothing here may block the supervisor: pipes and terminals are opened anew without blocking where that is allowed, so that the flags of the caller's
own descriptors, which others share, stay as they are.
"""

from __future__ import annotations

import os
import select
import stat

from bulle.errors import InvalidInput

_CHUNK = 64 * 1024


def detach_keys(text: str | None) -> bytes:
    """The bytes that detach, from Docker's notation (``ctrl-p,ctrl-q``); the default where nothing was given."""
    if text is None:
        return b"\x10\x11"
    keys = bytearray()
    for key in text.split(",") if text else ():
        letter = key.removeprefix("ctrl-").lower() if key.startswith("ctrl-") else ""
        if len(letter) == 1 and "@" <= letter.upper() <= "_":
            keys.append(ord(letter.upper()) & 0x1F)
        elif len(key) == 1 and key.isascii():
            keys += key.encode()
        else:
            raise InvalidInput(f"invalid detach keys ({text})", f"unknown key '{key}'", "use letters and ctrl-<letter>, separated by commas")
    return bytes(keys)


class DetachKeys:
    """Finds the sequence that means "leave me" in what is typed, and holds a beginning of it back until it is clear."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._matched = 0
        self.complete = False

    def filter(self, data: bytes) -> bytes:
        """What is to be passed on of the bytes that were typed."""
        if not self._sequence:
            return data
        kept = bytearray()
        for byte in data:
            if byte == self._sequence[self._matched]:
                self._matched += 1
                if self._matched == len(self._sequence):
                    self.complete = True
                    break
                continue
            kept += self._sequence[: self._matched]
            self._matched = 1 if byte == self._sequence[0] else 0
            if not self._matched:
                kept.append(byte)
        return bytes(kept)


class LocalStreams:
    """Input from and output to three descriptors of this process (-1 for none); they stay the caller's."""

    def __init__(self, stdin_fd: int, stdout_fd: int, stderr_fd: int, detach_keys: bytes = b"") -> None:
        self.stdin = stdin_fd
        self.keys = DetachKeys(detach_keys)
        self._targets = {"stdout": _Target(stdout_fd), "stderr": _Target(stderr_fd)}

    @property
    def waiting(self) -> int:
        """Bytes that could not be written yet."""
        return sum(len(target.waiting) for target in self._targets.values())

    def blocked(self) -> list[int]:
        """The descriptors to poll for writing."""
        return [target.descriptor for target in self._targets.values() if target.waiting]

    def write(self, stream: str, data: bytes) -> None:
        """Pass output on as far as it is taken now. BrokenPipeError where the reader is gone."""
        target = self._targets[stream]
        target.waiting += data
        target.flush()

    def flush(self) -> None:
        """Write what waits, as far as it is taken now."""
        for target in self._targets.values():
            target.flush()

    def read(self) -> bytes | None:
        """What was typed or piped in, without the detach keys; None at the end of the input."""
        try:
            data = os.read(self.stdin, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError:  # a terminal that hung up
            data = b""
        return self.keys.filter(data) if data else None

    def close(self) -> None:
        """Write everything out, however long the reader takes, and close what was opened here."""
        try:
            while self.waiting:
                select.select([], self.blocked(), [])
                self.flush()
        finally:
            for target in self._targets.values():
                target.close()


class _Target:
    def __init__(self, descriptor: int) -> None:
        self.waiting = bytearray()
        self.descriptor = _without_blocking(descriptor) if descriptor >= 0 else -1

    def flush(self) -> None:
        if self.descriptor < 0:
            self.waiting.clear()
        while self.waiting:
            try:
                written = os.write(self.descriptor, self.waiting[:_CHUNK])
            except BlockingIOError:
                return
            del self.waiting[:written]

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _without_blocking(descriptor: int) -> int:
    """A descriptor of our own for the same pipe or terminal that never blocks; a plain copy of anything else."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(kind) or os.isatty(descriptor):
        try:
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass  # another user's: then a slow reader slows us too
    return os.dup(descriptor)
