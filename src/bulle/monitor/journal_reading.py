"""Reading the log of a container from the machine's journal, through journalctl(1), which knows its files."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import msgspec

from bulle.errors import Unavailable
from bulle.monitor.log_reading import Choice
from bulle.monitor.logs import LogEntry

_OWN = frozenset({"CONTAINER_ID", "CONTAINER_ID_FULL", "CONTAINER_NAME", "CONTAINER_TAG", "IMAGE_NAME", "SYSLOG_IDENTIFIER"})
_BLOCK = 256 * 1024
_LOOK_S = 0.5


def read_journal(container_id: str, fields: Mapping[str, str], choice: Choice, is_running: Callable[[], bool] | None = None) -> Iterator[LogEntry]:
    """Entries of a container, oldest first; followed while it runs, where that can be asked.

    Raises Unavailable where journalctl is missing or fails.
    """
    program = shutil.which("journalctl")
    if program is None:
        raise Unavailable(
            "the container's log cannot be read", "it is in the journal, and there is no journalctl here", "install systemd, or read it elsewhere"
        )
    command = [program, "--output=json", "--all", "--quiet", "--no-pager", f"--lines={'all' if choice.tail is None else choice.tail}"]
    command += [f"--since=@{_seconds(choice.since_ns)}"] if choice.since_ns else []
    command += [f"--until=@{_seconds(choice.until_ns)}"] if choice.until_ns else []
    command += ["--follow"] if is_running is not None else []
    process = subprocess.Popen([*command, f"CONTAINER_ID_FULL={container_id}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    attributes = {name: value for name, value in fields.items() if name not in _OWN}
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        for line in _lines(process.stdout.fileno(), is_running):
            with suppress(msgspec.DecodeError, ValueError, KeyError):
                yield _entry(msgspec.json.decode(line), attributes)
        if is_running is None:
            said = process.stderr.read().decode(errors="replace").strip()
            if process.wait():
                raise Unavailable("the container's log cannot be read", f"journalctl: {said}", "see `journalctl --help`")
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.stderr.close()
        process.wait()


def _lines(descriptor: int, is_running: Callable[[], bool] | None) -> Iterator[bytes]:
    """Whole lines until the end; of one that has none, until the container has ended and nothing more comes."""
    pending = b""
    ended = False
    while True:
        if is_running is not None and not select.select([descriptor], [], [], _LOOK_S)[0]:
            if ended:
                return
            ended = not is_running()
            continue
        data = os.read(descriptor, _BLOCK)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from lines


def _seconds(time_ns: int) -> str:
    return f"{time_ns // 1_000_000_000}.{time_ns // 1000 % 1_000_000:06d}"


def _entry(found: Mapping[str, object], attributes: Mapping[str, str]) -> LogEntry:
    message = found.get("MESSAGE")
    # What is not printable comes as a list of numbers.
    data = bytes(message) if isinstance(message, list) else str(message or "").encode()
    stream = "stderr" if found.get("PRIORITY") == "3" else "stdout"
    newline = b"" if "CONTAINER_PARTIAL_MESSAGE" in found else b"\n"
    return LogEntry(stream, int(str(found["__REALTIME_TIMESTAMP"])) * 1000, data + newline, attributes)
