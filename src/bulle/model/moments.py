"""Moments as people and clients write them: a date, a Unix time, or a span before now. The rules are those of Docker's ``--since``."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from bulle.errors import InvalidInput

NANOSECONDS = 1_000_000_000
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
