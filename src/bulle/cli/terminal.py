"""The caller's terminal and signals while a workload is attached: raw mode, window size, detaching, signals passed on.

``run``, ``start -a``, ``attach`` and ``exec`` come here with an attachment of the engine; the bytes are pumped by the engine. The terminal is as
it was when :func:`follow` returns, whatever happened.
"""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from bulle.errors import BulleError

if TYPE_CHECKING:
    from bulle.engine import Container
    from bulle.monitor import Attached, Outcome

_PROXIED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM, signal.SIGCONT)
_INPUT_FLAGS = termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
_LOCAL_FLAGS = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN


class Interrupted(BaseException):
    """A signal that ends this command, but not before the terminal is as it was."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def window_size() -> tuple[int, int]:
    """Rows and columns of the caller's terminal; zeros where there is none."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            return size.lines, size.columns
    return 0, 0


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """The terminal behind ``descriptor`` without echo, line editing and signals, as cfmakeraw(3) makes it."""
    before = termios.tcgetattr(descriptor)
    attributes = termios.tcgetattr(descriptor)
    attributes[0] &= ~_INPUT_FLAGS
    attributes[1] &= ~termios.OPOST
    attributes[2] = attributes[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    attributes[3] &= ~_LOCAL_FLAGS
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    try:
        yield
    finally:
        # TCSADRAIN: what the workload wrote last is seen as it wrote it. A terminal that has gone needs no restoring.
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _handlers(table: dict[int, Callable[[int, object], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in table.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class SignalProxy:
    """Passes the caller's signals to a container; those that come before it runs are kept until :meth:`open`."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._opened = False
        self._kept: list[int] = []

    def receive(self, number: int, frame: object) -> None:
        """The handler of every proxied signal."""
        if not self._opened:
            self._kept.append(number)
            return
        # Between its end and ours the container cannot be signalled any more; that is no failure.
        with suppress(BulleError, OSError):
            self._container.kill(signal.Signals(number).name.removeprefix("SIG"))

    def open(self) -> None:
        """The container runs: pass on what was kept, and from now on everything at once."""
        self._opened = True
        while self._kept:
            self.receive(self._kept.pop(0), None)


@contextmanager
def proxy(container: Container, enabled: bool) -> Iterator[SignalProxy]:
    """A signal proxy in place while the block runs; without ``enabled`` the caller's signals keep their meaning."""
    made = SignalProxy(container)
    with _handlers(dict.fromkeys(_PROXIED, made.receive) if enabled else {}):
        yield made


def _end(number: int, frame: object) -> None:
    raise Interrupted(number)


def follow(attachment: Attached, *, terminal: bool, stdin: bool, stdout: bool = True, stderr: bool = True, keys: bytes = b"") -> Outcome:
    """Pump until the workload ends or the user detaches, then close the attachment.

    ``terminal`` says whether the workload has one; ``keys`` detach from it. An output that is not attached goes nowhere.
    """
    nowhere = -1 if stdout and stderr else os.open(os.devnull, os.O_WRONLY)
    descriptors = (0 if stdin else -1, 1 if stdout else nowhere, 2 if stderr else nowhere)
    try:
        if not terminal:
            return attachment.pump(*descriptors, detach_keys=b"")
        return _follow_terminal(attachment, descriptors, keys)
    finally:
        attachment.close()
        if nowhere >= 0:
            os.close(nowhere)


def _follow_terminal(attachment: Attached, descriptors: tuple[int, int, int], keys: bytes) -> Outcome:
    def resize(number: int = 0, frame: object = None) -> None:
        rows, columns = window_size()
        if rows and columns:
            with suppress(BulleError, OSError):  # the workload may have ended at this moment
                attachment.resize(rows, columns)

    handlers: dict[int, Callable[[int, object], None]] = {signal.SIGWINCH: resize}
    typing = descriptors[0] == 0 and os.isatty(0)
    if typing:
        handlers.update(dict.fromkeys((signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT), _end))
    with _handlers(handlers), _raw(0) if typing else nullcontext():
        resize()
        return attachment.pump(*descriptors, detach_keys=keys)
