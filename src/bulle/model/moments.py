"""Moments as people write and read them: a date, a Unix time, a span before now. The rules are Docker's: its ``--since``, and its ``go-units``."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from bulle.errors import InvalidInput

NANOSECONDS = 1_000_000_000
_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY_HOURS = 24
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_DURATION_UNITS_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": NANOSECONDS, "m": 60 * NANOSECONDS, "h": 3600 * NANOSECONDS}


def parse_duration_ns(text: str) -> int:
    """Nanoseconds from Go's notation: ``42m``, ``1h30m``, ``1.5s``. Raises InvalidInput."""
    total, position = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != position:
            break
        total += float(match[1]) * _DURATION_UNITS_NS[match[2]]
        position = match.end()
    if not text or position != len(text):
        raise InvalidInput(f"invalid duration '{text}'", "", "write it as 10s, 42m or 1h30m")
    return int(total)


def parse_time_ns(text: str, now_ns: int | None = None) -> int:
    """A moment in nanoseconds since the epoch from a date, a Unix time or a span before now (``2026-01-02T13:23:37Z``, ``1136073600.5``, ``42m``).

    A date without a zone is in the caller's zone, as in Docker. Raises InvalidInput.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * NANOSECONDS + int(fraction[:9].ljust(9, "0"))
    if re.match(r"\d{4}-\d{2}-\d{2}", text):
        return _parse_date_ns(text)
    return (now_ns or time.time_ns()) - parse_duration_ns(text)


def _parse_date_ns(text: str) -> int:
    # Python's datetime stops at microseconds; the fraction is taken apart first so that a time copied from `logs -t` names its very line.
    match = re.fullmatch(r"([^.]+?)(?:\.(\d+))?(Z|[+-]\d{2}:?\d{2})?", text)
    if match is not None:
        zone = (match[3] or "").replace("Z", "+00:00")
        try:
            moment = datetime.fromisoformat(match[1] + zone)
        except ValueError:
            pass
        else:
            return int(moment.astimezone(UTC).timestamp()) * NANOSECONDS + int((match[2] or "")[:9].ljust(9, "0"))
    raise InvalidInput(f"invalid time '{text}'", "", "write it as 2026-01-02T13:23:37Z, as a Unix time or as a span like 42m")


def duration(seconds: float) -> str:
    """A span of time in one unit, rounded down as ``go-units`` does: ``About a minute``, ``3 weeks``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < _MINUTE:
        return f"{whole} seconds"
    minutes = whole // _MINUTE
    if minutes == 1:
        return "About a minute"
    if minutes < _MINUTE:
        return f"{minutes} minutes"
    hours = int(seconds / _HOUR + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for unit, unit_hours, below in (("days", 24, 24 * 14), ("weeks", 24 * 7, 24 * 60), ("months", 24 * 30, 24 * 365 * 2)):
        if hours < below:
            return f"{hours // unit_hours} {unit}"
    return f"{int(seconds / _HOUR) // _DAY_HOURS // 365} years"


def ago(then_ns: int, now_ns: int | None = None) -> str:
    """How long ago ``then_ns`` (nanoseconds since the epoch) was: ``2 hours ago``; ``N/A`` for an unknown time."""
    if then_ns <= 0:
        return "N/A"
    return duration(((now_ns or time.time_ns()) - then_ns) / NANOSECONDS) + " ago"
