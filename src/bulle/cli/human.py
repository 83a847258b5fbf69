"""Times and sizes in the words that people of Docker's world expect: "2 hours ago", "1.09GB", "512m".

The tables (``ps``, ``images``) and the flags that take sizes and times use it; it knows nothing of containers and does no input or output. The
rules are those of the Go library ``go-units`` and of Docker's own ``--since`` parser, so that a script which reads the one can read the other.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from bulle.errors import InvalidInput
from bulle.model.moments import NANOSECONDS, ago, duration, parse_duration_ns, parse_time_ns

_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?$", re.IGNORECASE)


def timestamp(then_ns: int) -> str:
    """A local time as Go prints it: ``2026-11-02 15:04:05 +0100 CET``."""
    if then_ns <= 0:
        return "N/A"
    return datetime.fromtimestamp(then_ns // NANOSECONDS).astimezone().strftime("%Y-%m-%d %H:%M:%S %z %Z")


def rfc3339(then_ns: int) -> str:
    """A UTC time with nanoseconds, as ``logs --timestamps`` shows it."""
    seconds, nanoseconds = divmod(then_ns, NANOSECONDS)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{nanoseconds:09d}Z"


def _scaled(count: float, base: float, units: tuple[str, ...], digits: int) -> str:
    index = 0
    while count >= base and index < len(units) - 1:
        count /= base
        index += 1
    return f"{count:.{digits}g}{units[index]}"


def size(count: float, digits: int = 3) -> str:
    """Bytes in decimal units, as ``images`` shows them: ``1.09GB``."""
    return _scaled(count, 1000.0, _DECIMAL_UNITS, digits)


def binary_size(count: float, digits: int = 4) -> str:
    """Bytes in binary units, as ``info`` shows them: ``7.653GiB``."""
    return _scaled(count, 1024.0, _BINARY_UNITS, digits)


def parse_size(text: str) -> int:
    """Bytes from ``512m``, ``1.5g``, ``64KiB``, ``100``: binary multiples whatever the case. Raises InvalidInput."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise InvalidInput(f"invalid size: '{text}'")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def ellipsis(text: str, width: int) -> str:
    """The text cut to ``width`` characters, the last one an ellipsis where something was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


__all__ = [
    "NANOSECONDS",
    "ago",
    "binary_size",
    "duration",
    "ellipsis",
    "parse_duration_ns",
    "parse_size",
    "parse_time_ns",
    "rfc3339",
    "size",
    "timestamp",
]
